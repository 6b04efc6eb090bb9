"""What quantizers and runtimes take of the catalog, one file for each kind."""
