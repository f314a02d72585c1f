"""Ordinary differential equations."""

from .solve import Solution, solve
from .tableaus import METHODS
from .trajectory import trajectory

__all__ = ["METHODS", "Solution", "solve", "trajectory"]
