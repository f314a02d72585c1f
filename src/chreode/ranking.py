"""What `rank` may return: which feature drives which, or how much each of them matters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import pandas as pd
from jaxtyping import Float
from torch import Tensor


@runtime_checkable
class Ranking(Protocol):
    """What a module's `rank` returns."""

    @property
    def score(self) -> Float[Tensor, " g"]:
        """How much each feature matters; high is important."""
        ...

    def table(self, names: Sequence[str]) -> pd.DataFrame:
        """Return the rows that a user sees, the most important first, given the names of the features."""
        ...


@dataclass(frozen=True, eq=False)
class Edges:
    """Which feature drives which.

    Attributes
    ----------
    weight
        Signed; row, what drives; column, what is driven.
    confidence
        Alike, from 0 to 1; NaN where none was computed.
    """

    weight: Float[Tensor, "g g"]
    confidence: Float[Tensor, "g g"]

    @property
    def score(self) -> Float[Tensor, " g"]:
        """The sum of a feature's absolute weights on others."""
        return self.weight.abs().sum(1) - self.weight.diagonal().abs()

    def table(self, names: Sequence[str]) -> pd.DataFrame:
        """Return ``source``, ``target``, ``weight`` and ``confidence`` of edges that are not exactly 0."""
        weight, confidence, known = (
            self.weight.detach().cpu().numpy(),
            self.confidence.detach().cpu().numpy(),
            np.array(names),
        )
        source, target = np.nonzero((weight != 0) & ~np.eye(len(weight), dtype=bool))
        table = pd.DataFrame({
            "source": known[source], "target": known[target], "weight": weight[source, target],
            "confidence": confidence[source, target],
        })  # fmt: skip
        return table.sort_values(
            "weight", key=np.abs, ascending=False, ignore_index=True, kind="stable"
        )


@dataclass(frozen=True, eq=False)
class Scores:
    """How much each feature matters.

    Attributes
    ----------
    score
        High is important.
    confidence
        From 0 to 1; NaN where none was computed.
    """

    score: Float[Tensor, " g"]
    confidence: Float[Tensor, " g"]

    def table(self, names: Sequence[str]) -> pd.DataFrame:
        """Return ``feature``, ``score`` and ``confidence`` of every feature."""
        table = pd.DataFrame({
            "feature": np.array(names), "score": self.score.detach().cpu().numpy(),
            "confidence": self.confidence.detach().cpu().numpy(),
        })  # fmt: skip
        return table.sort_values("score", ascending=False, ignore_index=True, kind="stable")
