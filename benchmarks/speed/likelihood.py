"""Log-likelihoods of counts and their gradients, apart from everything else of a training step."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from ..common import Row, folded
from .harness import Case, Folders, Prepared, Side
from .ratios import laps, mark, markdown, median, named, ratio, spread

if TYPE_CHECKING:
    from torch import Tensor

#: Freed memory is kept on all sides: what is compared is arithmetic, not page faults.
KEPT = {"MALLOC_MMAP_THRESHOLD_": str(32 << 20), "MALLOC_TRIM_THRESHOLD_": str(1 << 30)}
NO_KERNEL = {"CHREODE_KERNEL": "0"}
THEIRS = Side("scvi-tools", "scvi_tools", rival=True, env=KEPT)
SIDES = (
    THEIRS,
    Side("written out in torch", "written_out", env=KEPT),
    Side("chreode, distributions", "distributions", env=KEPT),
    Side("chreode, fused, no compiler", "fused", env={**KEPT, **NO_KERNEL}),
    Side("chreode, fused, kernel", "fused", env=KEPT),
)


def cases(quick: bool) -> list[Case]:
    shared = {"cells": 2_000, "genes": 2_000, "density": 0.08, "seed": 0}
    effort = {"seconds": 0.1, "laps": 2} if quick else {"seconds": 1.0, "laps": 7}
    return [
        Case(
            "likelihood", f"{likelihood}, {batch_size}", SIDES,
            {**shared, **effort, "likelihood": likelihood, "batch_size": batch_size},
            30 + len(SIDES) * (effort["laps"] + 1) * effort["seconds"],
        )
        for likelihood in ("nb", "zinb") for batch_size in (128, 512)
    ]  # fmt: skip


def prepare(settings: Row, folders: Folders) -> Prepared:
    from .data import simulated

    names = ("cells", "genes", "density", "seed")
    return simulated(folders.scratch, **{name: settings[name] for name in names})


# the sides


def scvi_tools(given: Prepared, lap: Callable[..., None]) -> None:
    from scvi.distributions import NegativeBinomial, ZeroInflatedNegativeBinomial

    def value(x: Tensor, depth: Tensor, logits: Tensor, log_theta: Tensor, *zero: Tensor) -> Tensor:
        mu, theta = depth * logits.softmax(1), log_theta.exp()
        if zero:
            found = ZeroInflatedNegativeBinomial(mu=mu, theta=theta, zi_logits=zero[0])
        else:
            found = NegativeBinomial(mu=mu, theta=theta)
        return found.log_prob(x).sum(1)

    _steps(value, given, lap)


def written_out(given: Prepared, lap: Callable[..., None]) -> None:
    import torch
    from torch.nn.functional import softplus

    def value(x: Tensor, depth: Tensor, logits: Tensor, log_theta: Tensor, *zero: Tensor) -> Tensor:
        mu, theta = depth * logits.softmax(1), log_theta.exp()
        total = (mu + theta).log()
        found = torch.lgamma(x + theta) - torch.lgamma(theta) - torch.lgamma(x + 1)
        found = found + theta * (log_theta - total) + x * (mu.log() - total)
        if zero:
            inflated = torch.where(x == 0, torch.logaddexp(found, zero[0]), found)
            found = inflated - softplus(zero[0])
        return found.sum(1)

    _steps(value, given, lap)


def distributions(given: Prepared, lap: Callable[..., None]) -> None:
    from chreode.distributions import NegativeBinomial, ZeroInflatedNegativeBinomial

    def value(x: Tensor, depth: Tensor, logits: Tensor, log_theta: Tensor, *zero: Tensor) -> Tensor:
        mu, theta = depth * logits.softmax(1), log_theta.exp()
        found = (
            ZeroInflatedNegativeBinomial(mu, theta, *zero) if zero else NegativeBinomial(mu, theta)
        )
        return found.log_prob(x).sum(1)

    _steps(value, given, lap)


def fused(given: Prepared, lap: Callable[..., None]) -> None:
    from chreode.data.batch import SparseRows
    from chreode.losses import kernel
    from chreode.losses.counts import nb_log_likelihood, zinb_log_likelihood

    held = {}

    def value(x: Tensor, depth: Tensor, logits: Tensor, log_theta: Tensor, *zero: Tensor) -> Tensor:
        if not held:  # a minibatch comes sparse
            held.update(x=SparseRows.of(x), log_library=depth.log())
        function = zinb_log_likelihood if zero else nb_log_likelihood
        return function(held["x"], logits, held["log_library"], log_theta, *zero)

    _steps(value, given, lap, kernel=kernel.available())


def _steps(
    value: Callable[..., Tensor], given: Prepared, lap: Callable[..., None], **facts: bool
) -> None:
    """Take values and gradients for `seconds` a lap; `value` returns one log-likelihood per cell."""
    import anndata
    import torch

    torch.set_num_threads(given["threads"])
    x = torch.from_numpy(anndata.read_h5ad(given["file"]).X[: given["batch_size"]].toarray())
    draw = torch.Generator().manual_seed(given["seed"])
    shapes = [x.shape, (1, x.shape[1]), *([x.shape] if given["likelihood"] == "zinb" else [])]
    leaves = [torch.randn(shape, generator=draw).requires_grad_() for shape in shapes]
    depth = x.sum(1, keepdim=True)
    lap("set-up")
    for number in range(given["laps"] + 1):
        begin, steps = time.perf_counter(), 0
        while time.perf_counter() - begin < given["seconds"] or not steps:
            found = value(x, depth, *leaves).mean()
            torch.autograd.grad(found, leaves)
            steps += 1
        lap("steps" if number else "warm-up", steps=steps, value=found.item(), **facts)


# the table


def render(rows: list[Row]) -> list[str]:
    short, full = [], []
    for row in rows:
        pace = {
            label: 1e3 * laps(row, label, "steps") / laps(row, label, "steps", "steps")
            for label in row["runs"]
        }
        for label, ms in pace.items():
            who = row["case"] + mark(row, "steps"), named(row, label)
            found = None if label == THEIRS.label else ratio(pace[THEIRS.label], ms)
            short.append((*who, median(ms), found.plain() if found else "1"))
            value = float(np.median(laps(row, label, "steps", "value")))
            full.append((*who, spread(ms), str(found) if found else "1", f"{value:.2f}"))
    header = ("likelihood, cells", "", "ms", "times as fast", "log-likelihood of a cell")
    return [
        *markdown(header[:-1], short),
        "",
        *folded("With ranges, 95 % intervals and values", markdown(header, full)),
    ]
