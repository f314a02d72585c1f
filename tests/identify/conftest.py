"""Simulated cells, and readings that take little time."""

from __future__ import annotations

import importlib

import pytest
from identify.worlds import World


@pytest.fixture(scope="module")
def world():
    return World()


@pytest.fixture
def fewer(monkeypatch):
    """Two halvings and few resamples, where numbers are not looked at closely."""
    module = importlib.import_module("chreode.identify.coverage")  # the function has the same name
    monkeypatch.setattr(module, "HALVINGS", 2)
    monkeypatch.setattr(module, "DRAWS", 50)
