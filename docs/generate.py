"""Write those parts of the pages that follow from the code, between their markers.

Run it as ``python docs/generate.py`` after a change of options, models, metrics or commands; a test
says when a page is behind.
"""

from __future__ import annotations

import inspect
import os
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from chreode import config, models
from chreode.cli import COMMANDS, app
from chreode.commands.common import ROLES_GROUP
from chreode.commands.show import verbs
from chreode.metrics import METRICS

ROOT = Path(__file__).parents[1]
MARKED = re.compile(r"(<!-- from the code: (.+?) -->\n).*?(<!-- end -->)", re.DOTALL)
#: Commands with others below them, and the ones to describe.
BELOW = {"fit": ["scvi"], "bench": ["integration"]}


def pages() -> list[Path]:
    """Return the pages that this project is told in; records of decisions are history and left out."""
    folders = (ROOT, ROOT / "docs", ROOT / "docs" / "models")
    return [
        ROOT / "llms.txt",
        *(page for folder in folders for page in sorted(folder.glob("*.md"))),
    ]


def current(page: Path) -> str:
    """Return the text of a page with its marked parts written anew."""

    def written(match: re.Match[str]) -> str:
        what, *names = match[2].split()
        return f"{match[1]}{PARTS[what](page, *names)}\n{match[3]}"

    return MARKED.sub(written, page.read_text(encoding="utf-8"))


def models_table(page: Path) -> str:
    """Return a row per registered model, with a link to its page."""
    return _table(("model", "what it is", "needs", "can, by default"), _model_rows(page))


def _model_rows(page: Path) -> Iterator[tuple[str, ...]]:
    for key in models.keys():  # noqa: SIM118 (a function, no mapping)
        model = models.find(key)
        link = os.path.relpath(ROOT / "docs" / "models" / f"{key}.md", page.parent)
        about = (inspect.getdoc(model) or "").partition("\n")[0]
        needs = ", ".join(need.replace("|", " or ") for need in model.needs)
        yield f"[{model.__name__}]({link})", about, needs, ", ".join(verbs(model))


def options_table(_: Path, key: str) -> str:
    """Return a row per option of a model."""
    rows = (
        (f"`{row['name']}`", f"`{row['type']}`", f"`{row['default']!r}`", row["doc"])
        for row in config.describe(models.find(key))
    )
    return _table(("option", "type", "default", "meaning"), rows)


def metrics_table(_: Path) -> str:
    """Return a row per metric of integration, with a link to its section."""
    rows = (
        (f"[`{m.key}`](#{m.key})", m.name, {"bio": "biology"}.get(m.kind, m.kind), m.description)
        for m in METRICS
    )
    return _table(("key", "name", "judges", "in one line"), rows)


def command_sections(_: Path) -> str:
    """Return a section per command: usage, what it does, its flags."""
    sections = []
    for name in (place.rpartition(":")[2] for place, *_ in COMMANDS):
        command = app[name]
        for word in BELOW.get(name, []):
            command = command[word]
        words = "fit MODEL" if name == "fit" else " ".join([name, *BELOW.get(name, [])])
        sections.append(_section(words, command))
    return "\n\n".join(sections)


def _section(words: str, command: Any) -> str:
    flags = list(command.assemble_argument_collection(parse_docstring=True))
    groups = {id(f): f.parameter.group[0].name for f in flags}
    own = [f for f in flags if groups[id(f)] != ROLES_GROUP.name]
    own = [f for f in own if not groups[id(f)].endswith(": its options")]
    usage = ["chreode", words, *(f"{f.name} …" for f in own if f.required and f.name[0] == "-")]
    usage += [f.name for f in own if f.name[0] != "-"]
    about = inspect.cleandoc(command.help).partition("\n\nParameters\n")[0]
    if words == "fit MODEL":
        about = "Fit a model and save it as a folder."
    more = ["[roles](#roles)"] if ROLES_GROUP.name in groups.values() else []
    more += ["options of the model, each a flag"] if words == "fit MODEL" else []
    return "\n".join(
        [
            f"## {words}", "", f"`{' '.join(usage)}`", "", about, "",
            _table(("argument", "meaning", "default"), map(_flag, own)),
            *(["", f"And the {', and the '.join(more)}."] if more else []),
        ]
    )  # fmt: skip


def _flag(flag: Any) -> tuple[str, str, str]:
    names = ", ".join(f"`{n}`" for n in flag.names if not n.startswith(("--no-", "--empty-")))
    default = flag.field_info.default
    if flag.required:
        shown = "required"
    elif isinstance(default, tuple):
        shown = " ".join(f"`{v}`" for v in default)
    else:
        shown = "" if default is None or default is False else f"`{default}`"
    return names, " ".join((flag.parameter.help or "").split()), shown


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join(f"| {' | '.join(c.replace('|', r'\|') for c in row)} |" for row in lines)


PARTS: dict[str, Callable[..., str]] = {
    "models": models_table,
    "options": options_table,
    "metrics": metrics_table,
    "commands": command_sections,
}


if __name__ == "__main__":
    for path in pages():
        text = current(path)
        if text != path.read_text(encoding="utf-8"):
            path.write_text(text, encoding="utf-8")
            print(path.relative_to(ROOT))
