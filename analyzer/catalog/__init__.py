"""The catalog: families, entries, files, what others report, exports."""
