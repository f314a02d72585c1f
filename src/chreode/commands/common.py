"""What the commands share: answers, flags made of dataclasses, files written whole."""

from __future__ import annotations

import dataclasses
import inspect
import json as json_
import os
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args, get_origin, get_type_hints

from cyclopts import Group, Parameter, Token
from cyclopts.validators import Number

from ..errors import ConfigError, StoreError, visible, warn
from ..schema import ROLES, Place, Schema

if TYPE_CHECKING:
    from ..fitted import Fitted

ROLES_GROUP = Group("Roles: where the data lives", sort_key=1)
RUN = Group("How to run", sort_key=3)
#: What models of time read, and what no model reads: known without loading a model, for the help.
ROLES_OF_TIME = ("counts", "expression", "time", "trajectory")
UNREAD_ROLES = ("views", "control", "vectors")
#: What every condition on cells holds.
_CONDITION = re.compile(r"\bobs\s*[.\[]")
#: What a file of chreode holds, by the end of its name: a report, a bench, and tables of results.
_OURS = {
    ".html": rb'<meta name="generator" content="chreode ',
    ".json": rb'^\{\s*"kind": "',
    ".csv": rb"^(source,target|feature,score|factor,kind|positives,factor),",
}


class Replaced(UserWarning):
    """Says that an older output was replaced: the command line prints it once that is so."""


@dataclass(frozen=True)
class Answer:
    """What a command prints: a text for people, or one JSON document, and the exit code."""

    text: str
    data: Any
    json: bool
    code: int = 0

    def __str__(self) -> str:
        if self.json:
            return json_.dumps(self.data, indent=1, allow_nan=False)
        return visible(self.text, lines=True)


def _whole(_: Any, tokens: Sequence[Token]) -> int | None:
    """Read a whole number; cyclopts alone would round 5.5."""
    word = tokens[0].value
    try:
        number = None if word.lower() == "none" else int(word)
    except ValueError:
        raise ValueError(f"{word!r} is no whole number") from None
    if number is not None and abs(number) >= 2**63:
        raise ValueError(f"{word} is larger than a number of 64 bits")
    return number


Whole = Annotated[int, Parameter(converter=_whole)]


def _conditions(_: Any, given: Any) -> dict[str, str]:
    """Read conditions, written ``--given.batch p3`` or ``--given batch=p3``; a name may hold dots."""
    found = dict[str, str]()
    if not isinstance(given, Mapping):
        for token in given:
            name, sign, value = token.value.partition("=")
            if not (name and sign):
                flag = token.keyword
                raise ValueError(f"{token.value!r}. Write {flag} batch=p3, or {flag}.batch p3")
            if name in found:
                raise ValueError(f"{name} is given twice")
            found[name] = value
        return found
    for name, below in given.items():
        if not isinstance(below, Mapping) and len(below) > 1:
            raise ValueError(f"{name} is given twice")
        inner = _conditions(_, below) if isinstance(below, Mapping) else {"": below[0].value}
        found |= {f"{name}.{rest}" if rest else name: value for rest, value in inner.items()}
    return found


Conditions = Annotated[
    dict[str, str],
    # of any number of words, of which each time one is given
    Parameter(metavar="VALUE", converter=_conditions, accepts_keys=True, n_tokens=-1),
]
Words = Annotated[tuple[str, ...], Parameter(consume_multiple=True, show_default=False)]
Switch = Annotated[bool, Parameter(negative="", show_default=False, group=RUN)]
Json = Annotated[
    Switch,
    Parameter(help="Print the result as one JSON document on stdout, and all else on stderr."),
]
Seed = Annotated[Whole, Parameter(group=RUN, help="Same seed, same result on the same machine.")]
Threads = Annotated[
    Whole | None,
    # beyond, torch ends the process where the system has no more
    Parameter(
        validator=Number(gte=1, lte=1024), group=RUN, help="Number of CPU threads [default: all]."
    ),
]
Output = Annotated[Path, Parameter(name=("--output", "-o"), group=RUN)]
Device = Annotated[
    Literal["auto", "cpu", "cuda", "mps"],
    Parameter(group=RUN, help="Where to compute; auto uses CUDA, else MPS, else the CPU."),
]
Page = Annotated[Path | None, Parameter(group=RUN, help="Write a report: one HTML file.")]
Shares = Annotated[tuple[float, ...], Parameter(consume_multiple=True, show_default=False)]
Rows = Annotated[
    str | None,
    Parameter(
        group=RUN,
        help="Cells to use: a condition, such as 'obs.cell_type != \"nan\"', or a file with one cell "
        "name per line.",
    ),
]
NGenes = Annotated[
    Whole | None,
    Parameter(
        group=RUN,
        help="Keep only this number of most variable genes, chosen on the cells to use. Log-expression of "
        "counts is then per 10,000 counts of these genes.",
    ),
]
NGenesUnseen = Annotated[
    Whole | None,
    Parameter(
        group=RUN,
        help="Keep only this number of most variable genes, chosen on cells that no result is judged on. "
        "Log-expression of counts is then per 10,000 counts of these genes.",
    ),
]
Into = Annotated[
    Path | None,
    Parameter(
        group=RUN,
        help="Folder that keeps every result as it comes. The same command continues from it.",
    ),
]
Ray = Annotated[
    Switch,
    Parameter(
        help="Run side by side on Ray: on the cluster of RAY_ADDRESS, or on the cores of this "
        "machine. THREADS is then the number for each trial [default: 1]."
    ),
]


def flags(
    cls: type, docs: Mapping[str, str], group: Group, hidden: Collection[str] = ()
) -> list[inspect.Parameter]:
    """Return a keyword per field of a dataclass: what cyclopts makes flags of."""
    hints = get_type_hints(cls)
    return [
        inspect.Parameter(
            field.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=field.default,
            annotation=Annotated[
                _strict(hints[field.name]),
                Parameter(
                    help=docs.get(field.name, ""),
                    group=group,
                    show=field.name not in hidden,
                    consume_multiple=get_origin(hints[field.name]) in (tuple, Sequence),
                    show_default=_shown(field.default),
                ),
            ],
        )
        for field in dataclasses.fields(cls)
    ]


def _shown(default: Any) -> bool | str:
    """Return how the help shows a default: one that says nothing is left out."""
    if isinstance(default, tuple):
        return " ".join(map(str, default)) or False
    return default is not None and default is not False


def _strict(hint: Any) -> Any:
    if hint in (int, int | None):
        return Annotated[hint, Parameter(converter=_whole)]
    if get_origin(hint) is tuple:
        return tuple[tuple(_strict(kind) for kind in get_args(hint))]  # type: ignore[misc]  # built at run time
    return hint


def schema_flags(hidden: Collection[str] = ()) -> list[inspect.Parameter]:
    """Return a keyword per field of `Schema`, with the help of its docstring."""
    docs, names = dict[str, list[str]](), list[str]()
    section = (inspect.getdoc(Schema) or "").partition("----------\n")[2]
    for line in section.partition("\n\n")[0].splitlines():
        if line.startswith(" "):
            for name in names:
                docs.setdefault(name, []).append(line.strip())
        else:
            names = line.split(", ")
    helps = {name: " ".join(lines).replace("`", "") for name, lines in docs.items()}
    return flags(Schema, helps, ROLES_GROUP, hidden)


def signed(
    call: Callable[..., Answer | None], *flags: inspect.Parameter
) -> Callable[..., Answer | None]:
    """Return `call` with these flags in place of its ``**keywords``.

    A flag that is not given is not passed: the defaults stay those of the dataclass, and a
    configuration file can tell what the command line left open.
    """
    hints = get_type_hints(getattr(call, "func", call), include_extras=True)
    own = [
        p.replace(annotation=hints[p.name])
        for p in inspect.signature(call).parameters.values()
        if p.kind is not inspect.Parameter.VAR_KEYWORD
    ]
    call.__signature__ = inspect.Signature([*own, *flags])  # type: ignore[attr-defined]  # functions have it
    return call


def with_roles(
    call: Callable[..., Answer | None], hidden: Collection[str] = ()
) -> Callable[..., Answer | None]:
    """Decorate a command whose ``**roles`` are the fields of `Schema`; its help leaves out those `hidden`."""
    return signed(call, *schema_flags(hidden))


def with_roles_of_time(call: Callable[..., Answer | None]) -> Callable[..., Answer | None]:
    """Decorate a command for models of time: its help shows the roles that they read."""
    return with_roles(call, [role for role in ROLES if role not in ROLES_OF_TIME])


def narrows(schema: Schema) -> Place | None:
    """Return where ``--n-genes`` chooses features; None where it cannot, as in raw or obsm."""
    place = Place.parse(schema.counts or schema.expression or "X")
    return place if place.slot in ("X", "layers") else None


def use_threads(threads: int | None) -> None:
    """Set the number of threads, before any work."""
    if threads is not None:
        import torch

        torch.set_num_threads(threads)


def load_model(folder: Path, threads: int | None = None) -> Fitted:
    """Set the number of threads and load a model; warn if it was still improving, or had overfitted."""
    import chreode as ch

    from ..compute.convergence import DOUBTFUL, STATES

    use_threads(threads)
    fitted = ch.load(folder)
    state, notes = (fitted.provenance[name] for name in ("state", "notes"))
    if state in DOUBTFUL:
        stages = (
            [n for n in notes if n.startswith("the stage")] if state == "still improving" else []
        )
        warn(f"The model {folder} {'; '.join([STATES[state], *stages])}.")
    return fitted


def rows_of(text: str | None) -> Any:
    """Return the cells that ``--rows`` chooses: the names in a file, or a condition.

    Raises
    ------
    ConfigError
        If there is no such file, and it is no condition either; or if the file holds no names.
    """
    if text is None:
        return None
    if not os.path.isfile(text):  # noqa: PTH113 (which takes text that is too long for a name)
        if not _CONDITION.search(text):
            raise ConfigError(
                f"--rows {text!r} is no file, and no condition, which would name a column: "
                "--rows 'obs.cell_type != \"nan\"'."
            )
        return text
    try:
        # some programs begin a text with a mark of its encoding
        lines = Path(text).read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{text} cannot be read as text in UTF-8 ({error.reason}): save it as such."
        ) from error
    names = [name for line in lines if (name := line.strip())]
    if not names:
        raise ConfigError(f"{text} holds no cell names, of which it should have one per line.")
    return names


def require_suffix(path: Path, suffixes: Iterable[str]) -> None:
    """Refuse a file name that would mislead.

    Raises
    ------
    StoreError
        If it ends in none of `suffixes`.
    """
    if (path / "model.json").is_file():
        raise StoreError(f"{str(path)!r} is a fitted model; a file of cells was expected here.")
    if path.suffix not in suffixes:
        raise StoreError(f"{str(path)!r}: expected a name that ends in {' or '.join(suffixes)}.")


def require_output(
    path: Path,
    suffixes: Iterable[str],
    source: Path | None = None,
    instead: str = "Choose another.",
) -> None:
    """Refuse a name that would mislead, the file that is read, or one that chreode did not write.

    Raises
    ------
    StoreError
        If it ends in none of `suffixes`, is a folder, or a file that chreode did not write.
    ConfigError
        If it is `source`, or one of them is a folder that holds the other.
    """
    from ..store import refuse_folder, require_writable  # which load torch

    require_suffix(path, suffixes)
    refuse_folder(path)
    if source is not None:
        refuse_input(path, source, instead)
    _refuse_to_replace(path)
    require_writable(path)
    say_replaced(path)


def refuse_input(path: Path, source: Path, instead: str = "Choose another.") -> None:
    """Refuse an output in the place of what is read, inside of it or around it.

    Raises
    ------
    ConfigError
        If it is there.
    """
    made, read = path.resolve(), source.resolve()
    if made.is_relative_to(read):  # the file itself, or a place inside of a .zarr
        raise ConfigError(f"{path} is the input. {instead}")
    if read.is_relative_to(made):
        raise ConfigError(f"{path} holds the input, {source}, and would be replaced. {instead}")


def _refuse_to_replace(path: Path) -> None:
    """Refuse to replace a file that chreode did not write: it may be the user's own."""
    from ..data.collect import refuse_to_replace_cells  # which loads torch
    from ..data.foreign import SUFFIXES

    if path.suffix in SUFFIXES:
        refuse_to_replace_cells(path)
        return
    content = path.read_bytes() if path.is_file() else b""
    if content and not re.search(_OURS[path.suffix], content):
        raise StoreError(
            f"{path} is there already, and is no {path.suffix} file that chreode wrote. Choose another name, "
            "or move this file away first."
        )


def say_replaced(path: Path) -> None:
    """Note that an older output is replaced, if there is one."""
    if path.is_file() or (path.is_dir() and any(path.iterdir())):
        warn(f"{path} was there already and has been replaced.", Replaced)


def require_apart(into: Path | None, *outputs: Path | None) -> None:
    """Refuse an output at the place of the folder that keeps results, or around it.

    Raises
    ------
    ConfigError
        If one is there.
    """
    for path in outputs:
        if into is not None and path is not None and into.resolve().is_relative_to(path.resolve()):
            raise ConfigError(
                f"{into} keeps the results (--into): choose another place for the output than {path}."
            )


def records(table: Any) -> list[dict[str, Any]]:
    """Return the rows of a DataFrame (with its index, if that has a name): NaN becomes null."""
    table = table.reset_index() if any(table.index.names) else table
    return json_.loads(table.to_json(orient="records", double_precision=15))
