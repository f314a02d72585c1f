"""What a user pays for by importing, and what is never installed."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib.metadata import requires

import pytest

import chreode as ch


@pytest.mark.parametrize(
    ("code", "absent"),
    [
        ("import chreode", ["torch", "anndata", "pandas", "sklearn", "matplotlib", "scipy"]),
        ("import chreode; chreode.Schema(counts='X')", ["torch", "anndata"]),
        ("import chreode.registry as r; r.keys()", ["torch", "anndata"]),
    ],
)
def test_importing_is_light(code, absent):
    script = f"{code}; import sys; print([m for m in {absent} if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_names_are_found_and_strangers_refused():
    assert ch.SCVI.__name__ == "SCVI"
    assert "SCVI" in dir(ch)
    with pytest.raises(AttributeError, match="no attribute 'scvi2'"):
        _ = ch.scvi2


def test_the_core_needs_no_framework():
    named = {re.match(r"[\w-]+", line)[0].lower() for line in requires("chreode")}
    unwanted = {
        "jax",
        "lightning",
        "pytorch-lightning",
        "pyro-ppl",
        "hydra-core",
        "torchvision",
        "lightly",
    }
    assert named
    assert not named & unwanted
