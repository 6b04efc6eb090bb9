"""Passes over a model: with edits in place, and with what is seen of them."""
