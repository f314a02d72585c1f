"""What the tests of every model share: its fit on the simulated cells, made once, and quick choices."""

from __future__ import annotations

import pytest

import chreode as ch


@pytest.fixture(autouse=True, scope="module")
def _few(few_settings):
    """Choose quickly: what is chosen matters little here."""


@pytest.fixture(scope="session")
def fitted_once(quick, _simulated):
    """Return the fit of a model on the simulated cells with a schema, made once."""
    made: dict[tuple[str, str], ch.Fitted] = {}

    def fit(cls, schema):
        key = cls.__name__, str(schema)
        if key not in made:
            made[key] = quick(cls).fit(_simulated.copy(), schema, seed=0)
        return made[key]

    return fit
