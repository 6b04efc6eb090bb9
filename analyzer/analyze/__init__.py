"""The jobs over scan, verification and catalog."""
