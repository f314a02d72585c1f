"""Coordinate ascent on the ELBO: posteriors of cells, then those of what all cells share, in turn."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..data.batch import CellBatch
from ..data.source import Source
from ..module import Module
from .ascent import Ascent, add_up
from .phase import Phase, Session, Split, Trace


@dataclass(frozen=True)
class CAVI:
    """Alternate the posteriors of single cells and those of what all of them share.

    The module offers four methods:

    ``start(batch)``
        Returns where the posterior of each cell begins, as tensors of cells x …, by name. It depends on
        nothing but the cell.
    ``collect(batch, local)``
        Returns the sums over these cells of what `update` reads, ``elbo`` among them (what the cells
        add to the bound under their new posteriors), and these new posteriors.
    ``update(sums)``
        Sets the posteriors that all cells share.
    ``global_elbo()``
        Returns what those add to the bound, once: minus their divergence from their priors.

    Posteriors of training cells are kept between passes, as float32 on the CPU, and forgotten after the
    last: what a fitted model is asked of any cell it answers by `settle`.

    Attributes
    ----------
    max_epochs
        Passes over the data at most.
    tol
        Stop when the ELBO gains less than this share of its gain so far, twice running.
    slack
        Relative change of the ELBO that rounding may cause: such a fall is forgiven, and such a gain is
        none.

    References
    ----------
    Blei, Kucukelbir & McAuliffe (2017), Journal of the American Statistical Association 112:859, §2.4.
    """

    validates: ClassVar[bool] = False
    max_epochs: int
    tol: float
    slack: float = 1e-8

    def learn(
        self, module: Module, phase: Phase, source: Source, split: Split, run: Session
    ) -> Trace:
        """Train in place on all rows; Ctrl-C keeps the last update.

        Raises
        ------
        FitError
            If the ELBO falls or stops being finite.
        """
        target, rows, group = phase.target(module), split.train, run.group
        own_rows = group.share(rows)
        kept: dict[str, Tensor] = {}

        def one_pass() -> tuple[float, dict[str, Tensor]]:
            sums: dict[str, Tensor] = {}
            end, known = 0, bool(kept)
            for batch in source.batches(own_rows, run.device):
                start, end = end, end + len(batch)
                local = (
                    {name: values[start:end].to(run.device) for name, values in kept.items()}
                    if known
                    else target.start(batch)
                )
                part, local = target.collect(batch, local)
                sums = add_up((sums, part))
                for name, values in local.items():
                    if name not in kept:
                        kept[name] = torch.empty(
                            len(own_rows), *values.shape[1:], dtype=torch.float32
                        )
                    kept[name][start:end] = values
            group.add(list(sums.values()))
            return float(sums["elbo"] + target.global_elbo()) / len(rows), sums

        advice = (
            "coordinate ascent never does that, so an update is wrong or the numbers are "
            "ill-conditioned. Try fewer factors or drop near-constant features."
        )
        ascent = Ascent("ELBO", self.max_epochs, self.tol, self.slack, advice)
        return ascent.climb(one_pass, target, phase, run)


def settle(
    module: Any, batch: CellBatch, steps: int = 200, tol: float = 1e-5
) -> Mapping[str, Tensor]:
    """Return the converged posteriors of cells, all that they share staying as it is.

    Each cell converges by itself, so that none depends on its neighbours in the batch.

    Parameters
    ----------
    module
        What `CAVI` trains.
    steps
        Updates at most.
    tol
        A cell has converged where no value changes by more than this share of its largest.
    """
    now: dict[str, Tensor] = module.start(batch)
    moving = torch.ones(len(batch), dtype=torch.bool, device=batch.rows.device)
    for _ in range(steps):
        found, converged = module.collect(batch, now)[1], torch.ones_like(moving)
        for name, new in found.items():
            far, size = (t.reshape(len(t), -1).abs().amax(1) for t in (new - now[name], new))
            converged &= far <= tol * size
            now[name] = torch.where(moving.view(-1, *[1] * (new.ndim - 1)), new, now[name])
        moving &= ~converged
        if not bool(moving.any()):
            break
    return now
