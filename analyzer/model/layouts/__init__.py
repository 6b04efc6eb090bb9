"""What other libraries call a model's tensors, and how they lay them, against the stock model's own checkpoint."""
