"""Every message and help text: whole spaces, numbers that agree with their nouns, the field's words."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import chreode
from chreode.errors import counted

SOURCE = Path(chreode.__file__).parent
#: What is countable in a message: `counted` writes them after a number, so that one is no "1 cells".
NOUNS = (
    "batches", "bytes", "categories", "cells", "classes", "columns", "counts", "dimensions", "draws",
    "edges", "entries", "epochs", "features", "files", "fits", "genes", "iterations", "labels",
    "markers", "metrics", "minibatches", "modalities", "neighbours", "numbers",
    "paths", "pieces", "processes", "refits", "results", "rows", "seeds", "steps", "threads",
    "trajectories", "trials", "types", "values", "weights",
)  # fmt: skip
#: Where text is said: to whom does not matter.
SAYING = re.compile(r"(Error|Warning|warn|Finding|param|Answer|Parameter|Section|App|print)$")


def texts() -> Iterator[tuple[str, str, list[str]]]:
    """Yield place, template with {} for what is filled in, and what stands behind each number."""
    for file in sorted(SOURCE.rglob("*.py")):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        docs = {
            id(node.body[0].value)
            for node in ast.walk(tree)
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef))
            and node.body
            and isinstance(node.body[0], ast.Expr)
        }
        inside = {
            id(part)
            for node in ast.walk(tree)
            if isinstance(node, ast.JoinedStr)
            for part in ast.walk(node)
            if part is not node
        }
        for node in ast.walk(tree):
            if id(node) in docs | inside:
                continue
            place = f"{file.relative_to(SOURCE)}:{getattr(node, 'lineno', 0)}"
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield place, node.value, []
            if isinstance(node, ast.JoinedStr):
                parts = [str(v.value) if isinstance(v, ast.Constant) else "{}" for v in node.values]
                pairs = zip(node.values, node.values[1:], strict=False)
                behind = [
                    f"{{{ast.unparse(value.value)}}}{after.value}"
                    for value, after in pairs
                    if isinstance(value, ast.FormattedValue) and isinstance(after, ast.Constant)
                ]
                yield place, "".join(parts), behind


SENTENCES = [(place, text, behind) for place, text, behind in texts() if text.count(" ") > 3]


def test_texts_have_whole_spaces():
    wrong = [
        (place, found[0])
        for place, text, _ in SENTENCES
        if (
            found := re.findall(
                r"(?<=\w)  +\w+|\w+ [,;.](?= |$)|[a-z][,;][A-Za-z]\w*|\b(?!ch\b|pandas\b)[a-z]+\.[A-Z]\w+",
                text,
            )
        )
    ]
    assert not wrong


def test_a_number_agrees_with_its_noun():
    """`counted(n, "cell")` does; a number and a plural written side by side does not, when n is 1."""
    noun = re.compile(rf"^\{{.*\}} ({'|'.join(NOUNS)})\b")
    wrong = [(place, item) for place, _, behind in SENTENCES for item in behind if noun.match(item)]
    assert not wrong, f"{len(wrong)}: {wrong}"


@pytest.mark.parametrize(
    ("n", "noun", "expected"),
    [
        (0, "cell", "0 cells"),
        (1, "cell", "1 cell"),
        (2_700, "gene", "2,700 genes"),
        (1, "category", "1 category"),
        (2, "category", "2 categories"),
        (3, "batch", "3 batches"),
        (2, "class", "2 classes"),
        (5, "day", "5 days"),
        (2, "series", "2 series"),
    ],
)
def test_counted(n, noun, expected):
    assert counted(n, noun) == expected
