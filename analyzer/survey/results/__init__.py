"""What a survey has found: its table, the catalog's entries, how far it is."""
