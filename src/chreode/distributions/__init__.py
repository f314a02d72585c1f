"""Likelihoods: frozen dataclasses of tensors, with log-probabilities that hold in float32."""

from __future__ import annotations

from ..distributions.base import Distribution
from ..distributions.bernoulli import Bernoulli
from ..distributions.nb import NegativeBinomial
from ..distributions.nbmixture import NegativeBinomialMixture
from ..distributions.normal import Normal
from ..distributions.poisson import Poisson
from ..distributions.zinb import ZeroInflatedNegativeBinomial

__all__ = [
    "Bernoulli",
    "Distribution",
    "NegativeBinomial",
    "NegativeBinomialMixture",
    "Normal",
    "Poisson",
    "ZeroInflatedNegativeBinomial",
]
