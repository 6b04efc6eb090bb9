"""Static and dynamic analyzer for super weights in safetensors checkpoints."""

__version__ = "0.1.0"
