"""The formats that weights are stored in, one file each, and what finds which of them a matrix has."""
