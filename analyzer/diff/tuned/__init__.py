"""A base model and its tuned version, by what known weights are and do in both."""
