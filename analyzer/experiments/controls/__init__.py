"""Which other weights are changed in the place of those in question."""
