"""The encodings that hold integers, with scales and zero points."""
