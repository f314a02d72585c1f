"""What a search of options found, and whether it is better than by chance."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from ..errors import counted
from ..model import Model

#: Refits of the options given and of the best ones, with further seeds.
REFITS = 3


@dataclass(frozen=True, eq=False)
class Tuned:
    """What `tune` returns.

    Attributes
    ----------
    best
        The model with the options of the lowest objective; ``best.fit(…)`` fits it.
    trials
        One row per trial: options, objective on the validation cells, seconds, state, seed, note.
        Trial 0 is the model as it was given.
    refits
        One row per refit of the options given and of the best: seed, objective on the test cells.
    about
        Data fingerprint, schema, model, split, versions: what a reader needs to repeat it.
    """

    best: Model
    trials: pd.DataFrame
    refits: pd.DataFrame
    about: Mapping[str, Any]

    @property
    def improved(self) -> bool:
        """Whether every refit of the best options is better than every one of those given.

        If they made no difference, that would happen in 1 of 20 cases (three against three).
        """
        of = dict(tuple(self.refits.groupby("options")["objective"]))
        # a refit that failed has no objective, and is not better than anything
        return "best" in of and bool(of["best"].max(skipna=False) < of["given"].min(skipna=False))

    def intervals(self) -> pd.DataFrame:
        """Return mean, lowest and highest objective of the refits, on cells held out of everything."""
        return self.refits.groupby("options", sort=False)["objective"].agg(["mean", "min", "max"])

    def verdict(self) -> str:
        """Say in words whether the search found something better than the options given."""
        name, number = type(self.best).__name__, self.trials["objective"].idxmin()
        spans = {
            options: f"{row['mean']:.5g} ({row['min']:.5g} to {row['max']:.5g})"
            for options, row in self.intervals().iterrows()
        }
        failed = self.refits.loc[self.refits["objective"].isna(), "note"]
        if len(failed):
            found = (
                f"Trial {number} has the lowest objective. Whether it beats {name} as given is not known"
                if number
                else f"No trial was better than {name} as given. How much its refits differ is not known"
            )
            how_many = f"{len(failed)} of {counted(len(self.refits), 'refit')} failed"
            return f"{found}: {how_many}, the first by {failed.iloc[0].removeprefix('failed: ')}."
        how = f"mean and range of {counted(REFITS, 'refit')} on test cells"
        if number == 0:
            return f"No trial was better than {name} as given: {spans['given']}, {how}."
        against = f"{spans['best']} against {spans['given']}, {how}"
        if self.improved:
            return f"Trial {number} beats {name} as given: {against}."
        return f"Trial {number} does not beat {name} as given, beyond what refits differ by: {against}."
