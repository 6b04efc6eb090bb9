"""The stock transformers model, whose blocks' weights come and go."""
