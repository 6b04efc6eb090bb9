"""The losses of a text under interventions, token by token."""
