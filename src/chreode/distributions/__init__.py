"""Likelihoods: frozen dataclasses of tensors, with log-probabilities that are exact in float32."""

from __future__ import annotations

from chreode.distributions.base import Distribution
from chreode.distributions.bernoulli import Bernoulli
from chreode.distributions.nb import NegativeBinomial
from chreode.distributions.nbmixture import NegativeBinomialMixture
from chreode.distributions.normal import Normal
from chreode.distributions.poisson import Poisson
from chreode.distributions.zinb import ZeroInflatedNegativeBinomial

__all__ = [
    "Bernoulli",
    "Distribution",
    "NegativeBinomial",
    "NegativeBinomialMixture",
    "Normal",
    "Poisson",
    "ZeroInflatedNegativeBinomial",
]
