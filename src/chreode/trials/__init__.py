"""Pieces of work that are run here or on Ray, kept on disk and resumed."""
