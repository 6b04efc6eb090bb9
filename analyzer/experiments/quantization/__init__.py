"""Simulated quantization: rounding, and what is held out of it, of weights as they are loaded and of activations."""
