"""Simulated dynamics whose equations are known: what drives what, and what a knock-out does.

Every function returns cells x variables with ``obs["time"]`` and ``obs["trajectory"]``, noisy values (or
counts) in ``X`` and true states in ``layers["true_state"]``. The seed alone decides what comes out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from anndata import AnnData
from jaxtyping import Float
from scipy.integrate import solve_ivp

from ..config.arguments import check_fields, checked
from ..errors import ConfigError, FitError, near

Velocity = Callable[[Float[np.ndarray, " n"]], Float[np.ndarray, " n"]]


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How paths are observed.

    Attributes
    ----------
    n_trajectories, n_times
        Paths, and observations of each.
    duration
        Time from the first to the last.
    irregular
        Draw the times between these at random, for each path anew.
    noise
        Standard deviation of what is added, in units of each variable's spread.
    missing
        Probability that an observation of a path is lacking.
    """

    n_trajectories: int = 20
    n_times: int = 40
    duration: float = 5.0
    irregular: bool = False
    noise: float = 0.05
    missing: float = 0.0

    def __post_init__(self) -> None:
        check_fields(self)
        if min(self.n_trajectories, self.n_times - 1) < 1 or not self.duration > 0:
            raise ConfigError(
                "A path needs two times and a duration above 0, and there must be one."
            )
        if not (self.noise >= 0 and 0 <= self.missing < 1):
            raise ConfigError(
                f"noise={self.noise}, missing={self.missing}: expected 0 or more, below 1."
            )

    def cells(
        self,
        velocity: Velocity,
        starts: Float[np.ndarray, "s n"],
        names: Sequence[str],
        rng: np.random.Generator,
    ) -> AnnData:
        """Follow every start, and observe it."""
        states, tables = [], []
        for number, start in enumerate(starts):
            inner = (
                rng.random(self.n_times - 2)
                if self.irregular
                else np.linspace(0, 1, self.n_times)[1:-1]
            )
            times = self.duration * np.concatenate([[0.0], np.sort(inner), [1.0]])
            solved = solve_ivp(
                lambda _, y: velocity(y),
                (0, self.duration),
                start,
                t_eval=times,
                rtol=1e-6,
                atol=1e-8,
            )
            if not solved.success:
                raise FitError(f"Path {number} could not be followed: {solved.message}")
            keep = rng.random(self.n_times) >= self.missing
            keep[0] = True
            states.append(solved.y.T[keep])
            tables.append(pd.DataFrame({"time": times[keep], "trajectory": f"path_{number}"}))
        state, obs = np.concatenate(states), pd.concat(tables, ignore_index=True)
        seen = state + self.noise * state.std(0) * rng.normal(size=state.shape)
        obs.index = pd.Index([f"cell_{i}" for i in range(len(obs))])
        return AnnData(
            seen.astype(np.float32), obs=obs, var=pd.DataFrame(index=pd.Index(names)),
            layers={"true_state": state.astype(np.float32)},
        )  # fmt: skip


@checked
def simulate_system(name: str, sampling: Sampling | None = None, *, seed: int = 0) -> AnnData:
    """Simulate a system of the textbooks.

    Parameters
    ----------
    name
        ``"damped"``: three damped oscillators in a chain (second order: positions are observed,
        velocities are not); ``"predators"``: Lotka and Volterra's; ``"lorenz"``: Lorenz' of 1963.

    Raises
    ------
    ConfigError
        If there is no such system.

    Examples
    --------
    >>> simulate_system("lorenz", Sampling(n_trajectories=2, n_times=5)).shape
    (10, 3)
    """
    rng, how = np.random.default_rng(seed), sampling or Sampling()
    n = how.n_trajectories
    if name == "damped":
        spring = np.array([[2.0, -1.0, 0.0], [-1.0, 2.0, -1.0], [0.0, -1.0, 2.0]])

        def oscillators(y: np.ndarray) -> np.ndarray:
            return np.concatenate([y[3:], -4 * spring @ y[:3] - 0.3 * y[3:]])

        starts = np.concatenate([rng.normal(size=(n, 3)), np.zeros((n, 3))], 1)
        names = ["position_0", "position_1", "position_2", "velocity_0", "velocity_1", "velocity_2"]
        return how.cells(oscillators, starts, names, rng)[:, :3].copy()
    if name == "predators":

        def predators(y: np.ndarray) -> np.ndarray:
            return np.array([1.3 * y[0] - 0.9 * y[0] * y[1], 0.8 * y[0] * y[1] - 1.8 * y[1]])

        return how.cells(predators, rng.uniform(0.5, 3.0, (n, 2)), ["prey", "predator"], rng)
    if name == "lorenz":

        def lorenz(y: np.ndarray) -> np.ndarray:
            return np.array(
                [10 * (y[1] - y[0]), y[0] * (28 - y[2]) - y[1], y[0] * y[1] - 8 / 3 * y[2]]
            )

        starts = rng.normal(size=(n, 3)) * [8, 8, 5] + [0, 0, 25]
        return how.cells(lorenz, starts, ["x", "y", "z"], rng)
    raise ConfigError(
        f"There is no system {name!r}.{near(name, ('damped', 'predators', 'lorenz'))}"
    )


@dataclass(frozen=True, eq=False)
class GeneNetwork:
    """Genes that activate and repress each other, every one by at most three others.

    Of gene j with activators A, repressors R and h(x) = x³ / (K³ + x³)::

        dx_j/dt = d_j ((b_j + 1.2 mean_A h(x_i)) Π_R (1 − 0.9 h(x_i)) − x_j)

    A gene without activators has 0.7 in their place. Expression is between 0 and about 1.5.

    Attributes
    ----------
    signs
        Genes x genes, row the regulator: 1 activates, −1 represses, 0 neither.
    half
        K of every pair.
    decay, basal
        d and b of every gene.
    """

    signs: Float[np.ndarray, "g g"]
    half: Float[np.ndarray, "g g"]
    decay: Float[np.ndarray, " g"]
    basal: Float[np.ndarray, " g"]

    @classmethod
    @checked
    def random(cls, n_genes: int = 50, *, seed: int = 0) -> GeneNetwork:
        """Draw a network in which the first half of the genes regulate all, each gene by one to three.

        Raises
        ------
        ConfigError
            If there are fewer than eight genes.
        """
        if n_genes < 8:
            raise ConfigError(f"n_genes={n_genes}: a network needs eight at the least.")
        rng = np.random.default_rng([seed, 5])
        signs = np.zeros((n_genes, n_genes))
        for j in range(n_genes):
            others = np.setdiff1d(np.arange(n_genes // 2), [j])
            chosen = rng.choice(others, rng.integers(1, 4), replace=False)
            signs[chosen, j] = rng.choice([1.0, 1.0, -1.0], len(chosen))
        return cls(
            signs, rng.uniform(0.3, 0.7, signs.shape),
            rng.uniform(0.5, 1.5, n_genes), rng.uniform(0.05, 0.3, n_genes),
        )  # fmt: skip

    @property
    def names(self) -> list[str]:
        """Names of the genes."""
        return [f"gene_{i}" for i in range(len(self.signs))]

    @property
    def edges(self) -> pd.DataFrame:
        """True edges: source, target, sign; a gene's decay by itself is none."""
        source, target = np.nonzero(self.signs)
        names = np.array(self.names)
        return pd.DataFrame(
            {"source": names[source], "target": names[target], "sign": self.signs[source, target]}
        )

    def velocity(self, x: Float[np.ndarray, " g"]) -> Float[np.ndarray, " g"]:
        """Return dx/dt."""
        power = np.maximum(x, 0.0)[:, None] ** 3
        bound = power / (power + self.half**3)
        activators = (self.signs > 0).sum(0)
        active = np.where(
            activators > 0, 1.2 * (bound * (self.signs > 0)).sum(0) / np.maximum(activators, 1), 0.7
        )
        free = np.where(self.signs < 0, 1 - 0.9 * bound, 1.0).prod(0)
        return self.decay * ((self.basal + active) * free - x)

    def simulate(
        self,
        sampling: Sampling | None = None,
        *,
        knockout: Sequence[str] = (),
        counts: float | None = None,
        seed: int = 0,
    ) -> AnnData:
        """Simulate paths from random states.

        Parameters
        ----------
        knockout
            Genes that are absent throughout. Starts are those of the same seed without it.
        counts
            Total counts of a cell, to be drawn from the states (Poisson: many are 0), in
            ``layers["counts"]``; then ``X`` is log1p of counts per 10,000.
        """
        unknown = [g for g in knockout if g not in self.names]
        if unknown:
            raise ConfigError(f"There is no gene {unknown[0]!r}.{near(unknown[0], self.names)}")
        how, rng = sampling or Sampling(), np.random.default_rng(seed)
        absent = np.isin(self.names, knockout)
        starts = np.where(absent, 0.0, rng.uniform(0, 1.3, (how.n_trajectories, len(self.signs))))

        def held(x: np.ndarray) -> np.ndarray:
            return np.where(absent, 0.0, self.velocity(x))

        cells = how.cells(held, starts, self.names, rng)
        if counts is not None:
            rate = np.maximum(cells.layers["true_state"], 0.0)
            drawn = rng.poisson(counts * rate / np.maximum(rate.sum(1, keepdims=True), 1e-12))
            drawn[drawn.sum(1) == 0, 0] = 1
            cells.layers["counts"] = drawn.astype(np.float32)
            cells.X = np.log1p(1e4 * drawn / drawn.sum(1, keepdims=True)).astype(np.float32)
        return cells
