"""Likelihoods: frozen dataclasses of tensors, with log-probabilities that hold in float32."""

from __future__ import annotations

from .base import Distribution
from .bernoulli import Bernoulli
from .nb import NegativeBinomial
from .nbmixture import NegativeBinomialMixture
from .normal import Normal
from .poisson import Poisson
from .zinb import ZeroInflatedNegativeBinomial

__all__ = [
    "Bernoulli",
    "Distribution",
    "NegativeBinomial",
    "NegativeBinomialMixture",
    "Normal",
    "Poisson",
    "ZeroInflatedNegativeBinomial",
]
