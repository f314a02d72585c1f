"""Numbers with baselines: every bench returns a `Bench`, which prints, saves and reports itself."""

from .augmentation import augmentation
from .dynamics import dynamics
from .generation import generation
from .integration import integration
from .probe import probe
from .table import Bench

__all__ = ["Bench", "augmentation", "dynamics", "generation", "integration", "probe"]
