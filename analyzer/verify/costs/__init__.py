"""What zeroing costs: losses token by token, on no more of the text than the answer needs."""
