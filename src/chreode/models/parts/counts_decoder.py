"""From a latent state to counts: frequencies, dispersion and extra zeros, under batch and covariates."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from ...data.batch import CellBatch
from ...data.source import Source
from ...distributions import NegativeBinomial, Poisson, ZeroInflatedNegativeBinomial
from ...losses.counts import nb_log_likelihood, zinb_log_likelihood
from ...module import Module
from ...nn.blocks import (
    MLP,
    ConditionedLinear,
    Linear,
)
from ...nn.dispersion import NEVER, CountMoments, LogTheta
from ...schema import Spec

#: Log-odds of an extra zero where the decoder starts.
_FEW_EXTRA_ZEROS = -3.0
#: Share of the run in which means and θ are learned without extra zeros, which would pass for them.
WITHOUT_EXTRA_ZEROS = 0.2
#: How many times as fast as weights the log-odds of extra zeros then move.
_ZEROS_SPEED = 3.0

Likelihood = NegativeBinomial | ZeroInflatedNegativeBinomial | Poisson


class CountsDecoder(Module):
    """p(x|z, ℓ, covariates) of counts, for modules that derive from it.

    They call `add_decoder` where its weights are to be drawn, which is after those of their encoder.
    """

    def add_decoder(self, options: Any, spec: Spec) -> None:
        """Make the tensors."""
        self.decoding = options
        self.scaled = "size_factor" in spec.roles
        genes = spec.n_features("counts")
        covariates: dict[str, Any] = {
            "categories": spec.condition_blocks(), "n_continuous": len(spec.continuous),
        }  # fmt: skip
        if options.linear_decoder:
            self.linear = ConditionedLinear(options.n_latent, genes, **covariates)
            width = options.n_latent
        else:
            self.trunk = MLP(options.n_latent, [options.n_hidden] * options.n_layers, **covariates)
            self.head = Linear(options.n_hidden, genes)
            width = options.n_hidden
        if options.likelihood == "zinb":
            self.dropout_logits = Linear(width, genes)
        if options.likelihood != "poisson":
            self.per_batch = options.dispersion == "gene-batch" and "batch" in spec.blocks
            self.log_theta = LogTheta(
                spec.blocks["batch"] if self.per_batch else (1,), genes,
                rises=options.dispersion == "gene-state",
            )  # fmt: skip

    def rates(
        self, z: Float[Tensor, "b z"], log_library: Float[Tensor, "b 1"], batch: CellBatch
    ) -> tuple[Float[Tensor, "b g"], Float[Tensor, "b g"], Float[Tensor, "b h"]]:
        """Return ℓρ (the mean without extra zeros), log ρ up to a constant, and the last hidden layer.

        The library size is the total over the genes that were measured. Over these genes ρ sums to 1.
        """
        logits, h = self._logits(z, batch)
        if self.scaled:
            rates = F.softplus(logits)
            return log_library.exp() * rates, rates.log(), h
        total = _measured(logits, batch).logsumexp(-1, keepdim=True)
        return (log_library + logits - total).exp(), logits, h

    def decode(
        self, z: Float[Tensor, "b z"], log_library: Float[Tensor, "b 1"], batch: CellBatch
    ) -> Likelihood:
        """Return p(x|z, ℓ, covariates)."""
        mu, logits, h = self.rates(z, log_library, batch)
        if self.decoding.likelihood == "poisson":
            return Poisson(mu)
        theta = self.log_theta.of(self._rows(batch), logits).exp()
        if self.decoding.likelihood == "nb":
            return NegativeBinomial(mu, theta)
        return ZeroInflatedNegativeBinomial(mu, theta, self._log_odds_of_zero(h))

    def log_likelihood(
        self,
        z: Float[Tensor, "b z"],
        log_library: Float[Tensor, "b 1"],
        batch: CellBatch,
        *,
        extra_zeros: bool = True,
    ) -> Float[Tensor, " b"]:
        """Return log p(x|z, ℓ, covariates), summed over genes: the same as of `decode`, in fewer steps.

        Without `extra_zeros` the counts are negative binomial, also in a model with extra zeros.
        """
        kind = self.decoding.likelihood
        if kind == "poisson" or self.scaled:
            each = self.decode(z, log_library, batch).log_prob(batch["counts"])
            measured = batch.observed.get("counts")
            return (each if measured is None else each[:, measured]).sum(-1)
        logits, h = self._logits(z, batch)
        log_theta, log_rise = self.log_theta.for_likelihood(self._rows(batch))
        if "counts" in batch.observed:  # counting some genes alone leaves θ as it is
            log_theta, log_rise = self.log_theta.of(self._rows(batch), logits), None
        x, logits = batch.sparse("counts"), _measured(logits, batch)
        if kind == "nb" or not extra_zeros:
            return nb_log_likelihood(x, logits, log_library, log_theta, log_rise=log_rise)
        odds = self._log_odds_of_zero(h)
        return zinb_log_likelihood(x, logits, log_library, log_theta, odds, log_rise=log_rise)

    def loadings(self) -> Float[Tensor, "g z"]:
        """Return the linear decoder's weights: change of log frequency per unit of z, before the softmax."""
        return self.linear.linear.weight.T

    # details

    def _first_logits(
        self, moments: CountMoments, source: Source, rows: np.ndarray
    ) -> Float[Tensor, " g"]:
        """Return the decoder's logits if depth is all that differs between cells."""
        if not self.scaled:  # a softmax, whose logits are log frequencies
            return moments.log_frequency
        # a softplus, which is the mean count at a size factor of 1
        depth = sum(float(b.sparse("counts").sum().sum()) for b in source.batches(rows))
        depth /= source.columns["size_factor"][rows].sum()
        mean = depth * moments.log_frequency.double().exp()
        return mean + (-torch.expm1(-mean)).log()

    def _start(self, moments: CountMoments, n_cells: int, logits: Float[Tensor, " g"]) -> None:
        """Take the frequencies that θ refers to; begin where depth is all that differs between cells."""
        counted = self.decoding.likelihood != "poisson"
        if counted:
            self.log_theta.refer(moments.log_frequency, n_cells)
        if self.decoding.start == "random":
            return
        head = self.linear.linear if self.decoding.linear_decoder else self.head
        head.bias.copy_(logits)
        if self.decoding.likelihood == "zinb":
            self.dropout_logits.bias.fill_(_FEW_EXTRA_ZEROS / _ZEROS_SPEED)
        if counted:
            self.log_theta.start(moments.log_theta)

    def _logits(
        self, z: Float[Tensor, "b z"], batch: CellBatch
    ) -> tuple[Float[Tensor, "b g"], Float[Tensor, "b h"]]:
        """Return the logits of the frequencies, and the activations they come from."""
        covariates = self._covariates(batch)
        if self.decoding.linear_decoder:
            return self.linear(z, *covariates), z
        h = self.trunk(z, *covariates)
        return self.head(h), h

    def _log_odds_of_zero(self, h: Float[Tensor, "b h"]) -> Float[Tensor, "b g"]:
        return _ZEROS_SPEED * self.dropout_logits(h)

    def _rows(self, batch: CellBatch) -> Float[Tensor, "#b g"]:
        return self.log_theta(batch["batch"]) if self.per_batch else self.log_theta.table()

    def _covariates(
        self, batch: CellBatch
    ) -> tuple[Int[Tensor, "b c"], Float[Tensor, "b k"] | None]:
        return batch.conditions(), batch.columns.get("continuous")


def _measured(logits: Float[Tensor, "b g"], batch: CellBatch) -> Float[Tensor, "b g"]:
    """Return logits; those of genes that the cells were not measured for expect no count at all."""
    measured = batch.observed.get("counts")
    return logits if measured is None else logits.masked_fill(~measured, NEVER)
