"""Penalties that make velocities depend on little, and the proximal steps of those that have one."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from .vectorfield import VectorField


def l1(field: VectorField) -> Float[Tensor, ""]:
    """Return the mean absolute weight (Tibshirani 1996)."""
    weights = field.effective()
    return torch.stack([w.abs().sum() for w in weights]).sum() / sum(w.numel() for w in weights)


def path_norm(field: VectorField) -> Float[Tensor, ""]:
    """Return mean_j Σ_i (|W¹| |W²| … |Wᴸ|)_ij, what C-NODE makes small (Aliee et al. 2021, equation 6).

    There it is the mean over inputs too; of the sum a weight means the same for few inputs and for many.
    """
    return field.reach().sum(0).mean()


def open_gates(field: VectorField) -> Float[Tensor, ""]:
    """Return the expected share of weights whose gate is open (Louizos et al. 2018, equation 12)."""
    opened = field.opened()[: len(field.gates)]
    return torch.stack([p.sum() for p in opened]).sum() / sum(p.numel() for p in opened)


def open_paths(field: VectorField, masks: list[Tensor] | None = None) -> Float[Tensor, ""]:
    """Return mean_j Σ_i of the share of paths from i to j that is open, by probabilities or by `masks`."""
    gates = (
        field.opened()
        if masks is None
        else [m.expand_as(w) for m, w in zip(masks, field.weights, strict=True)]
    )
    return (field.paths(gates) / field.paths([torch.ones_like(g) for g in gates])).sum(0).mean()


@torch.no_grad()
def shrink_groups(field: VectorField, step: Float[Tensor, "k n"]) -> None:
    """Take the proximal step of Σ_ij ‖W¹_j[i, :]‖₂: an edge's weights become shorter by `step`, or 0."""
    w = field.weights[0]
    length = w.norm(dim=2, keepdim=True)
    w.mul_((1 - step[..., None] / length.clamp(min=1e-12)).clamp(min=0))


@torch.no_grad()
def hierarchical(
    skip: Float[Tensor, "k n"], w: Float[Tensor, "k n h"], step: Float[Tensor, "k n"], ratio: float
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
    bound = (
        ratio
        / (1 + m * ratio**2)
        * (skip.abs()[..., None] + ratio * total - step[..., None]).clamp(min=0)
    )
    lower = torch.cat([size, torch.zeros_like(size[..., :1])], 2)
    at = (bound >= lower).int().argmax(2, keepdim=True)  # the first that holds
    bound = bound.gather(2, at)
    return skip.sign() * bound[..., 0] / ratio, w.sign() * w.abs().minimum(bound)
