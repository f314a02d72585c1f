"""A neural ODE in a few principal components, with the lineage in which a cell began as an input."""

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
    """dz/dt = f(z, c): z are components of the smoothed training trajectories, c is the lineage, constant.

    A training trajectory has its own lineage. Any other state gets a weight for each lineage, by how near
    the smoothed training trajectory is at its time, and c holds these weights.
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
        """Estimate scales, components and smoothed training trajectories, and the scale of distances."""
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

    def to_components(self, x: Float[Tensor, "*b g"]) -> Float[Tensor, "*b k"]:
        """Return the scaled components of expression."""
        return (x - self.middle) @ self.axes / self.spread

    def from_components(self, z: Float[Tensor, "*b k"]) -> Float[Tensor, "*b g"]:
        """Return the expression that belongs to scaled components."""
        return (z * self.spread) @ self.axes.T + self.middle

    def lineage_weights(
        self, x: Float[Tensor, "s g"], at: Float[Tensor, " s"] | None = None
    ) -> Float[Tensor, "s l"]:
        """Return a weight for each lineage, by its distance from expression at a time, or at any time."""
        apart = ((x @ self.view)[:, None, None] - self.courses).square().sum(3)  # s l t
        if at is None:
            squares = apart.amin(2)
        else:
            when = (self.frame.share(at).clamp(0, 1) * (_TIMES - 1)).round().long()
            squares = apart.gather(2, when[:, None, None].expand(-1, apart.shape[1], 1))[..., 0]
        off = -0.5 * squares / self.reach.square().clamp(min=1e-12)
        return torch.where(self.learned, off, -torch.inf).softmax(1)

    def own_lineage(self, batch: SeriesBatch) -> Float[Tensor, "s l"]:
        """Return the lineage of each training series; for other series, the weights of `lineage_weights`."""
        at = self._codes(batch)
        mine = torch.eye(len(self.learned), device=at.device)[at]
        return torch.where(
            self.learned[at, None], mine, self.lineage_weights(batch.start, batch.begin)
        )

    def standardised(self, weights: Float[Tensor, "s l"]) -> Float[Tensor, "s l"]:
        """Return weights of lineages, centred and scaled as the indicator of a single lineage would be."""
        mean = 1 / max(int(self.learned.sum()), 2)
        return (weights - mean) / (mean * (1 - mean)) ** 0.5

    # what is learned

    def slope_error(self, batch: SeriesBatch) -> Float[Tensor, ""]:
        """Return the error of slopes, in scaled components."""
        assert batch.slopes is not None
        seen = batch.observed
        z = self.to_components(batch.values)
        lineage = self.standardised(self.own_lineage(batch))[:, None].expand(*seen.shape, -1)
        slopes = (batch.slopes @ self.axes / self.spread)[seen] * self.frame.length
        self.field.settle("ones")
        found = self.field.as_function()(torch.cat([z[seen], lineage[seen]], 1))
        return unexplained(found, slopes, torch.ones_like(slopes))

    def path_error(self, batch: SeriesBatch) -> Float[Tensor, ""]:
        """Return the error of forecasts, in scaled components, relative to how far the cells moved."""
        start = self.to_components(batch.start)
        lineage = self.standardised(self.own_lineage(batch))
        state = torch.cat([start, lineage], 1)
        if self.training:  # neither starts nor lineages are known without noise
            state = state + self.options.jitter * torch.randn_like(state)
        found = self._follow(state, batch.times, batch.begin)
        measured = batch.weight > 0
        values = self.to_components(torch.where(measured, batch.values, self.middle))
        weight = batch.weight.mean(2, keepdim=True).expand_as(values)
        return unexplained(found - start[:, None], values - start[:, None], weight)

    def _follow(
        self, state: Tensor, times: Tensor, start: Tensor, *, alone: bool = False
    ) -> Float[Tensor, "s t k"]:
        self.field.settle("ones")
        f, k = self.field.as_function(), self.field.n

        def both(y: Tensor) -> Tensor:
            return torch.cat([f(y), torch.zeros_like(y[:, k:])], 1)

        try:
            return self.follow(both, state, times, start, alone=alone)[..., :k]
        except BlowUpError as error:
            whole = self.frame.scaled(self.from_components(error.state[:k]))
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
        """Solve for states at `times`; a knocked-out gene is absent at the start and in the result."""
        whole = self.frame.unscaled(x)
        state = torch.cat(
            [self.to_components(whole), self.standardised(self.lineage_weights(whole, start))], 1
        )
        found = self.frame.scaled(
            self.from_components(self._follow(state, times, start, alone=alone))
        )
        if clamped is not None:
            found[..., clamped] = x[:, None, clamped]
        return found

    def velocity(
        self, gates: Gates = "sample"
    ) -> Callable[[Float[Tensor, "s n"]], Float[Tensor, "s n"]]:
        """Return the velocity as a function of scaled states."""
        self.field.settle(self.gates_as(gates))
        f = self.field.as_function()

        def of(x: Tensor) -> Tensor:
            whole = self.frame.unscaled(x)
            lineage = self.standardised(self.lineage_weights(whole.detach()))
            return (
                (f(torch.cat([self.to_components(whole), lineage], 1)) * self.spread)
                @ self.axes.T
                / self.frame.scale
            )

        return of

    def fresh(self) -> Dynamics:
        """Return an untrained copy for the same data, for a refit."""
        other = super().fresh()
        buffers = dict(self.named_buffers(recurse=False))
        for name in ("axes", "middle", "spread", "view", "courses", "learned", "reach"):
            getattr(other, name).copy_(buffers[name])
        return other

    def _codes(self, batch: SeriesBatch) -> Int[Tensor, " s"]:
        names = self.spec.categories.get("trajectory", ("all cells",))
        codes = {name: i for i, name in enumerate(names)}
        return torch.tensor([codes[name] for name in batch.names], device=self.learned.device)


@config
class LineageNODE(NeuralODE):
    """A neural ODE in a few principal components, which also reads the lineage in which a cell began.

    For a cell that begins at time t_0 with expression x(t_0)::

        dz/dt = f(z, c),   x(t) = m + B z(t),   c = Σ_l w_l e_l,   w_l ∝ exp(−|x(t_0) − x_l(t_0)|² / 2h²)

    z are the components in which the smoothed training trajectories vary most. The lineage c is constant
    along a trajectory. A training trajectory has its own lineage. Any other start gets weights w_l, by its
    distance from the smoothed training trajectories x_l. The number of components for this distance, and
    its scale h, are chosen by forecasts of held-out parts of the training trajectories.

    References
    ----------
    Chen et al. (2018), Neural Ordinary Differential Equations, NeurIPS; Lorenz (1969), Atmospheric
    predictability as revealed by naturally occurring analogues, Journal of the Atmospheric Sciences 26:636.
    """

    n_components: int = param(
        3, "Number of components of the smoothed training trajectories in which cells move.", low=1
    )

    def build(self, spec: Spec) -> KnownLineage:
        """Return the untrained tensors."""
        k = min(self.n_components, self.width(spec))
        lineages = len(spec.categories.get("trajectory", ("all cells",)))
        field = VectorField(k, self.widths(k), inputs=k + lineages, activation=self.activation)
        return KnownLineage(self, spec, field)

    def split(
        self, source: Source, rows: np.ndarray, validation: float | np.ndarray, rng: Rng
    ) -> Split:
        """Hold out only what the caller names: a lineage outside the training set could not be recognised."""
        if isinstance(validation, np.ndarray):
            return super().split(source, rows, validation, rng)
        return Split(rows, rows[:0])
