"""The Hugging Face Hub as a source: pinned, read by ranges, patient, and distrusted."""
