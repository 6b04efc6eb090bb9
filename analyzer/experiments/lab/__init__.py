"""What experiments share: the model and its weights, arms and their losses, tables, pictures."""
