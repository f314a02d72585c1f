"""Outcomes of runs that nobody made, of which studies are built."""

from __future__ import annotations

import numpy as np

from chreode import config
from chreode.identify import Setting, Study
from chreode.identify.study import named
from chreode.trials.trial import Outcome, Result, Trial


def sphere(n: int = 400, k: int = 3, seed: int = 0) -> np.ndarray:
    z = np.random.default_rng(seed).normal(size=(n, k))
    return z / np.linalg.norm(z, axis=1, keepdims=True)


def outcome(
    setting: Setting, r2: float, *, excess: float = 0.3, kernel: float = 0.5, state: str = "rested"
) -> Outcome:
    z = sphere(k=setting.n_latent)
    axes = [r2] * setting.n_latent
    row = {
        "r2": r2, "r2_axis": axes, "r2_untrained": 0.45, "r2_kernel": kernel, "r2_kernel_axis": axes,
        "mcc": 0.8, "angle": 0.02, "orthogonal": 0.03, "alignment": 0.3, "uniformity": -2.0,
        "loss": 6.7 + excess, "identity": 6.7, "closed": 6.694, "state": state, "seconds": 12.3,
    }  # fmt: skip
    return Outcome(row=row, arrays={"latents": z, "recovered": -z})


def not_called(_: object) -> Result:
    raise AssertionError


def study(kind: str, runs: list[tuple[Setting, int, Outcome]]) -> Study:
    trials = [
        Trial(
            f"{named(setting)}, seed {seed}", not_called, {**config.as_dict(setting), "seed": seed}
        )
        for setting, seed, _ in runs
    ]
    return Study.of(kind, trials, [found for *_, found in runs], {"study": kind})


def of(mixing: str = "identity", **how) -> Setting:
    return Setting(mixing=mixing, **how)


def violated(mixing: str = "identity", sampler: str = "theorem", ratio: float = 1.0) -> Setting:
    return of(mixing, n_fixed=1, sampler=sampler, ratio=ratio)
