"""Numbers with baselines: every bench returns a `Bench`, which prints, saves and reports itself."""

from .integration import integration
from .table import Bench

__all__ = ["Bench", "integration"]
