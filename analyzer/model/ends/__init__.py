"""A model's two ends: its embedding and its output head, and what that says of tokens."""
