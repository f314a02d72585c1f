"""Rows read, cells chosen, tensors made."""
