"""How cells of one type differ in each feature, beyond what a decoder predicts; counted, not learned."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ...data.batch import SparseRows
from ...losses.counts import nb_log_likelihood
from ...nn.sparse import add_at

#: Spread of a type's log θ about the line that all types share, and where it is sought.
_APART, _SHIFTS = 1.0, (-4.0, -3.0, -2.0, -1.0, 0.0, 1.0, 2.0, 3.0, 4.0)
#: Spread of tilts, and where they are sought: from cells of a type that are all alike to those that the
#: decoder tells apart. It is steep where it errs; to tilt further changed the share of cells that have a gene
#: no nearer to the real one, and the distances of generated cells for the worse.
_TILTED, _TILTS = 0.5, (-1.0, -0.75, -0.5, -0.25, 0.0)
#: Least share of its θ that a tilt leaves a feature.
_LEAST = 1e-6
#: Counts seen, as many of which were expected, that stand beside those of a type; as in `effects`.
_PRIOR = 2.0


class Expected(NamedTuple):
    """What is expected of some cells, all effects of attributes counted.

    Attributes
    ----------
    counts
        What was observed.
    types
        Type of each cell; -1: none.
    log_frequency
        Log frequencies by the decoder alone, neither tilted nor moved by any attribute.
    log_mean, log_theta
        Of the negative binomial, with the shift of its θ.
    rising
        Share of θ that rises with the frequency.
    """

    counts: SparseRows
    types: Int[Tensor, " b"]
    log_frequency: Float[Tensor, "b g"]
    log_mean: Float[Tensor, "b g"]
    log_theta: Float[Tensor, "b g"]
    rising: Float[Tensor, "b g"]


#: Goes over all cells once.
Cells = Callable[[], Iterator[Expected]]


class WithinTypes(nn.Module):
    """By type of cell (label) and feature, a shift of log θ and a tilt of the decoder's log frequencies.

    θ rises with the expected frequency along a line that all types share, which is drawn by the most
    frequent ones. The shift δ of a type is the mode of its posterior, under the prior N(0, 1).

    From a rare type to others a decoder is steep: a little of the latent space apart, cells of the one type
    differ in its markers more than they do, so that some have none and few have most. With the tilt c, the
    decoder's log frequency y becomes ::

        y + c (y − ȳ),      ȳ: its mean over cells of the type

    and c is such that as many cells are expected to lack the feature as do, as far as chance allows: the
    squared difference over its variance, and the prior N(0, ½²), decide. -1 makes all cells of a type
    alike, 0 follows the decoder. A cell without a type is neither shifted nor tilted.
    """

    shift: Tensor
    tilt: Tensor
    centre: Tensor

    def __init__(self, n_types: int, n_features: int) -> None:
        super().__init__()
        for name in ("shift", "tilt", "centre"):  # the last row: of no type
            self.register_buffer(name, torch.zeros(n_types + 1, n_features))

    def tilted(
        self, logits: Float[Tensor, "b g"], types: Int[Tensor, " b"]
    ) -> Float[Tensor, "b g"]:
        """Return the decoder's log frequencies, tilted."""
        return logits + self.tilt[types] * (logits.log_softmax(1) - self.centre[types])

    @torch.no_grad()
    def reset(self) -> None:
        """Set shifts and tilts to 0: follow the decoder."""
        for table in (self.shift, self.tilt, self.centre):
            table.zero_()

    @torch.no_grad()
    def fit(self, cells: Cells) -> None:
        """Count shifts, then tilts."""
        self.reset()
        self.shift.copy_(self._modes(cells))
        total, present = torch.zeros(2, *self.centre.shape, device=self.centre.device)
        n = total.new_zeros(len(total), 1)
        for found in cells():
            of = found.types % len(self.shift)
            n += of.bincount(minlength=len(total))[:, None]
            add_at(total, of, found.log_frequency)
            stored = of[found.counts.cells], found.counts.columns
            present.index_put_(stored, found.counts.values.sign().to(total), accumulate=True)
        self.centre.copy_(total / n.clamp(min=1))
        self.tilt.copy_(self._tilts(cells, n - present))
        for table in (self.shift, self.tilt, self.centre):
            table[-1] = 0

    def _modes(self, cells: Cells) -> Float[Tensor, "n g"]:
        """Return the shifts: where the line between two derivatives of the log posterior crosses 0."""
        grid = self.shift.new_tensor(_SHIFTS)
        slopes = self.shift.new_zeros(len(grid), *self.shift.shape)
        for found in cells():
            depth, of = found.log_mean.logsumexp(1, keepdim=True), found.types % len(self.shift)
            for at, total in zip(grid, slopes, strict=True):
                with torch.enable_grad():
                    log_theta = (found.log_theta + at).requires_grad_()
                    ll = nb_log_likelihood(found.counts, found.log_mean, depth, log_theta).sum()
                add_at(total, of, torch.autograd.grad(ll, log_theta)[0])
        slopes -= (grid / _APART**2)[:, None, None]
        right = (slopes > 0).int().cumprod(0).sum(0).clamp(1, len(grid) - 1)
        a, b = (slopes.gather(0, i[None])[0] for i in (right - 1, right))
        part = (a / (a - b)).nan_to_num().clamp(0, 1)
        return grid[right - 1] + part * (grid[right] - grid[right - 1])

    def _tilts(self, cells: Cells, lacking: Float[Tensor, "n g"]) -> Float[Tensor, "n g"]:
        """Return the most probable tilts, each of which leaves the sum of a type's means as it is."""
        means, zeros, variance = self.tilt.new_zeros(3, len(_TILTS), *self.tilt.shape)
        for found in cells():
            of, away = found.types % len(self.tilt), found.log_frequency - self.centre[found.types]
            for tilt, mean in zip(_TILTS, means, strict=True):
                add_at(mean, of, (found.log_mean + tilt * away).exp())
        levels = ((means[_TILTS.index(0)] + _PRIOR) / (means + _PRIOR)).log()
        for found in cells():
            of, away = found.types % len(self.tilt), found.log_frequency - self.centre[found.types]
            for i, tilt in enumerate(_TILTS):
                moved = tilt * away + levels[i][of]
                times = 1 - found.rising + found.rising * moved.exp()  # θ moves with the frequency
                theta = found.log_theta.exp() * times.clamp(min=_LEAST)
                absent = (-theta * ((found.log_mean + moved).exp() / theta).log1p()).exp()
                add_at(zeros[i], of, absent)
                add_at(variance[i], of, absent * (1 - absent))
        prior = (self.tilt.new_tensor(_TILTS) / _TILTED).square()[:, None, None]
        # of no cell it is certain that it lacks the feature, hence the 1
        cost = (zeros - lacking).square() / (variance + 1) + prior
        return self.tilt.new_tensor(_TILTS)[cost.argmin(0)]
