"""The linear-Gaussian latent-variable model of probabilistic PCA and factor analysis.

For cell n and feature g::

    z_n ~ N(0, I)
    x_ng ~ N(w_g · z_n + μ_g, ψ_g)      ψ_g = σ² for all g in probabilistic PCA

Entries that were not measured are integrated out, which is exact: a cell's posterior and density
are those of its observed entries. All is float64, for the likelihood is compared between epochs.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from ...compute.rng import Rng
from ...data.batch import CellBatch, SparseRows
from ...data.source import Source
from ...distributions import Normal
from ...errors import DataError, counted
from ...learn.exact import Batches, principal
from ...module import Module
from ...nn.sparse import centred_squares, centred_times, centred_transposed_times, powers, times

#: Least noise variance, as a share of the mean variance of the features: a constant feature would
#: otherwise have an infinite density.
FLOOR = 1e-6
#: Steps of EM on the covariance before those on the cells; one costs features squared.
COVARIANCE_STEPS = 50
#: μ² / ψ above which a cell's Σ (x − μ)² / ψ would lose, by subtraction, digits that `EM.slack` counts. Such
#: a feature is stored in nearly every cell, so that the dense block is seldom much larger.
FAR = 1e6


@dataclass(frozen=True, eq=False)
class Posterior:
    """What the observed entries of some cells say.

    Attributes
    ----------
    mean, covariance
        Of p(z | observed entries); one covariance if all cells have the same entries.
    log_evidence
        Log-density of the observed entries, in nats.
    """

    mean: Float[Tensor, "b z"]
    covariance: Float[Tensor, "#b z z"]
    log_evidence: Float[Tensor, " b"]


def infer(
    x: SparseRows | Float[Tensor, "b g"],
    mean: Float[Tensor, " g"],
    observed: Float[Tensor, "#b #g"],
    weight: Float[Tensor, "g z"],
    noise: Float[Tensor, " g"],
) -> Posterior:
    """Return the posterior of z, and the evidence, for x − μ = W z + noise.

    Matrices of features x features never appear: with R the observed entries, M = I + W_Rᵀ Ψ_R⁻¹ W_R,
    the posterior is N(M⁻¹ W_Rᵀ Ψ_R⁻¹ (x − μ)_R, M⁻¹), and Woodbury's identity and the determinant
    lemma give the density of x_R.

    Parameters
    ----------
    x, mean
        x − μ is 0 where not observed; sparse x stays so.
    observed
        1 (observed) or 0. One row for all cells where they share a pattern, one entry if all is
        observed: M is then computed once.
    weight, noise
        W and the variances on the diagonal of Ψ.

    References
    ----------
    Rubin & Thayer (1982), Psychometrika 47:69; Tipping & Bishop (1999), JRSS B 61:611, §3.

    Examples
    --------
    >>> one = torch.ones(1, 1)
    >>> infer(2 * one, torch.zeros(1), one, weight=one, noise=torch.ones(1)).mean.round(decimals=4)
    tensor([[1.]])
    """
    k = weight.shape[1]
    precision = 1 / noise
    if len(observed) == 1:
        products = (weight.T @ (weight * (observed * precision).T))[None]
    else:
        products = (weight[:, :, None] * weight[:, None, :]).flatten(1)
        products = ((observed * precision) @ products).unflatten(1, (k, k))
    inner = torch.eye(k).to(weight) + products
    root = torch.linalg.cholesky(inner)
    covariance = torch.cholesky_inverse(root)
    projected = centred_times(x, mean, weight * precision[:, None])
    z = torch.einsum("bij,bj->bi", covariance, projected)
    log_det = 2 * root.diagonal(dim1=1, dim2=2).log().sum(1)
    log_det = log_det + (observed * (2 * math.pi * noise).log()).sum(1)
    # Σ (x − μ)² / ψ without the block of x − μ
    squares = times(powers(x, 2), precision[:, None]) - 2 * times(x, (mean * precision)[:, None])
    squares = squares[:, 0] + mean.square() @ precision - (projected * z).sum(1)
    return Posterior(z, covariance, -0.5 * (log_det + squares))


def lacking(batch: CellBatch) -> bool:
    """Return whether some entry was not measured."""
    x = batch.stored_expression()
    values = x.values if isinstance(x, SparseRows) else x
    return bool(batch.observed) or bool(values.isnan().any())


class LinearGaussian(Module):
    """Mean μ, weights W and noise variances ψ, learned by EM from a start in closed form.

    Parameters
    ----------
    shared_noise
        One noise variance for all features (probabilistic PCA), or one for each (factor analysis).
    """

    mean: Tensor
    weight: Tensor
    noise: Tensor
    floor: Tensor

    def __init__(self, n_features: int, n_latent: int, *, shared_noise: bool) -> None:
        super().__init__()
        self.shared_noise = shared_noise
        shapes = {"mean": (n_features,), "weight": (n_features, n_latent), "noise": (n_features,)}
        for name, shape in {**shapes, "floor": ()}.items():  # NaN: not learned yet
            self.register_buffer(name, torch.full(shape, torch.nan, dtype=torch.float64))

    # learning

    def prepare(self, source: Source, rows: np.ndarray, rng: Rng) -> None:
        """Fit the covariance of the cells, unless there are parameters already.

        For shared noise in closed form; otherwise by steps of EM from there. Entries that are not
        measured stand at their feature's mean: this is the solution if there are none, and a start
        if there are some.

        Raises
        ------
        DataError
            If there are too few cells or features, or a feature is not measured in any cell.

        References
        ----------
        Tipping & Bishop (1999), JRSS B 61:611, Eq. 7 and 8.
        """
        batches = _filled(lambda: source.batches(rows, str(self.mean.device)))
        if not bool(self.noise.isnan().any()):
            return
        g, k = self.weight.shape
        if k >= min(len(rows) - 1, g):
            raise DataError(
                f"A fit with {counted(k, 'latent dimension')} needs {counted(k + 2, 'cell')} and "
                f"{counted(k + 1, 'feature')}; got "
                f"{len(rows)} x {g}."
            )
        mean, variance, values, axes, covariance, _ = principal(batches, k, rng)
        self.floor.copy_(FLOOR * variance.mean())
        sigma2 = ((variance.sum() - values.sum()) / (g - k)).clamp_min(self.floor)
        weight = axes * (values - sigma2).clamp_min(0).sqrt()
        self._set(mean, weight, variance - weight.square().sum(1), torch.ones_like(mean))
        if covariance is None or self.shared_noise:
            return  # many features: their steps are those on the cells
        for _ in range(COVARIANCE_STEPS):
            self.update(self._collect_covariance(covariance))

    def _collect_covariance(self, covariance: Float[Tensor, "g g"]) -> dict[str, Tensor]:
        """Return what `collect` sums, per cell, over complete cells about μ with covariance S."""
        complete = torch.ones(1, 1).to(covariance)
        # the posterior mean is linear, B x: with rows of S in the place of cells it is S Bᵀ
        centre = torch.zeros_like(self.mean)
        rows = infer(covariance, centre, complete, self.weight, self.noise)
        explained = infer(rows.mean.T, centre, complete, self.weight, self.noise).mean  # B S Bᵀ
        products = torch.block_diag(rows.covariance[0] + explained, complete)
        return {
            "products": products[None],
            "cross": F.pad(rows.mean, (0, 1)),
            "squares": covariance.diagonal(),
            "latent": products,
        }

    def collect(self, batch: CellBatch) -> dict[str, Tensor]:
        """Return the sums that the regressions of x − μ on (z, 1) need, and the log-likelihood."""
        x, mean, observed = self._entries(batch)
        q = infer(x, mean, observed, self.weight, self.noise)
        z1 = F.pad(q.mean, (0, 1), value=1.0)
        products = z1[:, :, None] * z1[:, None, :]
        products[:, :-1, :-1] += q.covariance
        latent = products.sum(0, keepdim=True)
        if len(observed) == 1:  # one pattern: the sum over cells is the same for every feature
            products = latent
        return {
            "products": (observed.T @ products.flatten(1)).unflatten(1, latent.shape[1:]),
            "cross": centred_transposed_times(x, mean, z1),
            "squares": centred_squares(x, mean),
            "latent": latent[0],
            "log_likelihood": q.log_evidence.sum(),
        }

    def update(self, statistics: Mapping[str, Tensor]) -> None:
        """Regress each feature on (z, 1) over the cells that measure it, then make z standard again.

        Letting z have any mean and covariance, and moving these into μ and W, leaves the likelihood
        as monotone as EM does and takes tens of epochs where EM may take thousands.

        References
        ----------
        Rubin & Thayer (1982), Psychometrika 47:69; missing entries: Ilin & Raiko (2010), JMLR
        11:1957; free z: Liu, Rubin & Wu (1998), Biometrika 85:755.
        """
        products, cross = statistics["products"], statistics["cross"]
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(products))
        slope = torch.einsum("gij,gj->gi", inverse, cross)
        n_cells = products[:, -1, -1].expand(len(slope))
        noise = (statistics["squares"] - (slope * cross).sum(1)) / n_cells
        weight, shift = slope[:, :-1], slope[:, -1]

        latent = statistics["latent"] / statistics["latent"][-1, -1]
        centre = latent[-1, :-1]
        spread = torch.linalg.cholesky(latent[:-1, :-1] - torch.outer(centre, centre))
        self._set(self.mean + shift + weight @ centre, weight @ spread, noise, n_cells)

    def _set(
        self,
        mean: Float[Tensor, " g"],
        weight: Float[Tensor, "g z"],
        noise: Float[Tensor, " g"],
        n_cells: Float[Tensor, " g"],
    ) -> None:
        """Store the parameters, W turned so that Wᵀ Ψ⁻¹ W is diagonal and falling.

        Turning z changes no likelihood; so turned, the latent dimensions of a complete cell are
        independent given the cell, and those of probabilistic PCA are the principal axes.
        """
        if self.shared_noise:
            noise = ((noise * n_cells).sum() / n_cells.sum()).expand_as(noise)
        self.mean.copy_(mean)
        self.noise.copy_(noise.clamp_min(self.floor))
        turn = torch.linalg.svd(weight / self.noise.sqrt()[:, None], full_matrices=False).Vh.T
        weight = weight @ turn
        largest = weight.gather(0, weight.abs().argmax(0, keepdim=True))
        self.weight.copy_(weight * largest.sign())

    def _entries(
        self, batch: CellBatch
    ) -> tuple[SparseRows | Float[Tensor, "b g"], Float[Tensor, " g"], Float[Tensor, "#b #g"]]:
        """Return x and μ, whose difference is 0 where not observed, and the mask that `infer` takes."""
        stored = batch.stored_expression()
        far = self.mean.square() > FAR * self.noise
        if isinstance(stored, SparseRows) and not lacking(batch) and not bool(far.any()):
            return stored, self.mean, self.mean.new_ones(1, 1)
        x, observed = batch.measured_expression()
        return (x - self.mean).mul_(observed), torch.zeros_like(self.mean), observed.double()

    # what a fitted model can do

    def _infer(self, batch: CellBatch) -> Posterior:
        """Return the posterior of each cell, and the log-density of its observed entries."""
        return infer(*self._entries(batch), self.weight, self.noise)

    def embed(self, batch: CellBatch) -> Float[Tensor, "b z"]:
        """Return the posterior mean."""
        return self._infer(batch).mean

    def posterior(self, batch: CellBatch, n_samples: int) -> Float[Tensor, "s b z"]:
        """Return posterior draws."""
        q = self._infer(batch)
        root = torch.linalg.cholesky(q.covariance)
        return q.mean + torch.einsum(
            "bij,sbj->sbi", root, torch.randn(n_samples, *q.mean.shape).to(root)
        )

    def reconstruct(self, batch: CellBatch, to: CellBatch) -> Float[Tensor, "b g"]:  # noqa: ARG002 (no conditions)
        """Return expected log-expression given the observed entries."""
        return self._decode(self.embed(batch)).mean

    def predict(self, batch: CellBatch, to: CellBatch) -> Float[Tensor, "b g"]:  # noqa: ARG002 (no conditions)
        """Return log-expression of a second measurement of each cell (posterior predictive)."""
        return self._decode(self.posterior(batch, 1)[0]).sample()

    def generate(self, batch: CellBatch) -> Float[Tensor, "b g"]:
        """Return log-expression of cells drawn from the prior."""
        return self._decode(torch.randn(len(batch), self.weight.shape[1]).to(self.weight)).sample()

    def score(
        self,
        batch: CellBatch,
        n_samples: int,  # noqa: ARG002 (exact)
        importance: bool,  # noqa: ARG002, FBT001 (the contract)
    ) -> Float[Tensor, " b"]:
        """Return the exact log-density of the observed entries: every bound is tight here."""
        return self._infer(batch).log_evidence

    def loadings(self) -> Float[Tensor, "g z"]:
        """Return W: change of log-expression per unit of z."""
        return self.weight

    def feature_weight(self) -> dict[str, Float[Tensor, " g"]]:
        """Return what each feature adds to the precision of z, the trace of w wᵀ / ψ."""
        weight = self.weight.square().sum(1) / self.noise
        return {"counts": weight, "expression": weight}

    def _decode(self, z: Float[Tensor, "b z"]) -> Normal:
        return Normal(z @ self.weight.T + self.mean, self.noise.sqrt())


def _filled(batches: Batches) -> Batches:
    """Return the same batches with the feature's mean where an entry is not measured."""
    if not any(lacking(batch) for batch in batches()):
        return batches
    total, n_cells = torch.zeros((), dtype=torch.float64), torch.zeros(())
    for batch in batches():
        x, observed = batch.measured_expression()
        total, n_cells = (
            total + x.sum(0, dtype=torch.float64),
            n_cells + observed.expand_as(x).sum(0),
        )
    if bool((n_cells == 0).any()):
        raise DataError(
            f"No cell was measured for {counted(int((n_cells == 0).sum()), 'feature')} (the first is number "
            f"{int(n_cells.argmin())}). Nothing can be learned there: remove such features."
        )
    mean = (total / n_cells).float()

    def filled() -> Iterator[CellBatch]:
        for batch in batches():
            x, observed = batch.measured_expression()
            yield replace(batch, views={"expression": x + mean * (1 - observed)})

    return filled
