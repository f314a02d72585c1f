"""Types are not checked here: users have no such checks, and nonsense must meet the library's own."""

from __future__ import annotations

import jaxtyping
import pytest


@pytest.fixture(autouse=True, scope="module")
def _as_users_have_it():
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
