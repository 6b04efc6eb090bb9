"""Super activations: where they are, and which weights write them."""
