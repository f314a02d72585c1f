"""How parameters are learned: gradients, EM, closed forms."""

from ..compute.rng import Rng
from .em import EM
from .exact import Exact
from .phase import Phase, Session, Split, Trace
from .sgd import SGD

__all__ = ["EM", "SGD", "Exact", "Phase", "Rng", "Session", "Split", "Trace"]
