"""A neural ODE in few components of the states, which knows among which lineage a path began."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..compute.rng import Rng
from ..config import config, param
from ..data.series import SeriesBatch
from ..data.series_source import SeriesSource
from ..data.source import Source
from ..errors import BlowUpError
from ..learn import analogs
from ..learn.phase import Split
from ..schema import Spec
from .dynamics.dynamics import Dynamics
from .dynamics.unexplained import unexplained
from .dynamics.vectorfield import Gates, VectorField
from .neuralode import NeuralODE

#: Times of the training courses that are kept.
_TIMES = 50


class KnownLineage(Dynamics):
    """dz/dt = f(z, c): z in components of the smoothed training paths, c the lineage, which stays.

    A training path has its own lineage. Any other state is given weights of all of them, by how near the
    training courses are at its time, and c is their mean.
    """

    options: LineageNODE
    axes: Tensor
    middle: Tensor
    spread: Tensor
    view: Tensor
    courses: Tensor
    learned: Tensor
    reach: Tensor

    def __init__(self, options: LineageNODE, spec: Spec, field: VectorField) -> None:
        super().__init__(options, spec, field)
        n, k, lineages = len(self.frame.centre), field.n, len(self.frame.begins)
        self.register_buffer("axes", torch.eye(n, k))
        self.register_buffer("middle", torch.zeros(n))
        self.register_buffer("spread", torch.ones(k))
        # in which starts are compared: as many components as held-out parts choose, the rest are 0
        self.register_buffer("view", torch.zeros(n, max(analogs.COMPONENTS)))
        self.register_buffer("courses", torch.zeros(lineages, _TIMES, max(analogs.COMPONENTS)))
        self.register_buffer("learned", torch.zeros(lineages, dtype=torch.bool))
        self.register_buffer("reach", torch.tensor(1.0))

    def prepare(self, source: Source, rows: np.ndarray, rng: Rng) -> None:
        """Take scales, components and courses of the training cells, and how near counts as alike."""
        before = bool(self.frame.known)
        super().prepare(source, rows, rng)
        if before or not isinstance(source, SeriesSource):
            return
        batch = source.series(rows)
        share = analogs.width_of_time(batch, source.bandwidth)
        width = share * analogs.length(batch)
        paths = batch.smoothed(batch.times, width)[0]
        wide, n = analogs.analog_setting(batch, source.bandwidth, width)
        states = paths[batch.observed]
        for axes, k in ((self.axes, self.field.n), (self.view, n)):
            found = analogs.components(states, k)
            axes.zero_()[:, : found.shape[1]] = found
        self.middle.copy_(states.mean(0))
        # of components that the data do not have nothing is seen
        spread = ((states - self.middle) @ self.axes).std(0)
        self.spread.copy_(torch.where(spread > 0, spread, 1.0))
        at = self._codes(batch)
        self.learned[at] = True
        first, last = batch.times[:, :1], batch.times.amax(1, keepdim=True)
        grid = (
            self.frame.clock[0]
            + torch.linspace(0, 1, _TIMES, device=self.frame.clock.device) * self.frame.length
        )
        times = grid.expand(len(batch), -1).maximum(first).minimum(last)
        # as starts are smoothed, which they are compared with
        self.courses[at] = batch.smoothed(times, source.bandwidth)[0] @ self.view
        spread = (batch.start @ self.view).var(0, unbiased=False).sum().sqrt()
        self.reach.copy_(wide * spread)

    # components

    def inside(self, x: Float[Tensor, "*b g"]) -> Float[Tensor, "*b k"]:
        """Return the components of expression, scaled."""
        return (x - self.middle) @ self.axes / self.spread

    def outside(self, z: Float[Tensor, "*b k"]) -> Float[Tensor, "*b g"]:
        """Return the expression that components tell."""
        return (z * self.spread) @ self.axes.T + self.middle

    def alike(
        self, x: Float[Tensor, "s g"], at: Float[Tensor, " s"] | None = None
    ) -> Float[Tensor, "s l"]:
        """Return the weights of lineages, by how near their courses are to expression at a time, or ever."""
        apart = ((x @ self.view)[:, None, None] - self.courses).square().sum(3)  # s l t
        if at is None:
            squares = apart.amin(2)
        else:
            when = (self.frame.share(at).clamp(0, 1) * (_TIMES - 1)).round().long()
            squares = apart.gather(2, when[:, None, None].expand(-1, apart.shape[1], 1))[..., 0]
        off = -0.5 * squares / self.reach.square().clamp(min=1e-12)
        return torch.where(self.learned, off, -torch.inf).softmax(1)

    def own(self, batch: SeriesBatch) -> Float[Tensor, "s l"]:
        """Return which lineage each series is; of those that were not learned from, which they are like."""
        at = self._codes(batch)
        mine = torch.eye(len(self.learned), device=at.device)[at]
        return torch.where(self.learned[at, None], mine, self.alike(batch.start, batch.begin))

    def told(self, weights: Float[Tensor, "s l"]) -> Float[Tensor, "s l"]:
        """Return weights of lineages, centred and scaled as one of them alone would be."""
        mean = 1 / max(int(self.learned.sum()), 2)
        return (weights - mean) / (mean * (1 - mean)) ** 0.5

    # what is learned

    def matched(self, batch: SeriesBatch) -> Float[Tensor, ""]:
        """Return the error of slopes, in components."""
        assert batch.slopes is not None
        seen = batch.observed
        z = self.inside(batch.values)
        lineage = self.told(self.own(batch))[:, None].expand(*seen.shape, -1)
        slopes = (batch.slopes @ self.axes / self.spread)[seen] * self.frame.length
        self.field.settle("ones")
        found = self.field.solved()(torch.cat([z[seen], lineage[seen]], 1))
        return unexplained(found, slopes, torch.ones_like(slopes))

    def solved(self, batch: SeriesBatch) -> Float[Tensor, ""]:
        """Return the error of paths, in components, as a share of how far they went."""
        start = self.inside(batch.start)
        lineage = self.told(self.own(batch))
        state = torch.cat([start, lineage], 1)
        if self.training:  # neither starts nor lineages are known without noise
            state = state + self.options.jitter * torch.randn_like(state)
        found = self._follow(state, batch.times, batch.begin)
        measured = batch.weight > 0
        values = self.inside(torch.where(measured, batch.values, self.middle))
        weight = batch.weight.mean(2, keepdim=True).expand_as(values)
        return unexplained(found - start[:, None], values - start[:, None], weight)

    def _follow(
        self, state: Tensor, times: Tensor, start: Tensor, *, alone: bool = False
    ) -> Float[Tensor, "s t k"]:
        self.field.settle("ones")
        f, k = self.field.solved(), self.field.n

        def both(y: Tensor) -> Tensor:
            return torch.cat([f(y), torch.zeros_like(y[:, k:])], 1)

        try:
            return self.follow(both, state, times, start, alone=alone)[..., :k]
        except BlowUpError as error:
            whole = self.frame.inside(self.outside(error.state[:k]))
            raise BlowUpError(error.row, error.time, whole) from None

    # the solve, seen from genes

    def integrate(
        self,
        x: Float[Tensor, "s g"],
        times: Float[Tensor, "s t"],
        start: Float[Tensor, " s"],
        clamped: Int[Tensor, " k"] | None = None,
        *,
        alone: bool = False,
    ) -> Float[Tensor, "s t g"]:
        """Follow scaled states; genes that are absent are so at the start, and in what is returned."""
        whole = self.frame.outside(x)
        state = torch.cat([self.inside(whole), self.told(self.alike(whole, start))], 1)
        found = self.frame.inside(self.outside(self._follow(state, times, start, alone=alone)))
        if clamped is not None:
            found[..., clamped] = x[:, None, clamped]
        return found

    def velocity(
        self, gates: Gates = "sample"
    ) -> Callable[[Float[Tensor, "s n"]], Float[Tensor, "s n"]]:
        """Return the velocity of scaled states."""
        self.field.settle(self.gates_as(gates))
        f = self.field.solved()

        def of(x: Tensor) -> Tensor:
            whole = self.frame.outside(x)
            lineage = self.told(self.alike(whole.detach()))
            return (
                (f(torch.cat([self.inside(whole), lineage], 1)) * self.spread)
                @ self.axes.T
                / self.frame.scale
            )

        return of

    def fresh(self) -> Dynamics:
        """Return new weights for the same data, for a refit."""
        other = super().fresh()
        own = dict(self.named_buffers(recurse=False))
        for name in ("axes", "middle", "spread", "view", "courses", "learned", "reach"):
            getattr(other, name).copy_(own[name])
        return other

    def _codes(self, batch: SeriesBatch) -> Int[Tensor, " s"]:
        names = self.spec.categories.get("trajectory", ("all cells",))
        codes = {name: i for i, name in enumerate(names)}
        return torch.tensor([codes[name] for name in batch.names], device=self.learned.device)


@config
class LineageNODE(NeuralODE):
    """States that move in few components, by a velocity that knows the lineage of their path.

    ::

        dz/dt = f(z, c),   x(t) = m + B z(t),   c = Σ_l w_l e_l,   w_l ∝ exp(−|x(t_0) − x_l(t_0)|² / 2h²)

    z are the components in which the smoothed training paths vary most. c stays what it is along a path: of
    a training path its own lineage, of any other the weights of those whose courses x_l are near where it
    begins. In how many components that is seen, and how near counts, h, is chosen by forecasts of held-out
    parts of the training paths.

    References
    ----------
    Chen et al. (2018), Neural Ordinary Differential Equations, NeurIPS; Lorenz (1969), Atmospheric
    predictability as revealed by naturally occurring analogues, Journal of the Atmospheric Sciences 26:636.
    """

    n_components: int = param(3, "Components in which states move.", low=1)

    def build(self, spec: Spec) -> KnownLineage:
        """Return the untrained tensors."""
        k = min(self.n_components, self.width(spec))
        lineages = len(spec.categories.get("trajectory", ("all cells",)))
        field = VectorField(k, self.widths(k), inputs=k + lineages, activation=self.activation)
        return KnownLineage(self, spec, field)

    def split(
        self, source: Source, rows: np.ndarray, validation: float | np.ndarray, rng: Rng
    ) -> Split:
        """Hold out what is named alone: a lineage that is not learned from could not be told."""
        if isinstance(validation, np.ndarray):
            return super().split(source, rows, validation, rng)
        return Split(rows, rows[:0])
