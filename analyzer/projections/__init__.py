"""Which tensors of a checkpoint are down projections, and whether all of them were found."""
