"""Ordinary differential equations."""

from .solve import METHODS, Solution, solve

__all__ = ["METHODS", "Solution", "solve"]
