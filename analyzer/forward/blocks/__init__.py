"""The parts of blocks that multiply: MLPs, and experts that share a parameter."""
