"""A diff as text, as a table of CSV, and drawn."""
