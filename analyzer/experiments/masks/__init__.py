"""Which weights a pruned model keeps."""
