"""The jobs over many models, on one machine or several, that survive anything, and the table they end in."""
