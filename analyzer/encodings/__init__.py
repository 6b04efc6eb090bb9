"""How a matrix's numbers are stored, one file an encoding, and what they stand for."""
