"""Every example of a docstring runs and prints what it says."""

from __future__ import annotations

import doctest
import importlib
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "src" / "chreode"
WITH_EXAMPLES = [
    file for file in sorted(PACKAGE.rglob("*.py")) if ">>> " in file.read_text(encoding="utf-8")
]
EXTRAS = ("igraph", "umap", "harmonypy")


def name_of(file: Path) -> str:
    parts = file.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


@pytest.mark.parametrize("file", WITH_EXAMPLES, ids=name_of)
def test_examples_print_what_they_say(file):
    try:
        module = importlib.import_module(name_of(file))
    except ModuleNotFoundError as error:
        if error.name not in EXTRAS:
            raise
        pytest.skip(f"needs {error.name}, of the extra 'bench'")
    result = doctest.testmod(module)
    assert result.failed == 0
    # an example that the finder passes over would be no example
    assert result.attempted == file.read_text(encoding="utf-8").count(">>> ")
