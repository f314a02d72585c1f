"""Penalties that make velocities depend on little, and the proximal steps of those that have one."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from ..nn.vectorfield import VectorField


def l1(field: VectorField) -> Float[Tensor, ""]:
    """Return the mean absolute weight (Tibshirani 1996)."""
    weights = field.effective()
    return torch.stack([w.abs().sum() for w in weights]).sum() / sum(w.numel() for w in weights)


def path_norm(field: VectorField) -> Float[Tensor, ""]:
    """Return mean_ij (|W¹| |W²| … |Wᴸ|)_ij, what C-NODE makes small (Aliee et al. 2021, equation 6)."""
    return field.paths([w.abs() for w in field.effective()]).mean()


def open_gates(field: VectorField) -> Float[Tensor, ""]:
    """Return the expected share of weights whose gate is open (Louizos et al. 2018, equation 12)."""
    opened = field.opened()[: len(field.gates)]
    return torch.stack([p.sum() for p in opened]).sum() / sum(p.numel() for p in opened)


def open_paths(field: VectorField, masks: list[Tensor] | None = None) -> Float[Tensor, ""]:
    """Return mean_ij (Z¹ Z² … Zᴸ)_ij per path: of the probabilities that gates are open, or of `masks`."""
    gates = (
        field.opened()
        if masks is None
        else [m.expand_as(w) for m, w in zip(masks, field.weights, strict=True)]
    )
    return field.paths(gates).mean() / field.paths([torch.ones_like(g) for g in gates]).mean()


def groups(field: VectorField, adaptive: Float[Tensor, "k n"]) -> Float[Tensor, ""]:
    """Return Σ_ij a_ij ‖W¹_j[i, :]‖₂ over the edges i → j (Bellot, Branson and van der Schaar 2022)."""
    return (adaptive * field.weights[0].norm(dim=2)).mean()


@torch.no_grad()
def shrink_groups(field: VectorField, step: Float[Tensor, "k n"]) -> None:
    """Take the proximal step of `groups`: every edge's weights become shorter by `step`, or 0."""
    w = field.weights[0]
    length = w.norm(dim=2, keepdim=True)
    w.mul_((1 - step[..., None] / length.clamp(min=1e-12)).clamp(min=0))


@torch.no_grad()
def hierarchical(
    skip: Float[Tensor, "k n"], w: Float[Tensor, "k n h"], step: float, ratio: float
) -> tuple[Float[Tensor, "k n"], Float[Tensor, "k n h"]]:
    """Take LassoNet's proximal step: skip weights shrink by `step`, an edge's |w| are ≤ ratio |skip|.

    References
    ----------
    Lemhadri, Ruan, Abraham and Tibshirani (2021), LassoNet, algorithm 2.
    """
    size = w.abs().sort(dim=2, descending=True).values
    m = torch.arange(w.shape[2] + 1, device=w.device)
    total = torch.cat([torch.zeros_like(size[..., :1]), size.cumsum(2)], 2)
    # candidates with the m largest weights at the bound
    bound = ratio / (1 + m * ratio**2) * (skip.abs()[..., None] + ratio * total - step).clamp(min=0)
    lower = torch.cat([size, torch.zeros_like(size[..., :1])], 2)
    at = (bound >= lower).int().argmax(2, keepdim=True)  # the first that holds
    bound = bound.gather(2, at)
    return skip.sign() * bound[..., 0] / ratio, w.sign() * w.abs().minimum(bound)
