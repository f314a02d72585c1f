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

from cyclopts.help import format_usage

from chreode import config, models
from chreode.commands.app import COMMANDS, app
from chreode.commands.common import ROLES_GROUP
from chreode.commands.show import verbs
from chreode.metrics import METRICS
from chreode.schema import ROLES

ROOT = Path(__file__).parents[1]
MARKED = re.compile(r"(<!-- from the code: (.+?) -->\n).*?(<!-- end -->)", re.DOTALL)
#: Commands with others below them, and those to describe; of models one stands for all.
BELOW = {
    "fit": ("scvi",),
    "tune": ("scvi",),
    "bench": ("integration", "probe", "generation", "dynamics"),
    "identify": ("coverage",),
}


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
    return _table(
        ("model", "what it is", "needs", "offers (if label or protein is named)"), _model_rows(page)
    )


def _model_rows(page: Path) -> Iterator[tuple[str, ...]]:
    for key in models.keys():  # noqa: SIM118 (a function, no mapping)
        model = models.find(key)
        link = os.path.relpath(ROOT / "docs" / "models" / f"{key}.md", page.parent)
        about = (inspect.getdoc(model) or "").partition("\n")[0]
        needs = ", ".join(need.replace("|", " or ") for need in model.needs)
        always = verbs(model, uses=False)
        offers = ", ".join(verb if verb in always else f"({verb})" for verb in verbs(model))
        yield f"[{model.__name__}]({link})", about, needs, offers


def options_table(_: Path, key: str) -> str:
    """Return a row per option of a model."""
    rows = (
        (f"`{row['name']}`", f"`{row['type']}`", f"`{row['default']!r}`", row["doc"])
        for row in config.describe(models.find(key))
    )
    return _table(("option", "type", "default", "meaning"), rows)


def roles_table(_: Path) -> str:
    """Return a row per role: which models read it, and in which of them NaN means not measured."""
    known = [models.find(key) for key in models.keys()]  # noqa: SIM118 (a function, no mapping)
    rows = []
    for role in ROLES:
        reads = [m.__name__ for m in known if role in "|".join((*m.needs, *m.uses)).split("|")]
        lacks = [m.__name__ for m in known if role in m.tolerates]
        rows.append((f"`{role}`", ", ".join(reads) or "no model yet", ", ".join(lacks)))
    return _table(("role", "read by", "NaN understood by"), rows)


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
    for place, about, _example in COMMANDS:
        name = place.rpartition(":")[2]
        sections += [
            _section([name, below] if below else [name], about if below in ("", "scvi") else "")
            for below in BELOW.get(name, ("",))
        ]
    return "\n\n".join(sections)


def _section(words: list[str], about: str) -> str:
    command, above = app, app
    for word in words:
        above, command = command, command[word]
    flags = list(command.assemble_argument_collection(parse_docstring=True))
    shared = [f for f in flags if _group(f) == ROLES_GROUP.name]
    options = [f for f in flags if _group(f).endswith(": its options")]
    own = [f for f in flags if f not in shared and f not in options]
    usage = str(format_usage(app, words)).removeprefix("Usage:").strip()
    examples = [a.help_epilogue or "" for a in (command, above)]
    example = next((e.partition("\n")[0] for e in examples if e.startswith("Example: ")), "")
    more = [
        *(["the [roles](#roles)"] if shared else []),
        *(["the options of the model, each a flag"] if options else []),
    ]
    about = about or command.help.partition("\n")[0]
    return "\n".join(
        [
            f"## {' '.join(words).replace('scvi', 'MODEL')}", "",
            f"`{usage.replace(' scvi ', ' MODEL ')}`", "", about, "",
            _table(("argument", "meaning", "default"), map(_flag, own)),
            *(["", f"And {', and '.join(more)}."] if more else []),
            *(["", f"Example: `{example.removeprefix('Example: ')}`"] if example else []),
        ]
    )  # fmt: skip


def _group(flag: Any) -> str:
    return flag.parameter.group[0].name


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
    escaped = ([cell.replace("|", "\\|") for cell in line] for line in lines)
    return "\n".join(f"| {' | '.join(line)} |" for line in escaped)


PARTS: dict[str, Callable[..., str]] = {
    "models": models_table,
    "options": options_table,
    "roles": roles_table,
    "metrics": metrics_table,
    "commands": command_sections,
}


if __name__ == "__main__":
    for path in pages():
        text = current(path)
        if text != path.read_text(encoding="utf-8"):
            path.write_text(text, encoding="utf-8")
            print(path.relative_to(ROOT))
