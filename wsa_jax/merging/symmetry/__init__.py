"""Symmetries of a model: which units move together, and what may be done to them."""
