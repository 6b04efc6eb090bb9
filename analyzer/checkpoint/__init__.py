"""A checkpoint, of safetensors or GGUF: headers, index and shards, and which of its tensors are down projections."""
