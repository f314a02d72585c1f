"""How parameters are learned: gradients, EM, coordinate ascent, closed forms; once or several times."""

from ..compute.rng import Rng
from .cavi import CAVI, settle
from .em import EM
from .ensemble import Ensemble, found_again
from .exact import Exact
from .phase import Phase, Session, Split, Trace
from .sgd import SGD

__all__ = [
    "CAVI", "EM", "SGD", "Ensemble", "Exact", "Phase", "Rng", "Session", "Split", "Trace",
    "found_again", "settle",
]  # fmt: skip
