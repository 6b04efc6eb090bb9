"""What experiments run on: data sets of the Hub, files, windows, contexts."""
