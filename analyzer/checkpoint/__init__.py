"""A safetensors checkpoint: headers, index and shards, and which of its tensors are down projections."""
