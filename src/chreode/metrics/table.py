"""Scores of several methods: raw, with intervals, one row per method, seed and metric."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from pandas.api.types import is_numeric_dtype

from .. import store
from ..compute.convergence import read_state
from ..config.arguments import checked
from ..errors import StoreError
from ..text import shown

#: The row that embeddings are compared with.
BASELINE = "PCA"
#: Columns that hold text, and columns that hold numbers.
_COLUMNS = {
    "scores": (("method", "metric", "reason"), ("seed", "value", "low", "high")),
    "methods": (("method", "role", "state", "note"), ("seeds", "seconds")),
    "metrics": (("metric", "name", "group", "about"), ("best",)),
}


#: Tables that not every bench has.
_FURTHER = ("by_class", "curves", "markers", "sizes")


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
        One row per method: role (baseline, method, ceiling), seeds, state of the fits, seconds, note.
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
        dynamics): method, seed, class, metric, value.
    curves
        What became of fits along rising strengths of a penalty, in a bench of dynamics: method, seed,
        strength, error of held-out series, share of pairs without an effect.
    markers
        In a bench of generation, genes that define types: method, seed, class, gene, and what
        `chreode.metrics.markers.compare_markers` says of each.
    sizes
        How many cells there are of every label and batch, as far as the schema names them: label, batch,
        cells.
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
    pairs: Mapping[str, tuple[AnnData, AnnData]] = field(default_factory=dict, repr=False)

    def table(self) -> pd.DataFrame:
        """Return methods x metrics, means over seeds of raw scores, with seeds and a note."""
        wide = self._wide("value")
        wide.insert(0, "role", self.methods["role"])
        return wide.join(self.methods[["seeds", "note"]])

    def _repr_html_(self) -> str:
        # metrics are rows, since a notebook is long and not wide
        seen: Any = shown(self.table()).T.to_html(float_format="{:z.3f}".format, na_rep="–")
        return f"<p>{self.kind.capitalize()} bench. Raw scores, means over seeds.</p>{seen}"

    def intervals(self) -> pd.DataFrame:
        """Return methods x metrics as ``low to high``: the union of the seeds' bootstrap intervals."""
        low, high = self._wide("low", "min"), self._wide("high", "max")
        return low.combine(
            high, lambda a, b: a.map("{:z.3f}".format) + " to " + b.map("{:z.3f}".format)
        )

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
            read = json.loads(Path(path).read_text())
            tables = {n: pd.DataFrame(read[n]) for n in ("scores", "methods", "metrics")}
            tables["methods"]["state"] = [read_state(row) for row in read["methods"]]
            if not (
                isinstance(read["kind"], str) and isinstance(read["about"].get("schema", {}), dict)
            ):
                raise ValueError("kind is no text, or schema no table")
            for name, (texts, numbers) in _COLUMNS.items():
                typed = [isinstance(v, str) for column in texts for v in tables[name][column]]
                typed += [is_numeric_dtype(tables[name][column]) for column in numbers]
                if not all(typed):
                    raise ValueError(f"{name} has text for numbers, or numbers for text")
            _require_sizes(pd.DataFrame(read.get("sizes", [])))
            return cls(
                read["kind"],
                tables["scores"].drop(columns="index"),
                tables["methods"].set_index("method"),
                tables["metrics"].set_index("metric"),
                read["about"],
                **{
                    n: pd.DataFrame(read.get(n, [])).drop(columns="index", errors="ignore")
                    for n in _FURTHER
                },
            )
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise StoreError(
                f"{path} is no saved bench, which is JSON that Bench.save or 'chreode bench … -o "
                f"bench.json' wrote ({type(error).__name__}: {error})."
            ) from error

    def _wide(self, value: str, how: str = "mean") -> pd.DataFrame:
        wide = self.scores.pivot_table(
            index="method", columns="metric", values=value, aggfunc=how, dropna=False, sort=False
        )
        wide.columns.name = None
        return wide.reindex(index=self.methods.index, columns=self.metrics.index)


def _require_sizes(table: pd.DataFrame) -> None:
    """Refuse what counts no cells."""
    named = table.columns.intersection(["label", "batch"])
    texts = [isinstance(value, str) for name in named for value in table[name]]
    if len(table) and not (
        len(named) and all(texts) and table.get("cells", table[named[0]]).dtype.kind == "i"
    ):
        raise ValueError("sizes has text for numbers, or numbers for text")
