"""Readers: regressors and classifiers that tell a factor of unseen cells, from half of the genes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import scipy.sparse as sp
import torch
from jaxtyping import Bool, Float, Float32, Float64, Int
from scipy.linalg import eigh
from scipy.spatial.distance import cdist
from scipy.special import softmax
from sklearn.linear_model import LogisticRegression, RidgeCV
from torch import Tensor

from ..compute.rng import Rng
from ..data.batch import SparseRows
from ..nn.sparse import times
from .factors import Factor

#: Parts of the cells, each of which is read by readers that learned from the others.
FOLDS = 5
#: Principal components that a reader sees at the most, and cells that it learns from.
COMPONENTS, LEARNED = 50, 2000
#: Penalties of ridge regression; γ of the kernel, over the mean squared distance of two cells (0: none), and
#: cells that stand for all in it.
_PENALTIES = np.logspace(-4, 5, 19)
_WIDTHS, _LANDMARKS = (0.0, 0.2, 1.0), 100


@dataclass(frozen=True, eq=False)
class _Reader:
    """What is read of a factor: ``finish(z @ weights + bias, z)`` of principal components z.

    Only those with a kernel need z itself, and have no weights.

    References
    ----------
    Williams & Seeger (2001), Using the Nyström method to speed up kernel machines, NeurIPS 13 (a kernel of
    some cells in place of all).
    """

    weights: Float64[np.ndarray, "k w"]
    bias: Float64[np.ndarray, " w"]
    width: int
    finish: Callable[
        [Float64[np.ndarray, "b w"], Float64[np.ndarray, "b k"]], Float64[np.ndarray, "b d"]
    ]

    @classmethod
    def of_numbers(
        cls, z: Float64[np.ndarray, "n k"], y: Float64[np.ndarray, " n"], width: float, seed: int
    ) -> _Reader:
        """Return ridge regression, or that with an RBF kernel of a width above 0."""
        ridge, scale, kernel = _ridge(z, y, width, seed)
        bias = np.atleast_1d(ridge.intercept_)
        if kernel is None:
            return cls(scale * ridge.coef_[:, None], bias, 1, lambda told, _: told)
        weights = kernel.whiten @ ridge.coef_[:, None]
        none = np.zeros((z.shape[1], 0))
        return cls(none, np.zeros(0), 1, lambda _, z: kernel(z) @ weights + bias)

    @classmethod
    def of_classes(cls, z: Float64[np.ndarray, "n k"], y: np.ndarray, n_classes: int) -> _Reader:
        """Return multinomial logistic regression; classes that were not seen have a probability of 0."""
        scale, seen = _scale(z), np.unique(y).astype(int)
        # of many cells few are learned from, and a rare class may be among the others
        if len(seen) == 1:
            alone = np.where(np.arange(n_classes) == seen[0], 0.0, -np.inf)
            return cls(np.zeros((z.shape[1], n_classes)), alone, n_classes, _probabilities)
        found = LogisticRegression(max_iter=1000).fit(z * scale, y)
        weights, bias = np.zeros((z.shape[1], n_classes)), np.full(n_classes, -np.inf)
        bias[seen] = 0
        named = seen if len(seen) > 2 else seen[1:]  # of two classes it has one logit
        weights[:, named], bias[named] = found.coef_.T * scale, found.intercept_
        return cls(weights, bias, n_classes, _probabilities)


def _probabilities(
    logits: Float64[np.ndarray, "b k"], _: Float64[np.ndarray, "b z"]
) -> Float64[np.ndarray, "b k"]:
    return softmax(logits, axis=1)


def _scale(z: Float64[np.ndarray, "n k"]) -> float:
    """Return what makes the mean variance 1, so that penalties mean the same whatever the units."""
    variance = float(z.var(0).mean())
    return variance**-0.5 if variance > 0 else 1.0


@dataclass(frozen=True, eq=False)
class _Kernel:
    """An RBF kernel of some cells that stand for all; ``kernel(z) @ whiten`` has its inner products."""

    gamma: float
    landmarks: Float64[np.ndarray, "l k"]
    whiten: Float64[np.ndarray, "l m"]

    @classmethod
    def of(cls, z: Float64[np.ndarray, "n k"], width: float, seed: int) -> _Kernel:
        landmarks = np.random.default_rng(seed).permutation(z)[:_LANDMARKS]
        gamma = width / (2 * z.var(0).sum())
        values, vectors = np.linalg.eigh(
            np.exp(-gamma * cdist(landmarks, landmarks, "sqeuclidean"))
        )
        kept = values > 1e-10 * values[-1]
        return cls(gamma, landmarks, vectors[:, kept] / np.sqrt(values[kept]))

    def __call__(self, z: Float64[np.ndarray, "b k"]) -> Float64[np.ndarray, "b l"]:
        found: np.ndarray = np.exp(-self.gamma * cdist(z, self.landmarks, "sqeuclidean"))
        return found


def _ridge(
    z: Float64[np.ndarray, "n k"], y: Float64[np.ndarray, " n"], width: float, seed: int
) -> tuple[RidgeCV, float, _Kernel | None]:
    """Return ridge regression on scaled components, or on those of a kernel if it has a width.

    The penalty is the one with the least error on cells that are left out one by one.
    """
    if not width:
        return RidgeCV(_PENALTIES).fit(z * _scale(z), y), _scale(z), None
    kernel = _Kernel.of(z, width, seed)
    return RidgeCV(_PENALTIES).fit(kernel(z) @ kernel.whiten, y), 1.0, kernel


def best_width(z: Float64[np.ndarray, "n k"], y: Float64[np.ndarray, " n"], seed: int) -> float:
    """Return the width of the kernel that is nearest to cells left out one by one; 0: a linear reader is.

    Examples
    --------
    >>> z = np.random.default_rng(0).standard_normal((200, 2))
    >>> best_width(z, z[:, 0], 0), best_width(z, z[:, 0] ** 2, 0) > 0
    (0.0, True)
    """
    return max(_WIDTHS, key=lambda width: _ridge(z, y, width, seed)[0].best_score_)


class _Half(NamedTuple):
    """Readers of all factors from half of the genes, and how many components they share, or 0."""

    shared: int
    readers: Sequence[_Reader]

    @property
    def width(self) -> int:
        """Numbers that they take."""
        return self.shared + sum(len(reader.bias) for reader in self.readers)

    def read(self, taken: Float64[np.ndarray, "b w"]) -> Float64[np.ndarray, "b widths"]:
        """Return the readings of all factors, side by side."""
        ends = np.cumsum([self.shared, *(len(reader.bias) for reader in self.readers)])
        z, *own = np.split(taken, ends[:-1], axis=1)
        return np.hstack([r.finish(of, z) for r, of in zip(self.readers, own, strict=True)])


@dataclass(frozen=True, eq=False)
class Readers:
    """Readers of all factors, from both halves of several halvings of the genes, that saw the same cells.

    All begin by one product of log-expression with a table of genes x numbers, so that sparse cells stay so.

    Attributes
    ----------
    table, offset
        Log-expression @ table + offset is what the readers take, one after the other.
    halves
        By halving.
    """

    table: Float32[Tensor, "g w"]
    offset: Float64[np.ndarray, " w"]
    halves: Sequence[tuple[_Half, _Half]]

    @classmethod
    def learn(
        cls,
        x: sp.csr_matrix,
        factors: Sequence[Factor],
        halves: Bool[np.ndarray, "h g"],
        cells: Int[np.ndarray, " l"],
        rng: Rng,
    ) -> Readers:
        """Learn from some cells.

        Parameters
        ----------
        x
            Log-expression of all cells.
        halves
            Genes of the first half, for each halving.
        cells
            Positions of the cells to learn from; of more than `LEARNED`, so many are drawn.
        """
        cells = np.sort(rng.numpy("learned").permutation(cells)[:LEARNED])
        tables, offsets, found, widths = [], [], list[_Half](), list[float]()
        seed = int(rng.numpy("landmarks").integers(2**31))
        for genes in (genes for half in halves for genes in (half, ~half)):
            at = np.flatnonzero(genes)
            k = min(COMPONENTS, len(cells) - 1, len(at))
            axes, centre, z = components(x[cells][:, at], k)
            # one choice for all halves: it is the factor that is linear in the components or not
            widths = widths or [_width_of(z, factor, cells, seed) for factor in factors]
            row = [
                _learned(z, factor, cells, width, seed)
                for factor, width in zip(factors, widths, strict=True)
            ]
            shared = z.shape[1] if any(widths) else 0
            weights = np.hstack([np.eye(z.shape[1], shared), *(reader.weights for reader in row)])
            tables.append(_placed(axes @ weights, at, len(genes)))
            bias = np.concatenate([np.zeros(shared), *(reader.bias for reader in row)])
            offsets.append(bias - centre @ weights)
            found.append(_Half(shared, row))
        table = torch.from_numpy(np.hstack(tables))
        return cls(table, np.concatenate(offsets), [*zip(found[::2], found[1::2], strict=True)])

    @property
    def shape(self) -> tuple[int, int, int]:
        """Halvings, halves, and numbers of one reading of all factors."""
        return len(self.halves), 2, sum(reader.width for reader in self.halves[0][0].readers)

    def read(
        self, x: SparseRows | Float[Tensor, "b g"]
    ) -> Float64[np.ndarray, "b halvings two widths"]:
        """Return the readings of cells by both halves of each halving, those of the factors side by side."""
        taken = times(x, self.table).double().numpy() + self.offset
        ends = np.cumsum([half.width for pair in self.halves for half in pair])
        parts = iter(np.split(taken, ends[:-1], axis=1))
        return np.stack(
            [np.stack([half.read(next(parts)) for half in pair], 1) for pair in self.halves], 1
        )


def _placed(
    values: Float64[np.ndarray, "half w"], at: Int[np.ndarray, " half"], n: int
) -> Float32[np.ndarray, "g w"]:
    """Return a table of all genes, 0 for those of the other half."""
    table = np.zeros((n, values.shape[1]), np.float32)
    table[at] = values
    return table


def components(
    x: sp.csr_matrix, k: int
) -> tuple[Float64[np.ndarray, "g k"], Float64[np.ndarray, " k"], Float64[np.ndarray, "n k"]]:
    """Return the leading principal axes, the components of the mean, and those of the centred cells.

    By the covariance of genes or the inner products of cells, whichever are fewer; no cell is made dense.

    Examples
    --------
    >>> x = sp.csr_matrix(np.random.default_rng(0).random((30, 8)))
    >>> axes, centre, z = components(x, 2)
    >>> np.allclose(x @ axes - centre, z), np.allclose(axes.T @ axes, np.eye(2))
    (True, True)
    """
    x = x.astype(np.float64)
    n, g = x.shape
    mean = np.asarray(x.mean(axis=0)).ravel()
    if g <= n:
        covariance = (x.T @ x).toarray() / n - np.outer(mean, mean)
        axes = eigh(covariance, subset_by_index=[g - k, g - 1])[1]
    else:
        inner = (x @ x.T).toarray()
        inner -= inner.mean(0)
        inner -= inner.mean(1, keepdims=True)
        values, vectors = eigh(inner, subset_by_index=[n - k, n - 1])
        kept = values > 1e-10 * values[-1]
        # vectors of products of centred cells sum to 0, so that cells need no centring here
        axes = x.T @ (vectors[:, kept] / np.sqrt(values[kept]))
    return axes, mean @ axes, x @ axes - mean @ axes


def _width_of(
    z: Float64[np.ndarray, "l k"], factor: Factor, cells: Int[np.ndarray, " l"], seed: int
) -> float:
    known = factor.known[cells]
    return 0.0 if factor.classes else best_width(z[known], factor.values[cells[known]], seed)


def _learned(
    z: Float64[np.ndarray, "l k"],
    factor: Factor,
    cells: Int[np.ndarray, " l"],
    width: float,
    seed: int,
) -> _Reader:
    known = factor.known[cells]
    z, y = z[known], factor.values[cells[known]]
    if factor.classes:
        return _Reader.of_classes(z, y, len(factor.classes))
    return _Reader.of_numbers(z, y, width, seed)


def as_rows(x: sp.csr_matrix) -> SparseRows:
    """Return sparse rows as tensors."""
    indptr, columns = (torch.from_numpy(a.astype(np.int64)) for a in (x.indptr, x.indices))
    return SparseRows(indptr, columns, torch.from_numpy(x.data), x.shape[1])


def as_csr(x: SparseRows | Float[Tensor, "b g"]) -> sp.csr_matrix:
    """Return the rows of a minibatch as SciPy has them."""
    if isinstance(x, Tensor):
        return sp.csr_matrix(x.numpy())
    parts = (x.values.numpy(), x.columns.numpy(), x.indptr.numpy())
    return sp.csr_matrix(parts, (len(x), x.n_features))


def folds(groups: Int[np.ndarray, " n"], generator: np.random.Generator) -> Int[np.ndarray, " n"]:
    """Return the fold of each cell, at random; cells of a group share theirs."""
    names, of = np.unique(groups, return_inverse=True)
    return generator.permutation(np.arange(len(names)) % FOLDS)[of]


def halvings(n: int, n_genes: int, generator: np.random.Generator) -> Bool[np.ndarray, "n g"]:
    """Return which genes are in the first half, for each of n halvings at random."""
    order = np.argsort(generator.random((n, n_genes)), axis=1)
    return order < n_genes // 2
