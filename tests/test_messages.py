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
#: What is countable in a message.
NOUNS = (
    "batch", "byte", "category", "cell", "class", "column", "count", "dimension", "donor", "draw",
    "edge", "entry", "epoch", "feature", "file", "fit", "gene", "iteration", "label", "letter",
    "marker", "metric", "minibatch", "modality", "neighbour", "number", "one", "path", "piece",
    "process", "refit", "result", "row", "seed", "step", "tensor", "thread", "trajectory", "trial", "type",
    "value", "weight",
)  # fmt: skip
PLURALS = "|".join(counted(2, noun).split()[1] for noun in NOUNS)
#: Words that never stand between a number and its noun: behind them is the noun of something else.
APART = (
    "all|and|are|as|at|average|cannot|embeds|from|has|have|holds|in|is|no|of|on|or|stand|that|the|Their|to|"
    "were|which|with|without"
)
MANY = "are|average|count|differ|do|have|lack|learn|need|stand|were"
ONE = "counts|differs|does|has|is|lacks|learns|needs|was"
#: Where text is said: to whom does not matter.
SAYING = re.compile(r"(Error|Warning|warn|Finding|param|Answer|Parameter|Section|App|print)$")


def texts() -> Iterator[tuple[str, ast.expr]]:
    """Yield the place and the template of every text."""
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
            text = isinstance(node, ast.Constant) and isinstance(node.value, str)
            if (text or isinstance(node, ast.JoinedStr)) and id(node) not in docs | inside:
                place = f"{file.relative_to(SOURCE)}:{getattr(node, 'lineno', 0)}"
                yield place, node


def filled(node: ast.expr, n: int) -> str:
    """Return a template in which every number is n, and every list has n items.

    ``<1>`` is a number or list, ``{}`` what may be one or a name, and ``1 cell>`` a number with its noun.
    """
    match node:
        case ast.JoinedStr():
            return "".join(filled(part, n) for part in node.values)
        case ast.Constant():
            return str(node.value)
        case ast.FormattedValue(value=value):
            spec = ast.unparse(node.format_spec) if node.format_spec else ""
            return f"<{n}>" if "," in spec else filled(value, n)
        case ast.IfExp(test=ast.Compare(comparators=[ast.Constant(value=1)])):
            return filled(node.body if n == 1 else node.orelse, n)
        case ast.IfExp():
            return filled(node.body, n)
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            return filled(left, n) + filled(right, n)
        case ast.Call(func=ast.Name(id="counted" | "spelled"), args=[_, noun]):
            return f"{counted(n, noun.value if isinstance(noun, ast.Constant) else 'cell')}>"
        case ast.Call(func=ast.Name(id="len" | "int" | "sum" | "listed")):
            return f"<{n}>"
        case (
            ast.Call(func=ast.Attribute(attr="join" | "tolist")) | ast.Subscript(slice=ast.Slice())
        ):
            return f"<{n}>"
    return "{}"


def disagreements(template: ast.expr) -> list[str]:
    """Return where a number or list of 0, 1 or 2 does not agree with its noun or verb."""
    between = rf"(?:(?!(?:{APART})\b)[\w'-]+ ){{0,2}}"
    rules = {
        1: rf"[Tt]here are (?:<1>|1 \w+>)|"
        r"1 \w+>[^.]*\. (?:They|Their|(?:Remove|Leave|Add) (?:them|these))|"
        rf"(?:<1>|\{{\}}) {between}(?:{PLURALS})\b|(?<!s of )(?<!and )(?:<1>|1 \w+>) (?:{MANY})\b",
        0: rf"<0> (?:{'|'.join(NOUNS)})\b|(?<!of )(?:<0>|0 \w+>) (?:{ONE})\b",
        2: rf"<2> (?:{'|'.join(NOUNS)})\b|(?<!of )(?:<2>|2 \w+>) (?:{ONE})\b",
    }
    return [found for n, rule in rules.items() for found in re.findall(rule, filled(template, n))]


@pytest.fixture(scope="module")
def sentences() -> list[tuple[str, ast.expr]]:
    return [(place, node) for place, node in texts() if filled(node, 1).count(" ") > 2]


def test_texts_have_whole_spaces(sentences):
    wrong = [
        (place, found[0])
        for place, node in sentences
        if (
            found := re.findall(
                r"(?<=\w)  +\w+|\w+ [,;.](?= |$)|[a-z][,;][A-Za-z]\w*|\b(?!ch\b|pandas\b)[a-z]+\.[A-Z]\w+",
                filled(node, 2),
            )
        )
    ]
    assert not wrong


def test_numbers_agree_with_their_nouns_and_verbs(sentences):
    """`counted(n, "cell")` does; "1 cells", "1 of 20 cells are" and "2 class" do not."""
    wrong = [(place, found) for place, node in sentences if (found := disagreements(node))]
    assert not wrong, f"{len(wrong)}: " + "\n".join(map(str, wrong))


@pytest.mark.parametrize(
    "template",
    [
        "f'{slot} holds {seen.infinite:,} infinite values'",
        "f'of {n:,} numbers, {len(same):,} are too close'",
        "f'{n} real cells'",
        "f'{counted(n, noun)} of {counted(m, noun)} are missing'",
        "f'{names[:5]} have one cell'",
        "f'it tells {len(classes)} class'",
        "f'There are {counted(n, noun)}'",
        "f'{counted(n, noun)} without counts, such as {name}. Remove them.'",
    ],
)
def test_what_does_not_agree_is_found(template):
    assert disagreements(ast.parse(template, mode="eval").body)


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
