"""Neural ordinary differential equations of cell states: forecasts, and the genes that drive them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, ClassVar, Literal

import numpy as np

from ..compute.rng import Rng
from ..config import config, param
from ..data.design import ONE_COURSE, shared
from ..data.sampler import FullBatch
from ..data.series_source import SeriesSource
from ..data.source import Source
from ..learn.phase import Phase, Session, Split
from ..learn.sgd import SGD
from ..model import Model
from ..schema import Spec
from .dynamics.dynamics import Dynamics
from .dynamics.path import Path
from .dynamics.refits import Refits
from .dynamics.rest import UntilConverged
from .dynamics.vectorfield import VectorField

#: Steps of an epoch, about: between looks at the held-out series.
EVERY = 20
#: Options that say how long the stages last.
_LASTS = {
    "slopes": "match_steps", "pieces": "piece_steps", "paths": "path_steps",
    "populations": "population_steps",
}  # fmt: skip
#: Cells of a population, the particles that one solve moves.
N_PARTICLES = 128


@config
class NeuralODE(Model):
    """A neural ODE: a network gives the velocity of a cell from its state.

    For the state x of a trajectory (log1p counts per 10,000, or `expression` if the schema names it)::

        dx/dt = f(x),   x(t_0) smoothed from the first cells

    The network f is trained in stages. It first matches the slopes of smoothed trajectories, which needs
    no ODE solver. Then the ODE is solved over short pieces of trajectories, then over whole ones. Of
    several trajectories, some are held out at random for choices, such as the strength of a penalty, and
    used for training afterwards. Trajectories that `fit` is to hold out are never used for training.

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
    #: Whether each gene has a network of its own.
    per_output: ClassVar[bool] = False

    n_latent: int = param(
        10, "Number of coordinates that `embed` returns; forecasts do not depend on it.", low=1
    )
    hidden: tuple[int, ...] | None = param(
        None,
        "Number of units in each hidden layer; None: one layer of 128 units or, in models with a network "
        "for each gene, of 16, and fewer beyond 100 genes.",
        low=1,
    )
    activation: Literal["elu", "tanh", "silu"] = param(
        "silu", "Activation function between the layers."
    )
    n_times: int = param(
        100,
        "Largest number of time points per trajectory; if there are more, cells are averaged into this "
        "number of metacells.",
        low=2,
    )
    bandwidth: float = param(
        0.03,
        "Standard deviation of the smoothing kernel, as a share of the time from first to last cell; it is "
        "widened where times are few.",
        low=1e-4,
        high=1,
    )
    solver: Literal["dopri5", "tsit5", "rk4"] = param(
        "dopri5", "Solver of the ODE: dopri5 and tsit5 adapt their steps, rk4 takes 20 equal ones."
    )
    tolerance: float = param(
        1e-3, "Error that dopri5 and tsit5 allow per step; rk4 ignores it.", low=1e-8, high=0.1
    )
    match_steps: int = param(
        1000, "Training steps of stage 1, which matches the slopes of smoothed trajectories.", low=0
    )
    piece_steps: int = param(
        400, "Training steps of stage 2, which solves the ODE over pieces of trajectories.", low=0
    )
    span: float = param(
        0.15,
        "Length of the pieces of stage 2, as a share of the time from first to last cell.",
        low=0.01,
        high=1,
    )
    path_steps: int = param(
        200, "Training steps of stage 3, which solves the ODE over whole trajectories.", low=0
    )
    population_steps: int = param(
        0,
        "Training steps of stage 4, which moves cells of the first time until they are distributed like "
        "cells of later times; 0: no stage 4.",
        low=0,
    )
    targets: Literal["cells", "smoothed"] = param(
        "cells", "What stages 2 and 3 compare forecasts with: the cells, or their smoothed states."
    )
    jitter: float = param(
        0.35,
        "Noise added to starting states in training, in standard deviations of each variable of the state.",
        low=0,
    )
    n_refits: int = param(
        0,
        "Number of refits on resampled trajectories, and as many on shuffled ones, for the confidence of "
        "`rank`; 0: no confidence, else use 5 or more.",
        low=0,
    )
    lr: float = param(
        3e-3, "Learning rate of Adam at the start of a stage; stage 3 starts at 0.3 of it.", low=0
    )

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
        """Return the number of units of each hidden layer; all first layers have at most 1,600 together."""
        each = (max(2, min(16, 1600 // n)),) if self.per_output else (128,)
        return each if self.hidden is None else self.hidden

    def phases(self) -> list[Phase]:
        """Return the stages of a fit: slopes, pieces, whole trajectories, populations and refits."""
        refits = Phase(Refits(self.n_refits, tuple(self.first())), name="refits")
        return [*self.first(), *self.whole(), *([refits] if self.n_refits else [])]

    def first(self) -> list[Phase]:
        """Return the stages before whole trajectories, which are also those of a refit."""
        stages = ("slopes", self.match_steps, 0.0), ("pieces", self.piece_steps, self.span)
        return [self.stage(name, n, span) for name, n, span in stages if n]

    def whole(self) -> list[Phase]:
        """Return the stages of whole trajectories and of populations."""
        paths, populations = self.path_steps, self.population_steps
        stages = ("paths", paths, 0.3, 0), ("populations", populations, 1.0, N_PARTICLES)
        return [self.stage(name, n, None, share, m) for name, n, share, m in stages if n]

    def stage(
        self, name: str, steps: int, span: float | None, share: float = 1.0, n_particles: int = 0
    ) -> Phase:
        """Return a stage of `steps` steps, at a share of the learning rate, over pieces of length `span`."""
        n = math.ceil(steps / EVERY)
        sgd = SGD(lr=share * self.lr, max_epochs=n, clip=1.0, schedule="cosine", chooses=False)
        view = self.view(span, n_particles, whole=name != "slopes")
        data, lasts = FullBatch(round(steps / n)), _LASTS[name]
        return Phase(sgd, data=data, name=name, view=view, lasts=lasts)

    def view(
        self, span: float | None, n_particles: int = 0, *, whole: bool = False
    ) -> Callable[[Any, Source, Split, Session], tuple[SeriesSource, Split]]:
        """Return a function that turns cells into series, cut into pieces of `span` (a share of the time).

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
                smooth=self.targets == "smoothed", n_particles=n_particles,
            )  # fmt: skip
            return made, split.whole() if whole else split

        return series

    def remarks(self, source: Source, split: Split) -> list[str]:
        """Return the note that cells of few times, without a trajectory, are fitted as one trajectory."""
        rows = np.union1d(split.train, split.validation)
        exempt = "trajectory" in source.columns or self.population_steps > 0
        return (
            [] if exempt or not shared(np.asarray(source.columns["time"])[rows]) else [ONE_COURSE]
        )

    def split(
        self, source: Source, rows: np.ndarray, validation: float | np.ndarray, rng: Rng
    ) -> Split:
        """Hold out whole trajectories; if there is only one, hold out cells spread over its time.

        Cells of a training trajectory would say little about how well a new trajectory is forecast.
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
    """What the sparse models share: a penalty, whose strength is chosen on held-out trajectories."""

    strength: float | None = param(
        None,
        "Weight of the penalty; None: chosen from `strengths` by the error on held-out trajectories.",
        low=0,
    )
    strengths: tuple[float, ...] = param(
        (0.001, 0.003, 0.006, 0.012, 0.025),
        "Penalty weights to try in rising order, each from the fit before; more are tried if the best is at "
        "an end.",
        low=0,
    )
    match_steps: int = param(
        300,
        "Training steps of stage 1, which matches slopes: first without a penalty, then in each round at "
        "each strength. Rounds are repeated until they converge.",
        low=1,
    )

    def first(self) -> list[Phase]:
        """Return the first stages: slopes without a penalty and at each strength, then pieces at the best."""
        strengths = self.strengths if self.strength is None else (self.strength,)
        slopes, *pieces = super().first()
        until_converged = replace(slopes, learner=UntilConverged(slopes.learner))
        path = Path(until_converged, tuple(sorted(strengths)))
        chosen = Phase(path, name="strengths", view=self.view(self.span), lasts="match_steps")
        return [slopes, chosen, *pieces]
