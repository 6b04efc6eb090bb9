"""The dynamic verification: super activations, their writers, what zeroing them costs."""
