"""How a matrix's numbers are stored, whatever the format: tiles, floats, blocks with a scale, packed integers."""
