"""Non-negative matrix factorisation: log-expression as a sum of gene programmes."""

from __future__ import annotations

import warnings
from typing import ClassVar, Literal

import numpy as np
import scipy.sparse as sp
import torch
from jaxtyping import Float
from scipy.optimize import nnls
from sklearn import decomposition
from sklearn.exceptions import ConvergenceWarning
from torch import Tensor

from ..compute.rng import Rng
from ..config import config, param
from ..data.batch import CellBatch
from ..errors import DataError
from ..learn.exact import Batches, Exact
from ..learn.phase import Phase
from ..model import Model
from ..module import Module
from ..schema import Spec


class NMFModule(Module):
    """The components, one non-negative row of features per factor."""

    components: Tensor

    def __init__(self, options: NMF, n_features: int) -> None:
        super().__init__()
        self.options = options
        self.register_buffer("components", torch.zeros(options.n_factors, n_features))

    def solve(self, batches: Batches, rng: Rng) -> bool:
        """Run scikit-learn's coordinate descent on a sparse copy; return whether it converged."""
        x = sp.vstack([_sparse(batch) for batch in batches()], format="csr")
        if self.options.n_factors > min(x.shape):
            raise DataError(
                f"NMF(n_factors={self.options.n_factors}) needs as many cells and features; got "
                f"{x.shape[0]} x {x.shape[1]}."
            )
        solver = decomposition.NMF(
            self.options.n_factors,
            tol=self.options.tol,
            max_iter=self.options.max_epochs,
            random_state=int(rng.numpy("nmf").integers(2**31)),
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # what is returned shows it
            solver.fit(x)
        self.components.copy_(torch.from_numpy(solver.components_))
        return solver.n_iter_ < self.options.max_epochs

    def embed(self, batch: CellBatch) -> Float[Tensor, "b k"]:
        """Return the non-negative activities that best explain the features that each cell has.

        The solution is exact and cell by cell (Lawson & Hanson 1974), so a cell does not depend on
        the other cells of its batch. With components = (Q R)ᵀ, ‖x − components ᵀ h‖² is
        ‖Qᵀ x − R h‖² plus a constant.
        """
        components = self.components.double()
        for known in batch.observed.values():
            components = components * known
        q, r = torch.linalg.qr(components.T)
        targets, triangle = (batch.log_expression().double() @ q).cpu().numpy(), r.cpu().numpy()
        found = np.stack([nnls(triangle, t)[0] for t in targets])
        return torch.from_numpy(found).float().to(self.components.device)

    def reconstruct(self, batch: CellBatch, to: CellBatch) -> Float[Tensor, "b g"]:  # noqa: ARG002 (no conditions)
        """Return the sum of the programmes, each times its activity in the cell."""
        return self.embed(batch) @ self.components

    def loadings(self) -> Float[Tensor, "g k"]:
        """Return what one unit of each factor adds to each feature."""
        return self.components.T

    def feature_weight(self) -> dict[str, Float[Tensor, " g"]]:
        """Return the squared norm of each feature's loadings."""
        weight = self.components.square().sum(0)
        return {"counts": weight, "expression": weight}


def _sparse(batch: CellBatch) -> sp.csr_matrix:
    x = batch.log_expression()
    if bool((x < 0).any()):
        raise DataError(
            f"NMF needs non-negative values; expression goes down to {float(x.min()):.3g}, as after "
            "centring or scaling. Name the place of log-normalised values, or of counts."
        )
    return sp.csr_matrix(x.cpu().numpy())


@config
class NMF(Model):
    """Non-negative matrix factorisation: log-expression as a sum of gene programmes.

    For cell n and gene g, with all h and w non-negative::

        x_ng ≈ Σ_k h_nk w_kg     log1p counts per 10,000 of the features read, or `expression`

    H and W minimise ‖X − H W‖², by scikit-learn's coordinate descent. A new cell gets the h that is best
    given W, found exactly.

    References
    ----------
    Lee & Seung (1999), Nature 401:788; coordinate descent: Cichocki & Phan (2009), IEICE Transactions
    E92-A:708.
    """

    needs: ClassVar[tuple[str, ...]] = ("expression|counts",)
    scale: ClassVar[Literal["counts", "log1p CP10k"]] = "log1p CP10k"

    n_factors: int = param(10, "Number of factors (gene programmes).", low=1)
    tol: float = param(
        1e-4,
        "Convergence threshold: the solver stops when the gradient is at most this share of its size in "
        "the first sweep.",
        low=0,
    )
    max_epochs: int = param(1000, "Largest number of sweeps over all factors.", low=1)

    def build(self, spec: Spec) -> NMFModule:
        """Return the untrained tensors."""
        role = spec.either("expression", "counts")
        return NMFModule(self, spec.n_features(role))

    def phases(self) -> list[Phase]:
        """Return the one phase of a fit: a call of the solver."""
        return [Phase(Exact(), name="NMF", lasts="max_epochs")]
