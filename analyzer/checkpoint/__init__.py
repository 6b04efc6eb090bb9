"""A checkpoint, of safetensors or GGUF: headers, index and shards, and the bytes of its tensors."""
