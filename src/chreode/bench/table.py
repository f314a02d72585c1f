"""The result of a bench: scores that can report themselves."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..config.arguments import checked
from ..metrics.table import ScoreTable
from ..report import write_bench


@dataclass(frozen=True, eq=False)
class Bench(ScoreTable):
    """Scores of several methods on the same cells; see `ScoreTable` for its tables."""

    @checked
    def report(self, path: str | Path) -> Path:
        """Write one self-contained HTML page with tables and pictures, and return its path."""
        return write_bench(path, self)
