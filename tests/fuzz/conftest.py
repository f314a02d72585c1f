"""Types are not checked here: nonsense must meet the library's own checks."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True, scope="module")
def _unchecked(as_users_have_it):
    """Let nonsense through, as it comes from users."""
