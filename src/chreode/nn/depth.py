"""Sequencing depth as a random variable: log-normal, with parameters by attributes."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ..schema import Spec
from .attributes import Combinations, attribute_names, mean_and_spread

#: Cells that the expectation from single attributes weighs against those of a combination itself.
SHRINKAGE = 10.0
_RIDGE = 1.0
#: Cells whose designs are in memory at once.
_ROWS = 2**14


class Depth(nn.Module):
    """log ℓ of each modality given the attributes: a normal per combination, shrunk where cells are few.

    The mean of a combination of n cells is (n m + κ a) / (n + κ): m is their own mean, a is the sum of
    effects of the single attributes (a ridge regression) and κ = `SHRINKAGE`; likewise the variance,
    towards that of the regression's residuals. A combination that was never seen has its a. Depths of
    the modalities of a cell correlate as their residuals do.
    """

    effects: Tensor
    scale: Tensor
    mean: Tensor
    variance: Tensor
    root: Tensor
    span: Tensor

    def __init__(self, spec: Spec, n_modalities: int) -> None:
        super().__init__()
        numbers = attribute_names(spec)[1]
        self.combinations = Combinations(spec)
        rows = len(self.combinations.number)
        width = 1 + sum(self.combinations.number.sizes) + len(numbers)
        self.register_buffer("scale", torch.tensor([[0.0], [1.0]]).repeat(1, len(numbers)))
        self.register_buffer("effects", torch.zeros(width, n_modalities))
        self.register_buffer("mean", torch.zeros(rows, n_modalities))  # deviation from a
        self.register_buffer("variance", torch.ones(rows, n_modalities))
        self.register_buffer("root", torch.eye(n_modalities))
        self.register_buffer("span", torch.tensor([[0.0], [1.0]]).repeat(1, n_modalities))

    def fill(
        self,
        log_depth: Float[Tensor, "cells m"],
        codes: Int[Tensor, "cells c"],
        numbers: Float[Tensor, "cells n"],
    ) -> None:
        """Estimate from training cells; NaN where a cell lacks the modality."""
        self.scale.copy_(mean_and_spread(numbers))
        self.combinations.fill(codes)
        combination = self.combinations.number(codes)
        chunks = torch.arange(len(codes)).split(_ROWS)
        penalty = _RIDGE * torch.eye(len(self.effects), dtype=torch.float64)
        penalty[0, 0] = 0.0  # the general level is free
        residuals = torch.full_like(log_depth, torch.nan)
        for j, y in enumerate(log_depth.double().T):
            there = y.isfinite()
            kept, at = y[there], combination[there]
            centre = kept.mean()
            square, product = penalty.clone(), torch.zeros(len(penalty), dtype=torch.float64)
            for rows in (rows[there[rows]] for rows in chunks):
                x = self._design(codes[rows], numbers[rows]).double()
                square += x.T @ x
                product += x.T @ (y[rows] - centre)
            effect = torch.linalg.solve(square, product)
            effect[0] += centre
            expected = [self._design(codes[r], numbers[r]).double() @ effect for r in chunks]
            residual = kept - torch.cat(expected)[there]
            n = torch.zeros(len(self.mean), dtype=torch.float64).index_add_(
                0, at, torch.ones_like(residual)
            )
            first, second = torch.zeros_like(n), torch.zeros_like(n)
            first.index_add_(0, at, residual)
            own = first / n.clamp_min(1)
            deviation = first / (n + SHRINKAGE)
            second.index_add_(0, at, (residual - own[at]).square())
            overall = residual.square().mean().clamp_min(1e-4)
            self.effects[:, j], self.mean[:, j] = effect.float(), deviation.float()
            self.variance[:, j] = ((second + SHRINKAGE * overall) / (n + SHRINKAGE)).float()
            self.span[:, j] = torch.stack([centre, kept.std().clamp_min(1e-3)]).float()
            residuals[there, j] = (residual / overall.sqrt()).float()
        paired = residuals[residuals.isfinite().all(1)]
        if residuals.shape[1] > 1 and len(paired) > 2 * residuals.shape[1]:
            correlation = torch.corrcoef(paired.T).nan_to_num()
            near = 0.99 * correlation + 0.01 * torch.eye(len(correlation))
            self.root.copy_(torch.linalg.cholesky(near))

    def parameters_of(
        self, codes: Int[Tensor, "b c"], numbers: Float[Tensor, "b n"]
    ) -> tuple[Float[Tensor, "b m"], Float[Tensor, "b m"]]:
        """Return mean and standard deviation of log ℓ."""
        at = self.combinations.number(codes)
        mean = self._design(codes, numbers) @ self.effects + self.mean[at]
        return mean, self.variance[at].sqrt()

    def sample(
        self, codes: Int[Tensor, "b c"], numbers: Float[Tensor, "b n"]
    ) -> Float[Tensor, "b m"]:
        """Draw log ℓ."""
        mean, scale = self.parameters_of(codes, numbers)
        return mean + scale * (torch.randn_like(mean) @ self.root.T)

    def standardised(self, log_depth: Float[Tensor, "b m"]) -> Float[Tensor, "b m"]:
        """Return log ℓ as a network reads it, about 0 and with spread 1."""
        return (log_depth - self.span[0]) / self.span[1]

    def _design(
        self, codes: Int[Tensor, "b c"], numbers: Float[Tensor, "b n"]
    ) -> Float[Tensor, "b w"]:
        parts = [torch.ones(len(codes), 1, device=codes.device)]
        for i, size in enumerate(self.combinations.number.sizes):
            parts.append(torch.nn.functional.one_hot(codes[:, i] + 1, size).float())
        return torch.cat([*parts, ((numbers - self.scale[0]) / self.scale[1]).nan_to_num()], 1)
