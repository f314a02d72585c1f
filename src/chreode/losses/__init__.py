"""Objectives that several models share: pure functions, reduction declared."""
