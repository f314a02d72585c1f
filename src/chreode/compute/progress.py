"""A bar for work that takes long."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tqdm.auto import tqdm

from ..errors import visible


@contextmanager
def bar(total: int, what: str, run_progress: bool | None) -> Iterator[Any]:  # noqa: FBT001 (tri-state)
    """Yield a progress bar that appears after two seconds (None: only on a terminal)."""
    disable = None if run_progress is None else not run_progress
    # a name in a file must not steer the terminal
    with tqdm(total=total, desc=visible(what), delay=2, disable=disable, leave=False) as shown:
        yield shown
        shown.total = shown.n  # what ends early is no failure, which notebooks leave in red
