"""Sequencing depth as a random variable, with parameters by attributes."""

from __future__ import annotations

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor, nn

from ...nn.attributes import Combinations, attribute_names
from ...schema import Spec

#: Cells that the expectation from single attributes weighs against those of a combination itself.
SHRINKAGE = 10.0
_RIDGE = 1.0
#: Cells that a normal shape weighs against the shape of a combination's own depths.
NORMAL = 30.0
#: Probabilities at which shapes are compared, and what a standard normal has there.
_SHARES = (torch.arange(33) + 0.5) / 33
_KNOTS = torch.special.ndtri(_SHARES.double()).float()
#: Cells whose designs are in memory at once.
_ROWS = 2**14


class Depth(nn.Module):
    """log ℓ of each modality given the attributes: a normal per combination, shrunk where cells are few.

    The mean of a combination of n cells is (n m + κ a) / (n + κ): m is their own mean, a is the sum of
    effects of the single attributes (a ridge regression) and κ = `SHRINKAGE`; likewise the variance,
    towards that of the regression's residuals. A combination that was never seen has its a. Depths of
    the modalities of a cell correlate as their residuals do.

    With `observed`, two things keep generated totals from those of cells, and are mended. Depths are not
    quite log-normal: draws r of a standard normal become r + δ(r), δ being the difference of quantiles
    of the combination's own cells, times n / (n + κ') with κ' = `NORMAL`. And counts drawn around ℓ add
    noise to their total: the variance of its logarithm is taken from that of log ℓ, and half of it added
    to the mean.
    """

    effects: Tensor
    mean: Tensor
    variance: Tensor
    root: Tensor
    span: Tensor
    bend: Tensor

    def __init__(self, spec: Spec, n_modalities: int, *, observed: bool = True) -> None:
        super().__init__()
        self.observed = observed
        numbers = attribute_names(spec)[1]
        self.combinations = Combinations(spec)
        rows = len(self.combinations.number)
        width = 1 + sum(self.combinations.number.sizes) + len(numbers)
        self.register_buffer("effects", torch.zeros(width, n_modalities))
        self.register_buffer("mean", torch.zeros(rows, n_modalities))  # deviation from a
        self.register_buffer("variance", torch.ones(rows, n_modalities))
        self.register_buffer("bend", torch.zeros(rows, len(_KNOTS), n_modalities))
        self.register_buffer("root", torch.eye(n_modalities))
        self.register_buffer("span", torch.tensor([[0.0], [1.0]]).repeat(1, n_modalities))

    def fill(
        self,
        log_depth: Float[Tensor, "cells m"],
        codes: Int[Tensor, "cells c"],
        numbers: Float[Tensor, "cells n"],
        noise: Float[Tensor, "cells m"] | None = None,
    ) -> None:
        """Estimate from training cells; NaN where a cell lacks the modality.

        `noise`: variance that counting adds to the logarithm of each total (default: none).
        """
        self.combinations.fill(codes)
        combination = self.combinations.number(codes)
        chunks = torch.arange(len(codes)).split(_ROWS)
        penalty = _RIDGE * torch.eye(len(self.effects), dtype=torch.float64)
        penalty[0, 0] = 0.0  # the general level is free
        residuals = torch.full_like(log_depth, torch.nan)
        for j, y in enumerate(log_depth.double().T):
            known = y.isfinite()
            kept, at = y[known], combination[known]
            centre = kept.mean()
            square, product = penalty.clone(), torch.zeros(len(penalty), dtype=torch.float64)
            for rows in (rows[known[rows]] for rows in chunks):
                x = self._design(codes[rows], numbers[rows]).double()
                square += x.T @ x
                product += x.T @ (y[rows] - centre)
            effect = torch.linalg.solve(square, product)
            effect[0] += centre
            expected = [self._design(codes[r], numbers[r]).double() @ effect for r in chunks]
            residual = kept - torch.cat(expected)[known]
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
            residuals[known, j] = (residual / overall.sqrt()).float()
            if self.observed:
                self._fit_shape(j, at, residual - deviation[at])
                self._subtract_noise(j, at, None if noise is None else noise[known, j].double())
        paired = residuals[residuals.isfinite().all(1)]
        if residuals.shape[1] > 1 and len(paired) > 2 * residuals.shape[1]:
            correlation = torch.corrcoef(paired.T).nan_to_num()
            near = 0.99 * correlation + 0.01 * torch.eye(len(correlation))
            self.root.copy_(torch.linalg.cholesky(near))

    def _fit_shape(self, j: int, at: Int[Tensor, " k"], residual: Float64[Tensor, " k"]) -> None:
        """Take the shape of each combination's depths."""
        order = at.argsort(stable=True)
        numbers, sizes = at[order].unique_consecutive(return_counts=True)
        for row, group in zip(numbers.tolist(), residual[order].split(sizes.tolist()), strict=True):
            found = group.quantile(_SHARES.double()).float() / self.variance[row, j].sqrt()
            self.bend[row, :, j] = len(group) / (len(group) + NORMAL) * (found - _KNOTS)

    def _subtract_noise(
        self, j: int, at: Int[Tensor, " k"], noise: Float64[Tensor, " k"] | None
    ) -> None:
        """Take the noise of counting from the variance of log ℓ."""
        if noise is None:
            return
        total, n = torch.zeros(2, len(self.mean), dtype=torch.float64)
        total.index_add_(0, at, noise)
        n.index_add_(0, at, torch.ones_like(noise))
        mean = ((total + SHRINKAGE * noise.mean()) / (n + SHRINKAGE)).float()
        variance = self.variance[:, j]
        mean = mean.minimum(0.9 * variance)  # however noisy the decoder, depths differ
        self.variance[:, j] = variance - mean
        self.mean[:, j] += mean / 2

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
        drawn, at = torch.randn_like(mean) @ self.root.T, self.combinations.number(codes)[:, None]
        knots, column = _KNOTS.to(mean.device), torch.arange(mean.shape[1], device=mean.device)
        above = torch.searchsorted(knots, drawn).clamp(1, len(knots) - 1)
        low, high = knots[above - 1], knots[above]
        share = ((drawn - low) / (high - low)).clamp(0, 1)  # as at the ends beyond them
        bend = torch.lerp(self.bend[at, above - 1, column], self.bend[at, above, column], share)
        return mean + scale * (drawn + bend)

    def standardised(self, log_depth: Float[Tensor, "b m"]) -> Float[Tensor, "b m"]:
        """Return log ℓ as a network reads it, about 0 and with spread 1."""
        return (log_depth - self.span[0]) / self.span[1]

    def _design(
        self, codes: Int[Tensor, "b c"], numbers: Float[Tensor, "b n"]
    ) -> Float[Tensor, "b w"]:
        parts = [torch.ones(len(codes), 1, device=codes.device)]
        for i, size in enumerate(self.combinations.number.sizes):
            parts.append(torch.nn.functional.one_hot(codes[:, i] + 1, size).float())
        return torch.cat([*parts, numbers.nan_to_num()], 1)
