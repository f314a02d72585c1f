"""Ordinary differential equations."""

from .solve import METHODS, Solution, solve
from .trajectory import trajectory

__all__ = ["METHODS", "Solution", "solve", "trajectory"]
