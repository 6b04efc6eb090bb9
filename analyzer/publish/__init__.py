"""The catalog as a dataset on the Hub."""
