"""States that move: a velocity learned from series, the paths that follow it, and what drives what."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ...compute.rng import Rng
from ...data.align import gene_positions
from ...data.batch import CellBatch
from ...data.series import SeriesBatch
from ...data.series_source import SeriesSource
from ...data.source import Source
from ...errors import BlowUpError
from ...losses.energy import energy_distance
from ...module import Loss, Module, Step
from ...ode import trajectory
from ...ranking import Edges
from ...schema import Spec
from . import limits
from .frame import Frame
from .unexplained import unexplained
from .vectorfield import Gates, VectorField, mean_jacobian

#: Weight of the errors of paths beside those of slopes, which noise keeps from falling as far.
_SOLVED = 2.0


class Dynamics(Module):
    """dx/dt = f(x), of states that are centred and scaled gene by gene, in time from 0 to 1.

    Parameters
    ----------
    options
        Of the solver.
    field
        f.
    """

    unknown = ("confidence",)
    fixed = ("trajectory",)
    compares = ("time",)
    confidence: Tensor
    strength: Tensor

    def __init__(self, options: Any, spec: Spec, field: VectorField) -> None:
        super().__init__()
        n = options.width(spec)
        self.options, self.spec, self.field = options, spec, field
        alone = options.alone()
        self.members = nn.ModuleList(alone.build(spec) for _ in range(options.n_refits))
        self.frame = Frame(n, options.n_latent, len(_series(spec)))
        self.register_buffer("confidence", torch.full((n, n), torch.nan))
        self.register_buffer("strength", torch.tensor(0.0))

    # what is learned

    def prepare(self, source: Source, rows: np.ndarray, rng: Rng) -> None:  # noqa: ARG002 (the contract)
        """Take scales and times of the training cells."""
        if self.frame.known or not isinstance(source, SeriesSource):
            return
        batch = source.series(rows)
        self.frame.units(batch.values, batch.weight, source.first_and_last(rows))
        self.frame.lowest, self.frame.highest = source.extremes(rows)
        codes = {name: i for i, name in enumerate(_series(self.spec))}
        every = source.series(source.known)  # those held out begin somewhere too: nothing learns it
        at = torch.tensor([codes[name] for name in every.names])
        self.frame.starts[at], self.frame.begins[at] = every.start, every.begin
        self.frame.states(batch.smoothed(batch.times, source.bandwidth)[0][batch.observed])

    def loss(self, batch: SeriesBatch, step: Step) -> Loss:
        """Return the error, as a share of what standing still would have, and the penalty."""
        weight = _SOLVED
        if batch.slopes is not None:
            weight, fit = 1.0, self.slope_error(batch)
        elif batch.draw_populations is not None:
            fit = self.population_error(batch, step)
        else:
            fit = self.path_error(batch)
        penalty = self.penalty()
        return Loss(
            {"model": weight * fit + self.strength * penalty}, {"fit": fit, "penalty": penalty}
        )

    def slope_error(self, batch: SeriesBatch) -> Float[Tensor, ""]:
        """Return the error of slopes."""
        assert batch.slopes is not None
        seen = batch.weight[..., 0] > 0
        slopes = batch.slopes[seen] * (self.frame.length / self.frame.scale)
        found = self.velocity("estimated")(self.frame.scaled(batch.values)[seen])
        return unexplained(found, slopes, batch.weight[seen])

    def path_error(self, batch: SeriesBatch) -> Float[Tensor, ""]:
        """Return the error of paths: how far they end up from cells, of how far those went."""
        start = self.frame.scaled(batch.start)[:, None]
        moved = self.frame.scaled(batch.values) - start
        return unexplained(self._paths(batch) - start, moved, batch.weight)

    def population_error(self, batch: SeriesBatch, step: Step) -> Float[Tensor, ""]:
        """Return how far cells of the first time end up from those of later ones, of how far they were.

        Energy distances between populations: no cell is matched to a later one. Every step draws other
        cells; where nothing is learned it is always the same ones.
        """
        assert batch.draw_populations is not None
        # the stream keeps its first name, "crowd", so that fits keep their bits
        generator = step.rng.numpy("crowd", step.index if self.training else 0)
        drawn = batch.draw_populations(generator)
        values, present = (t.to(batch.values.device) for t in drawn)
        cells = self.frame.scaled(values)
        first, m = cells[:, 0], cells.shape[2]
        begin, times = batch.times[:, 0], batch.times
        with self.named([name for name in batch.names for _ in range(m)]):
            found = self.integrate(
                first.flatten(0, 1), times.repeat_interleave(m, 0), begin.repeat_interleave(m)
            ).unflatten(0, first.shape[:2])
        later = batch.observed & (times > begin[:, None])
        begun = present[:, :1].expand_as(present)
        away = energy_distance(found.transpose(1, 2), cells, begun, present)[later].mean()
        still = energy_distance(first[:, None].expand_as(cells), cells, begun, present)[
            later
        ].mean()
        # of populations that hardly move, noise would be all of the scale
        return away / still.clamp(min=0.05 * (2 * self.field.n) ** 0.5)

    def penalty(self) -> Float[Tensor, ""]:
        """Return what `strength` weighs, under the gates of the last solve."""
        return self.strength.new_zeros(())

    def set_strength(self, value: float) -> None:
        """Set the weight of the penalty."""
        self.strength.fill_(value)

    def next_strength(self, value: float, before: float) -> float | None:
        """Return the strength that comes after two others in a grid of even ratios, either way."""
        return value * value / before if value and before else None

    def errors(self, batch: SeriesBatch) -> Float[Tensor, " s"]:
        """Return the mean squared error of each path, in scaled units; infinite where one blows up."""
        start = self.frame.scaled(batch.start)
        found = self.integrate(start, batch.times, batch.begin, alone=True)
        away = batch.weight * (found - self.frame.scaled(batch.values)).square()
        error = away.sum((1, 2)) / batch.weight.sum((1, 2))
        return error.nan_to_num(math.inf, posinf=math.inf)

    def forecast(self, batch: SeriesBatch, absent: tuple[int, ...] = ()) -> Float[Tensor, "s t g"]:
        """Return the expression of series at their times, from their starts, without some genes.

        NaN where a path blew up.
        """
        start, clamped = self.without(
            self.frame.scaled(batch.start), torch.tensor(absent, dtype=torch.long)
        )
        found = self.frame.unscaled(self.expected(start, batch.times, batch.begin, clamped))
        return self.frame.clipped(found, self.frame.unscaled(start))

    def _paths(self, batch: SeriesBatch) -> Float[Tensor, "s t g"]:
        with self.named(batch.names):
            start = self.frame.scaled(batch.start)
            if self.training:  # paths that begin beside observed ones learn to come back to them
                start = start + self.options.jitter * torch.randn_like(start)
            return self.integrate(start, batch.times, batch.begin)

    # the solve

    def velocity(
        self, gates: Gates = "sample"
    ) -> Callable[[Float[Tensor, "s n"]], Float[Tensor, "s n"]]:
        """Return f for one solve: in training gates are drawn once, or as `gates` says; then settled."""
        self.field.settle(self.gates_as(gates))
        return self.field.as_function()

    def gates_as(self, gates: Gates) -> Gates:
        """Return how gates are taken: open without a penalty, lest those close that nothing closes."""
        if not self.strength:
            return "ones"
        return gates if self.training else "settled"

    def without(
        self, x: Float[Tensor, "s g"], genes: Int[Tensor, " k"]
    ) -> tuple[Float[Tensor, "s g"], Int[Tensor, " k"] | None]:
        """Return scaled states without expression of some genes, and which are to be held so."""
        if not len(genes):
            return x, None
        x = x.clone()
        x[:, genes] = self.frame.scaled(x.new_zeros(x.shape[1]))[genes]
        return x, genes

    def free(self, clamped: Int[Tensor, " k"] | None) -> Float[Tensor, " g"]:
        """Return 1 for genes that move, and 0 for those that are held."""
        keep = torch.ones_like(self.frame.centre)
        if clamped is not None:
            keep[clamped] = 0.0
        return keep

    def path_matrix(self) -> Float[Tensor, "g g"]:
        """Return Σ |W¹| |W²| … over all paths from each gene to each: 0 where there is none."""
        self.field.settle(self.gates_as("settled"))
        with torch.no_grad():
            return self.field.reach()

    def integrate(
        self,
        x: Float[Tensor, "s g"],
        times: Float[Tensor, "s t"],
        start: Float[Tensor, " s"],
        clamped: Int[Tensor, " k"] | None = None,
        *,
        alone: bool = False,
    ) -> Float[Tensor, "s t g"]:
        """Follow scaled states from `start` through `times`; `clamped` genes stay what they are.

        A path that blows up is an error, or fails `alone`, and is NaN from then on.
        """
        f, keep = self.velocity(), self.free(clamped)
        return self.follow(lambda y: f(y) * keep, x, times, start, alone=alone)

    def expected(
        self,
        x: Float[Tensor, "s g"],
        times: Float[Tensor, "s t"],
        start: Float[Tensor, " s"],
        clamped: Int[Tensor, " k"] | None = None,
    ) -> Float[Tensor, "s t g"]:
        """Return the mean path of this fit and its refits: where they part, none is followed far."""
        all_fits = (self, *self.members)
        paths = [d.integrate(x, times, start, clamped, alone=True) for d in all_fits]
        return torch.stack(paths).mean(0)

    def follow(
        self,
        velocity: Callable[[Tensor], Tensor],
        y: Float[Tensor, "s n"],
        times: Float[Tensor, "s t"],
        start: Float[Tensor, " s"],
        *,
        alone: bool,
    ) -> Float[Tensor, "s t n"]:
        """Solve, in time as a share of the training cells'."""
        at, begin, o = self.frame.share(times), self.frame.share(start), self.options
        return trajectory(
            lambda y, _: velocity(y),
            y,
            at,
            start=begin,
            method=o.solver,
            rtol=o.tolerance,
            atol=o.tolerance,
            alone=alone,
        )

    @contextmanager
    def named(self, names: Sequence[str]) -> Iterator[None]:
        """Say which series blew up, when, and where it stood, in the data's own units."""
        try:
            yield
        except BlowUpError as error:
            time = float(self.spec.outside("time", self.frame.time_at(error.time)))
            state = self.frame.unscaled(error.state[: len(self.frame.centre)])
            raise BlowUpError(error.row, time, state, names[error.row]) from None

    # refits

    def fresh(self) -> Dynamics:
        """Return new weights for the same data, for a refit."""
        other = self.options.alone().build(self.spec)
        other.frame.load_state_dict(self.frame.state_dict())
        return other

    def keep_refits(self, refits: Sequence[Dynamics], of_chance: Sequence[Dynamics]) -> None:
        """Keep the refits, and for every edge the share of them that agree with it beyond chance."""
        off = ~torch.eye(len(self.confidence), dtype=torch.bool)
        # NumPy's, since torch's takes no more pairs than those of 4,096 genes
        found = [np.quantile(d.edges().cpu()[off].abs().numpy(), 0.95) for d in of_chance]
        least = float(np.mean(found))
        edges = torch.stack([d.edges() for d in refits])
        agree = (edges.sign() == self.edges().sign()) & (edges.abs() > least)
        self.confidence.copy_(agree.float().mean(0))
        for member, refit in zip(self.members, refits, strict=True):
            member.load_state_dict(refit.state_dict())

    def drop_refits(self) -> None:
        """Let every refit be this fit, and have no confidence."""
        weights = {k: v for k, v in self.state_dict().items() if not k.startswith("members.")}
        for member in self.members:
            member.load_state_dict(weights)

    # what it can answer

    def embed(self, batch: CellBatch, to: CellBatch | None = None) -> Float[Tensor, "b z"]:
        """Return coordinates of cells in the plane in which the training paths vary most."""
        x = self.seen(batch) if to is None else self.frame.scaled(self.predict(batch, to))
        return x @ self.frame.plane

    def seen(self, batch: CellBatch) -> Float[Tensor, "b g"]:
        """Return the states of cells; what was not measured counts as average."""
        x, measured = batch.measured_expression()
        return self.frame.scaled(x) * measured

    def place(self, x: Float[Tensor, "b g"]) -> Float[Tensor, "b z"]:
        """Return the coordinates of expression in that plane."""
        return self.frame.scaled(x) @ self.frame.plane

    def drift(self, at: Float[Tensor, "b k"]) -> Float[Tensor, "b k"]:
        """Return the velocity of states in the plane of its first k components, seen in it."""
        plane = self.frame.plane[:, : at.shape[1]]
        with torch.no_grad():
            return self.velocity()(at @ plane.T) @ plane

    def predict(self, batch: CellBatch, to: CellBatch) -> Float[Tensor, "b g"]:
        """Return the expression of cells at the time of `to`, or at the end, without the genes it lacks."""
        moved = "time" in to and to["time"] is not batch["time"]
        now = batch["time"]
        time = to["time"].to(now.dtype) if moved else self.frame.clock[1].expand_as(now)
        return self._expression_at(batch, to, time[:, None])[:, 0]

    def trajectory(self, batch: CellBatch, times: Float[Tensor, " t"]) -> Float[Tensor, "b t g"]:
        """Return the expression that each cell had, or will have, at `times` (rising)."""
        return self._expression_at(batch, batch, times.expand(len(batch), -1))

    def _expression_at(
        self, batch: CellBatch, to: CellBatch, at: Float[Tensor, "b t"]
    ) -> Float[Tensor, "b t g"]:
        absent = to["knockout"][0] if "knockout" in to.columns else torch.zeros(0, dtype=torch.long)
        x, clamped = self.without(self.seen(batch), absent)
        now = batch["time"]
        limits.refuse_distant(self.spec, self.frame, torch.cat([now, at.flatten()]))
        after = self.expected(x, at.maximum(now[:, None]), now, clamped)
        before = self.expected(x, at.minimum(now[:, None]).flip(1), now, clamped).flip(1)
        found = self.frame.unscaled(torch.where((at >= now[:, None])[..., None], after, before))
        start = self.frame.unscaled(x)
        limits.warn_lost(self.spec, found, start, batch)
        held = self.frame.clipped(found, start)
        limits.warn_held(self.spec, self.frame, found, held)
        return held

    def further_conditions(self) -> Mapping[str, Callable[[str], tuple[int, ...]]]:
        """Return the one that cells of the fit do not have: genes that are absent from then on."""
        return {"knockout": partial(gene_positions, self.spec, "knockout")}

    def implied(self, verb: str) -> Mapping[str, float]:
        """Return the time that cells are moved to: the last of the fit."""
        return {"time": self.clock_times(2)[-1]} if verb == "predict" else {}

    def rank(self) -> Edges:
        """Return the weight and the confidence of every edge."""
        return Edges(self.edges(), self.confidence)

    def clock_times(self, n: int) -> Float[np.ndarray, " n"]:
        """Return times from the first to the last of the fit, in the user's units."""
        first, last = self.spec.outside("time", self.frame.clock.numpy()).tolist()
        return np.linspace(first, last, n)

    def named_start(self, code: int) -> CellBatch:
        """Return the smoothed start of a trajectory of the fit, as a cell."""
        columns = {"time": self.frame.begins[code : code + 1]}
        return CellBatch(
            torch.zeros(1, dtype=torch.long, device=self.frame.starts.device),
            {"expression": self.frame.starts[code : code + 1]},
            columns=columns,
        )

    def edges(self) -> Float[Tensor, "g g"]:
        """Return the mean Jacobian along observed paths: row, the driver; column, what is driven."""
        return mean_jacobian(self.velocity(), self.frame.references)


def _series(spec: Spec) -> Sequence[str]:
    return spec.categories.get("trajectory", ("all cells",))
