"""A bar that ends early ends as one that is complete: notebooks leave others in red, as of a failure."""

from __future__ import annotations

import pytest

from chreode.compute.progress import bar


def test_what_ends_early_is_complete_and_what_fails_is_not():
    with bar(10, "fit", run_progress=True) as shown:
        shown.update(3)
    assert shown.n == shown.total == 3
    with pytest.raises(ValueError), bar(10, "fit", run_progress=True) as shown:
        raise ValueError
    assert shown.total == 10
