"""Neural ordinary differential equations of cell states: where cells go, and what drives them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, ClassVar, Literal

import numpy as np

from ..compute.rng import Rng
from ..config import config, param
from ..data.design import ONE_COURSE, shared
from ..data.sampler import Together
from ..data.series_source import SeriesSource
from ..data.source import Source
from ..learn.phase import Phase, Session, Split
from ..learn.sgd import SGD
from ..model import Model
from ..schema import Spec
from .dynamics.dynamics import Dynamics
from .dynamics.path import Path
from .dynamics.refits import Refits
from .dynamics.rest import ToRest
from .dynamics.vectorfield import VectorField

#: Steps of an epoch, about: between looks at the held-out series.
EVERY = 20
#: Options that say how long the stages last.
_LASTS = {
    "slopes": "match_steps", "pieces": "piece_steps", "paths": "path_steps",
    "populations": "population_steps",
}  # fmt: skip
#: Cells of a population that are carried at once.
CROWD = 128


@config
class NeuralODE(Model):
    """States that move by a velocity, which a network reads from the state.

    Story, for the state x of a trajectory, log1p counts per 10,000 or `expression` where named::

        dx/dt = f(x),   x(t_0) smoothed from the first cells

    f first matches the slopes of smoothed paths, which needs no solve; then short pieces are solved
    through, then whole paths. Of several trajectories some are held out at random to choose by, and then
    learned from too, as cross-validated regressions are; trajectories named to `fit` never are.

    References
    ----------
    Chen et al. (2018), Neural Ordinary Differential Equations, NeurIPS.
    """

    needs: ClassVar[tuple[str, ...]] = ("expression|counts", "time")
    uses: ClassVar[tuple[str, ...]] = ("trajectory",)
    tolerates: ClassVar[tuple[str, ...]] = ("expression",)
    scale: ClassVar[Literal["counts", "log1p CP10k"]] = "log1p CP10k"
    extends: ClassVar[bool] = False
    inverts: ClassVar[bool] = True
    #: Whether every output has a network of its own.
    per_output: ClassVar[bool] = False

    n_latent: int = param(10, "Dimensions in which `embed` places cells.", low=1)
    hidden: tuple[int, ...] | None = param(
        None,
        "Widths of the hidden layers; None: 128, or of a network for each output 16, and fewer beyond "
        "100 genes.",
        low=1,
    )
    activation: Literal["elu", "tanh", "silu"] = param("silu", "Between layers.")
    n_times: int = param(100, "Most time points of a series; cells are averaged to as many.", low=2)
    bandwidth: float = param(
        0.03, "Of the smoother, as a share of the time from first to last cell.", low=1e-4, high=1
    )
    solver: Literal["dopri5", "tsit5", "rk4"] = param("dopri5", "ODE solver.")
    tolerance: float = param(1e-3, "Error that the solver allows per step.", low=1e-8, high=0.1)
    match_steps: int = param(1000, "Steps on slopes of smoothed paths.", low=0)
    piece_steps: int = param(400, "Steps on pieces of paths.", low=0)
    span: float = param(0.15, "Length of the pieces, as a share of the time.", low=0.01, high=1)
    path_steps: int = param(200, "Steps on whole paths.", low=0)
    population_steps: int = param(
        0,
        "Steps on populations after those: cells of the first time, carried, become like those of later "
        "times, which paths of means cannot tell.",
        low=0,
    )
    targets: Literal["cells", "smoothed"] = param(
        "cells", "What pieces and whole paths come close to: the cells, or their smoothed states."
    )
    jitter: float = param(
        0.35, "Noise of the starts while it learns, in standard deviations of a gene.", low=0
    )
    n_refits: int = param(
        0,
        "Refits on resampled series, and as many on chance, for the confidence of `rank`; 5 or more.",
        low=0,
    )
    lr: float = param(3e-3, "Learning rate of Adam.", low=0)

    def build(self, spec: Spec) -> Dynamics:
        """Return the untrained tensors."""
        return Dynamics(self, spec, self.field(self.width(spec)))

    def alone(self) -> NeuralODE:
        """Return the same options without refits."""
        return replace(self, n_refits=0)

    def width(self, spec: Spec) -> int:
        """Return the number of genes."""
        return spec.n_features(spec.either("expression", "counts"))

    def field(self, n: int) -> VectorField:
        """Return the untrained velocity of `n` genes."""
        return VectorField(n, self.widths(n), activation=self.activation)

    def widths(self, n: int) -> tuple[int, ...]:
        """Return the widths of hidden layers: all first layers together have 1,600 units at the most."""
        each = (max(2, min(16, 1600 // n)),) if self.per_output else (128,)
        return each if self.hidden is None else self.hidden

    def phases(self) -> list[Phase]:
        """Slopes, pieces, whole paths, and refits."""
        refits = Phase(Refits(self.n_refits, tuple(self.first())), name="refits")
        return [*self.first(), *self.whole(), *([refits] if self.n_refits else [])]

    def first(self) -> list[Phase]:
        """Return the stages before whole paths: what a refit is."""
        stages = ("slopes", self.match_steps, 0.0), ("pieces", self.piece_steps, self.span)
        return [self.stage(name, n, span) for name, n, span in stages if n]

    def whole(self) -> list[Phase]:
        """Return the stages of whole paths, and of populations."""
        paths, crowds = self.path_steps, self.population_steps
        stages = ("paths", paths, 0.3, 0), ("populations", crowds, 1.0, CROWD)
        return [self.stage(name, n, None, share, m) for name, n, share, m in stages if n]

    def stage(
        self, name: str, steps: int, span: float | None, share: float = 1.0, crowd: int = 0
    ) -> Phase:
        """Return a stage of so many steps, at a share of the learning rate, that sees pieces so long."""
        n = math.ceil(steps / EVERY)
        sgd = SGD(lr=share * self.lr, max_epochs=n, clip=1.0, schedule="cosine", chooses=False)
        view = self.view(span, crowd, whole=name != "slopes")
        data, lasts = Together(round(steps / n)), _LASTS[name]
        return Phase(sgd, data=data, name=name, view=view, lasts=lasts)

    def view(
        self, span: float | None, crowd: int = 0, *, whole: bool = False
    ) -> Callable[[Any, Source, Split, Session], tuple[SeriesSource, Split]]:
        """Return what makes series of cells, cut into pieces so long (a share of the time).

        Of the `whole`, series that were held out at random for earlier stages are learned from too: nothing
        is left to be chosen by them.
        """

        def series(
            module: Any,  # noqa: ARG001 (the contract)
            source: Source,
            split: Split,
            run: Session,  # noqa: ARG001 (the contract)
        ) -> tuple[SeriesSource, Split]:
            known = np.sort(np.concatenate([split.train, split.validation]))
            time = source.scaled("time")[known]
            length = float(time.max() - time.min())
            cut = span if span is None else span * length
            width = self.bandwidth * length
            made = SeriesSource.of(
                source, known=known, n_times=self.n_times, bandwidth=width, span=cut,
                smooth=self.targets == "smoothed", crowd=crowd,
            )  # fmt: skip
            return made, split.whole() if whole else split

        return series

    def remarks(self, source: Source, split: Split) -> list[str]:
        """Say what cells of a few times, which are of no trajectory, are learned as."""
        rows = np.union1d(split.train, split.validation)
        told = "trajectory" in source.columns or self.population_steps > 0
        return [] if told or not shared(np.asarray(source.columns["time"])[rows]) else [ONE_COURSE]

    def split(
        self, source: Source, rows: np.ndarray, validation: float | np.ndarray, rng: Rng
    ) -> Split:
        """Hold out whole trajectories; where there is but one, cells spread over its time.

        Cells of a path that is learned from tell little of the next one.
        """
        drawn = super().split(source, rows, validation, rng)
        n, of = len(drawn.validation), source.columns.get("trajectory")
        if isinstance(validation, np.ndarray) or drawn.named or not n:
            return drawn
        chance = rng.numpy("split")
        series = np.unique(np.zeros(1) if of is None else np.asarray(of)[rows])
        if len(series) > 1:
            n = max(1, round(len(series) * validation))
            held_out = np.isin(np.asarray(of)[rows], chance.permutation(series)[:n])
            return Split(rows[~held_out], rows[held_out])
        time = source.scaled("time")[rows]
        spread = np.floor((np.arange(n) + chance.random()) * len(rows) / n).astype(int)
        held_out = np.isin(np.arange(len(rows)), np.argsort(time, kind="stable")[spread])
        if len(np.unique(time[held_out])) < 2:  # of one moment nothing is seen to move
            return Split(rows, rows[:0])
        return Split(rows[~held_out], rows[held_out])

    def reads(self, verb: str) -> tuple[str, ...]:
        """Return the roles that `verb` reads."""
        return ("expression", "counts") if verb == "embed" else ("expression", "counts", "time")


@config
class Penalised(NeuralODE):
    """A neural ODE whose velocity is made to depend on little: what the sparse ones share."""

    strength: float | None = param(
        None, "Weight of the penalty; None: chosen of `strengths` on held-out series.", low=0
    )
    strengths: tuple[float, ...] = param(
        (0.001, 0.003, 0.006, 0.012, 0.025),
        "Weights to choose from, each fit begun at the last one; more where the best is the last or first.",
        low=0,
    )
    match_steps: int = param(
        300,
        "Steps on slopes without a penalty, and of a round under each strength: rounds go on to rest.",
        low=1,
    )

    def first(self) -> list[Phase]:
        """Slopes without a penalty and under each strength, then pieces under the best."""
        strengths = self.strengths if self.strength is None else (self.strength,)
        slopes, *pieces = super().first()
        rested = replace(slopes, learner=ToRest(slopes.learner))
        path = Path(rested, tuple(sorted(strengths)))
        chosen = Phase(path, name="strengths", view=self.view(self.span), lasts="match_steps")
        return [slopes, chosen, *pieces]
