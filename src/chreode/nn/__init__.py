"""Blocks that several models are built of."""
