"""Scores of several methods: raw, with intervals, one row per method, seed and metric."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData

from .. import store
from ..config.arguments import checked
from ..errors import StoreError, visible
from ..text import shown
from . import saved

#: The row that embeddings are compared with.
BASELINE = "PCA"
#: Tables that not every bench has.
_FURTHER = ("by_class", "curves", "markers", "sizes", "confusion", "calibration")


@dataclass(frozen=True, eq=False)
class ScoreTable:
    """Scores of several methods on the same cells.

    Attributes
    ----------
    kind
        Which bench: ``"integration"``, …
    scores
        Long table: method, seed, metric, value, low, high (95 % bootstrap interval over cells).
    methods
        One row per method: role (baseline, method, ceiling, control), seeds, state of the fits, seconds,
        notes (a list).
    metrics
        One row per metric: name, group, best value, description.
    about
        Data fingerprint, cells, schema, versions, machine: what a reader needs to repeat it.
    embeddings
        Coordinates of the cells by method (first seed), for pictures; not saved.
    labels
        Categories of the cells by what they are called, for pictures; not saved.
    by_class
        Scores of single classes of cells, where a bench looks at them (series, in one of
        dynamics; proteins too, in a probe): method, seed, class, metric, value.
    curves
        What became of fits along rising strengths of a penalty, in a bench of dynamics: method, seed,
        strength, error of held-out series, share of pairs without an effect.
    markers
        In a bench of generation, genes that define types: method, seed, class, gene, and what
        `chreode.metrics.markers.compare_markers` says of each.
    sizes
        How many cells there are of every label and batch, as far as the schema names them: label, batch,
        cells.
    confusion
        In a probe, how many query cells of a type were told to be of which: method, seed, classifier,
        type, told, cells.
    calibration
        In a probe, how sure classifiers were of shared types, and how often right, by bins of confidence:
        method, seed, classifier, confidence, accuracy, cells.
    pairs
        Some real and some generated cells by method (first seed), raw counts in ``X``, their class in
        ``obs["class"]`` and its type in ``obs["type"]``, for pictures; not saved.
    """

    kind: str
    scores: pd.DataFrame
    methods: pd.DataFrame
    metrics: pd.DataFrame
    about: Mapping[str, Any]
    embeddings: Mapping[str, np.ndarray] = field(default_factory=dict, repr=False)
    labels: Mapping[str, pd.Series] = field(default_factory=dict, repr=False)
    by_class: pd.DataFrame = field(default_factory=pd.DataFrame, repr=False)
    curves: pd.DataFrame = field(default_factory=pd.DataFrame, repr=False)
    markers: pd.DataFrame = field(default_factory=pd.DataFrame, repr=False)
    sizes: pd.DataFrame = field(default_factory=pd.DataFrame, repr=False)
    confusion: pd.DataFrame = field(default_factory=pd.DataFrame, repr=False)
    calibration: pd.DataFrame = field(default_factory=pd.DataFrame, repr=False)
    pairs: Mapping[str, tuple[AnnData, AnnData]] = field(default_factory=dict, repr=False)

    def table(self) -> pd.DataFrame:
        """Return methods x metrics, means over seeds of raw scores, with seeds and a note."""
        wide = self._wide("value")
        wide.insert(0, "role", self.methods["role"])
        notes = self.methods["notes"].map("; ".join).rename("note")
        return wide.join([self.methods["seeds"], notes])

    def _repr_html_(self) -> str:
        # metrics are rows, since a notebook is long and not wide
        seen: Any = shown(self.table()).T.to_html(float_format="{:z.3f}".format, na_rep="–")
        kind = escape(visible(self.kind.capitalize()))
        return f"<p>{kind} bench. Raw scores, means over seeds.</p>{seen}"

    def intervals(self) -> pd.DataFrame:
        """Return methods x metrics as ``low to high``: the union of the seeds' bootstrap intervals."""
        low, high = self._wide("low", "min"), self._wide("high", "max")
        return low.combine(
            high, lambda a, b: a.map("{:z.3f}".format) + " to " + b.map("{:z.3f}".format)
        )

    def of_classes(self) -> pd.DataFrame:
        """Return metric and class x methods, means over seeds: of single classes, where a bench has them."""
        found = self.by_class.groupby(["metric", "class", "method"], sort=False)["value"].mean()
        return found.unstack("method").reindex(columns=self.methods.index)

    def lacking(self) -> dict[str, str]:
        """Return the metrics that no method has, and why."""
        found = self.scores.groupby("metric", sort=False).agg(
            n=("value", "count"), why=("reason", "max")
        )
        return found.loc[found["n"] == 0, "why"].to_dict()

    @checked
    def save(self, path: str | Path) -> Path:
        """Write scores, methods and provenance as JSON.

        Raises
        ------
        StoreError
            If the place cannot be written.
        """
        tables = {
            n: getattr(self, n).reset_index().to_dict("records")
            for n in ("scores", "methods", "metrics", *_FURTHER)
        }
        with store.aside(path) as made:
            made.write_text(
                json.dumps({"kind": self.kind, "about": dict(self.about), **tables}, indent=1)
            )
        return Path(path)

    @classmethod
    @checked
    def load(cls, path: str | Path) -> Any:
        """Read what `save` wrote.

        Raises
        ------
        StoreError
            If the file is absent, cut short or no bench.
        """
        try:
            kind, tables, about = saved.read(Path(path))
        except (OSError, ValueError, RecursionError) as error:
            raise StoreError(
                f"{path} is no saved bench, which is JSON that Bench.save or 'chreode bench … -o "
                f"bench.json' wrote ({type(error).__name__}: {error})."
            ) from error
        methods, metrics = (
            tables.pop(name).set_index(key)
            for name, key in (("methods", "method"), ("metrics", "metric"))
        )
        return cls(kind, tables.pop("scores"), methods, metrics, about, **tables)

    def _wide(self, value: str, how: str = "mean") -> pd.DataFrame:
        wide = self.scores.pivot_table(
            index="method", columns="metric", values=value, aggfunc=how, dropna=False, sort=False
        )
        wide.columns.name = None
        return wide.reindex(index=self.methods.index, columns=self.metrics.index)
