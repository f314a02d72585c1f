"""What a grid of runs has shown: rows, tables and pictures."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import t

from .. import config, store
from ..compute.convergence import read_state
from ..config.arguments import checked
from ..errors import ConfigError, StoreError, counted
from ..trials.trial import Outcome, Trial
from .answer import answer, summary
from .page import write_study
from .published import published_r2
from .recovery import Setting

#: Values of a run that are averaged over seeds, and what they are called.
VALUES = {
    "r2": "R²", "worst": "R² of the worst axis", "r2_kernel": "R² by kernel regression",
    "r2_untrained": "R², untrained", "mcc": "MCC",
    "angle": "angle error", "orthogonal": "distance to orthogonal", "alignment": "alignment",
    "uniformity": "uniformity", "loss": "loss", "excess": "loss above the identity's",
    "closed": "identity's loss, closed form",
}  # fmt: skip
LOSSES = {0.0: "InfoNCE", 1.0: "corrected"}
#: What a study may ask.
KINDS = ("diversity", "ratio", "encoders")
#: What `recover` finds by axis, and as one number.
_BY_AXIS = ("r2_axis", "r2_kernel_axis")
_NUMBERS = (*(name for name in VALUES if name not in ("worst", "excess")), "identity", "seconds")


@dataclass(frozen=True, eq=False)
class Study:
    """The runs of a grid.

    Attributes
    ----------
    kind
        What it asks: "diversity", "ratio" or "encoders".
    rows
        One row for each setting and seed: ``run`` (what the setting is called), ``seed``, the options of
        `Setting`, what `recover` returned, ``worst`` (R² of the worst axis), ``excess`` (loss above that of
        the identity on the same draws), and ``failed`` (why, or "").
    about
        Versions, machine and threads.
    points
        For each run of the first seed, latents and what was recovered of them, for pictures.
    """

    kind: str
    rows: pd.DataFrame
    about: Mapping[str, Any]
    points: Mapping[str, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict, repr=False)

    @classmethod
    def of(
        cls,
        kind: str,
        trials: Sequence[Trial],
        outcomes: Sequence[Outcome],
        about: Mapping[str, Any],
    ) -> Study:
        """Gather what became of trials, each of which is about a setting and a seed."""
        rows: list[dict[str, Any]] = []
        points: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        for trial, outcome in zip(trials, outcomes, strict=True):
            options = {k: v for k, v in trial.about.items() if k != "seed"}
            setting = config.from_dict(Setting, options)
            row = row_of(setting, trial.about["seed"], outcome.row)
            rows.append({**row, "failed": outcome.failed})
            if not outcome.failed and row["seed"] == trials[0].about["seed"]:
                points[row["run"]] = outcome.arrays["latents"], outcome.arrays["recovered"]
        return cls(kind, pd.DataFrame(rows), about, points)

    def table(self) -> pd.DataFrame:
        """Return a row for each setting: means over seeds, a 95 % interval of R², and the paper's R².

        The interval is Student's, of the mean over seeds; with fewer than three seeds there is none.
        ``lowest`` and ``highest`` are R² of single seeds: where a loss has several optima, they are far apart
        and no mean is typical.
        """
        by_run = self.rows[self.rows["failed"] == ""].groupby("run", sort=False)
        runs = pd.Index(self.rows["run"].unique(), name="run")
        n, spread = by_run["r2"].count(), by_run["r2"].sem()
        # of two seeds, Student's interval is thirteen standard errors to either side and tells nothing
        half = (spread * t.ppf(0.975, (n - 1).clip(lower=1))).where(n > 2)
        mean = by_run[list(VALUES)].mean()
        mean.insert(1, "low", mean["r2"] - half)
        mean.insert(2, "high", mean["r2"] + half)
        mean.insert(3, "lowest", by_run["r2"].min())
        mean.insert(4, "highest", by_run["r2"].max())
        mean["published"] = by_run["published"].first()
        mean["seeds"] = n
        mean["seconds"] = by_run["seconds"].mean()
        failed = self.rows[self.rows["failed"] != ""].groupby("run")["failed"].first()
        notes = "failed: " + failed
        improving = by_run["state"].apply(lambda s: int((s == "still improving").sum()))
        mean["still improving"] = improving
        return mean.reindex(runs).assign(note=notes.reindex(runs).fillna(""))

    def axes(self) -> pd.DataFrame:
        """Return R² of each latent coordinate, means over seeds; fixed coordinates come first."""
        done = self.rows[self.rows["failed"] == ""]
        by_axis = pd.DataFrame(done["r2_axis"].tolist(), index=done["run"])
        by_axis.columns = [f"axis {i + 1}" for i in by_axis]
        return by_axis.groupby(level=0, sort=False).mean()

    @checked
    def save(self, path: str | Path) -> Path:
        """Write rows and versions as JSON.

        Raises
        ------
        StoreError
            If the place cannot be written.
        """
        rows = self.rows.astype(object).where(self.rows.notna(), None)  # JSON has no NaN
        made = {"kind": self.kind, "about": dict(self.about), "rows": rows.to_dict("records")}
        with store.aside(path) as aside:
            aside.write_text(json.dumps(made, indent=1, allow_nan=False))
        return Path(path)

    @classmethod
    @checked
    def load(cls, path: str | Path) -> Study:
        """Read what `save` wrote, which holds no points for pictures.

        Raises
        ------
        StoreError
            If the file is absent, cut short or no study.
        """
        try:
            made = json.loads(Path(path).read_text())
            kind, about = made["kind"], dict(made["about"])
            if kind not in KINDS:
                raise ValueError(f"kind is none of {', '.join(KINDS)}")
            rows = pd.DataFrame([_read_row(row) for row in made["rows"]])
            if not len(rows) or (rows["failed"] != "").all():
                raise ValueError("there is no row of a run that succeeded")
            options = rows[[each.name for each in fields(Setting)]].astype(str)
            if (
                rows.duplicated(["run", "seed"]).any()
                or len(options.drop_duplicates()) > rows["run"].nunique()
            ):
                raise ValueError("rows of the same name are of different runs")
        except (
            OSError,
            ArithmeticError,
            ValueError,
            TypeError,
            KeyError,
            RecursionError,
            ConfigError,
        ) as error:
            raise StoreError(
                f"{path} is no saved study, which is JSON that Study.save or 'chreode identify … -o "
                f"rows.json' wrote ({type(error).__name__}: {error})."
            ) from error
        return cls(kind, rows, about)

    def summary(self) -> pd.DataFrame:
        """Return what matters most of `table`: R² with its interval, what to compare it with, and notes."""
        return summary(self.table())

    def answer(self) -> list[str]:
        """Return in sentences what the runs say, and what to know of their seeds and fits."""
        return answer(self)

    @checked
    def report(self, path: str | Path) -> Path:
        """Write one HTML page: the answer in sentences, then tables and pictures.

        Raises
        ------
        StoreError
            If the place cannot be written.
        """
        return write_study(path, self)


def row_of(setting: Setting, seed: int, found: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row of `Study.rows`, but for ``failed``, from what `recover` returned, or nothing."""
    row = {"run": named(setting), "seed": seed, **config.as_dict(setting), **found}
    if found:
        row |= {"worst": min(found["r2_axis"]), "excess": found["loss"] - found["identity"]}
    return {**row, "published": published_r2(setting)}


def _read_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row of a file, which may be a stranger's: what can be reckoned is not read."""
    setting = config.from_dict(Setting, {each.name: row[each.name] for each in fields(Setting)})
    seed, failed = int(row["seed"]), str(row["failed"])
    found: dict[str, Any] = {}
    if not failed:
        found = {name: math.nan if row[name] is None else float(row[name]) for name in _NUMBERS}
        for name in _BY_AXIS:
            found[name] = [float(value) for value in row[name]]
            if len(found[name]) != setting.n_latent:
                raise ValueError(f"{name} has not {counted(setting.n_latent, 'value')}")
        found["state"] = read_state(row)
    return {**row_of(setting, seed, found), "failed": failed}


def named(setting: Setting) -> str:
    """Return what a setting is called in tables.

    Examples
    --------
    >>> named(Setting(mixing="linear", n_fixed=1, ratio=1.0))
    'linear, 1 fixed (theorem), corrected'
    """
    parts = [setting.mixing]
    if setting.n_fixed == 0:
        parts.append("none fixed")
    elif setting.n_fixed == setting.n_latent:
        parts.append("all fixed")
    else:
        parts.append(f"{setting.n_fixed} fixed ({setting.sampler})")
    parts.append(LOSSES.get(setting.ratio, f"ratio {setting.ratio:.10g}"))
    return ", ".join(parts + ["inverse encoder"] * (setting.encoder == "inverse"))
