"""The command line: one verb, one model, one file. A command loads when it is named.

Exit codes: 0 done; 1 something the user can mend, said on stderr; 2 wrong usage; 130 Ctrl-C; 141 nobody
reads on, as after ``| head``.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
import traceback
import warnings
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from cyclopts import (
    App,
    CoercionError,
    CycloptsError,
    MissingArgumentError,
    MixedArgumentError,
    Parameter,
    UnknownCommandError,
)

from ..config import WORDS
from ..errors import ChreodeError, near, visible
from ..errors import message as readable
from ..version import __version__
from .common import Answer, Replaced
from .spelling import spoken

#: Where a command is, what it does, and an example (those with commands below them have their own).
COMMANDS = (
    (
        "commands.demo:demo",
        "Fit, judge and draw real blood cells, and write a report of it.",
        "demo",
    ),
    (
        "commands.check:check",
        "Show what a file holds, what is wrong with it, and which models can read it.",
        "check pbmc.h5ad --counts layers/counts --batch obs/donor",
    ),
    ("commands.fit:fit", "Fit a model and save it as a folder.", ""),
    ("commands.tune:tune", "Search for better options of a model.", ""),
    (
        "commands.use:embed",
        "Write the latent coordinates of cells into a copy of their file.",
        "embed runs/scvi query.h5ad -o query.scvi.h5ad",
    ),
    (
        "commands.use:classify",
        "Write the most probable label of each cell into a copy of their file.",
        "classify runs/simclr query.h5ad -o query.labelled.h5ad",
    ),
    (
        "commands.use:generate",
        "Draw new cells from a fitted model.",
        "generate runs/scvi -n 5000 --given.batch p3 -o new.h5ad",
    ),
    (
        "commands.use:correct",
        "Write cells as they would be measured under other conditions.",
        "correct runs/cfgen pbmc.h5ad --to.batch p3 -o as-p3.h5ad",
    ),
    (
        "commands.use:predict",
        "Fill in a modality that was not measured, such as protein of cells with RNA alone.",
        "predict runs/simclr rna.h5ad --counts X -o proteins.h5ad",
    ),
    (
        "commands.use:augment",
        "Add generated cells to the classes that have few.",
        "augment runs/cfgen pbmc.h5ad --floor 500 -o more.h5ad",
    ),
    (
        "commands.paths:trajectory",
        "Write where cells were, and where they will be.",
        "trajectory runs/pathreg cells.h5ad --times 0 0.5 1 -o paths.h5ad",
    ),
    (
        "commands.paths:rank",
        "Show which genes drive which, or how much each gene matters.",
        "rank runs/pathreg -o edges.csv",
    ),
    ("commands.judge:bench", "Score methods side by side, with baselines and a ceiling.", ""),
    (
        "commands.judge:report",
        "Make a page of HTML of a saved bench or a fitted model.",
        "report bench.json -o report.html",
    ),
    (
        "commands.identify:identify",
        "Ask when a loss recovers the truth, and what an augmentation leaves as it is.",
        "",
    ),
    ("commands.show:models", "List the models, what each needs and what it can answer.", "models"),
    (
        "commands.show:show",
        "Show what a fitted model is and what it learned from.",
        "show runs/scvi",
    ),
)

app = App(
    name="chreode",
    help="Learn the landscape of single-cell states, run cells on it, and judge the result.",
    help_epilogue="Begin with 'chreode demo', or with 'chreode check FILE' on your own data.",
    version=__version__,
    help_format="plaintext",
    default_parameter=Parameter(negative_iterable=()),
    exit_on_error=False,
    print_error=False,
    suppress_keyboard_interrupt=False,
    result_action="return_value",
)
for order, (place, about, example) in enumerate(COMMANDS):
    more = {"help_epilogue": f"Example: chreode {example}"} if example else {}
    name = place.rpartition(":")[2]
    app.command(f"chreode.{place}", name=name, help=about, sort_key=order, **more)


def main(tokens: Sequence[str] | None = None) -> int:
    """Run a command line (default: the process's own) and return the exit code."""
    _open_streams()
    os.environ["MPLBACKEND"] = (
        "agg"  # files alone are drawn; a notebook names what may not be there
    )
    try:
        code = _run(tokens)
        sys.stdout.flush()
    except OSError as error:
        if not isinstance(error, BrokenPipeError) and _prints():  # it is of another file
            raise
        # what is left in the buffer would fail again when the process ends
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):
            return 141
        text = f"The answer cannot be printed ({error.strerror}); its work is done."
        return _fail(1, "OSError", text, as_json=False)
    return code


def _prints() -> bool:
    with contextlib.suppress(OSError):
        print(flush=True)
        return True
    return False


def _open_streams() -> None:
    """Give what the shell has closed (``>&-``) a place to go, and print what the terminal cannot spell.

    Files would take the numbers of closed streams, and libraries print into them.
    """
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115 (for good)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def _run(tokens: Sequence[str] | None) -> int:
    tokens = sys.argv[1:] if tokens is None else list(tokens)
    as_json = any(token.partition("=")[0] == "--json" for token in tokens)
    # of the processes that torchrun started, one speaks for all
    follows = "--distributed" in tokens and os.environ.get("RANK", "0") != "0"
    prints_json = as_json and not follows
    fail = partial(_fail, as_json=prints_json)
    try:
        # whatever else is printed on the way must not spoil the one JSON document
        aside = contextlib.redirect_stdout(sys.stderr) if as_json else contextlib.nullcontext()
        with _warnings_as_notes() as replaced, aside:
            answer: Any = app(tokens)
    except ChreodeError as error:
        return fail(1, type(error).__name__, spoken(str(error)))
    except CycloptsError as error:
        command = " ".join(("chreode", *(error.command_chain or ())))
        return fail(2, "UsageError", f"{_plain(error)} See: {command} --help")
    except KeyboardInterrupt as stopped:
        return fail(130, "KeyboardInterrupt", str(stopped) or "interrupted")
    except MemoryError as error:
        text = f"There is too little memory ({error or 'nothing is left'}). Ask for less at once."
        return fail(1, "MemoryError", text)
    except Exception as error:
        *_, (frame, _) = traceback.walk_tb(error.__traceback__)
        if frame.f_globals["__name__"].partition(".")[0] != "cyclopts":
            if prints_json:
                print(json.dumps({"error": readable(error), "kind": type(error).__name__}))
            raise  # a fault of ours, or of a library: its traceback says where
        # cyclopts trips over a flag whose name goes on after a dot, beside the flag itself
        text = (
            "These flags cannot be read together: one has a value and is also the beginning of "
            "another, as --given.batch is of --given.batch.x."
        )
        command = " ".join(("chreode", *app.parse_commands(tokens)[0]))
        return fail(2, "UsageError", f"{text} See: {command} --help")
    if not isinstance(answer, Answer):  # help and version have printed themselves
        return 0
    for message in replaced:
        print("note:", visible(message), file=sys.stderr)
    print(answer)
    return answer.code


def _plain(error: CycloptsError) -> str:
    """Return a sentence on a flag, without the names that Python has for types."""
    text = str(error)
    if isinstance(error, MissingArgumentError) and error.keyword:
        text = f"{error.keyword} needs a value, as in {error.keyword} VALUE."
    elif isinstance(error, MissingArgumentError) and error.argument:
        name = error.argument.name
        text = f"{name} is missing{f': add {name} VALUE' if name.startswith('-') else ''}."
    if isinstance(error, UnknownCommandError) and error.unused_tokens:
        known = [name for name in error.app or () if not name.startswith("-")]
        text = (
            f"There is no command {error.unused_tokens[0]!r}.{near(error.unused_tokens[0], known)}"
        )
    if isinstance(error, MixedArgumentError) and error.argument:
        flag = error.argument.name
        text = f"Write all of {flag} the same way: {flag} batch=p3, or {flag}.batch p3."
    if isinstance(error, CoercionError) and error.token is not None and not error.msg:
        value, expected = visible(error.token.value), WORDS.get(error.target_type)
        if expected:  # of choices it says which there are
            text = f"Invalid value for {error.token.keyword}: {value!r}; expected {expected}."
    return text if text.endswith((".", "?")) else f"{text}."


def _fail(code: int, kind: str, text: str, *, as_json: bool) -> int:
    text = readable(text)
    print(f"error: {text}", file=sys.stderr)
    if as_json:
        print(json.dumps({"error": text, "kind": kind}))
    return code


@contextlib.contextmanager
def _warnings_as_notes() -> Iterator[list[str]]:
    """Show each warning as one line, without the place in the code that a user has no use for.

    What is said of replaced outputs is not true before the command has ended well: it is gathered.
    """
    replaced: list[str] = []

    def show(message: Any, category: type[Warning], *_: Any, **__: Any) -> None:
        if issubclass(category, Replaced):
            replaced.append(str(message))
            return
        print("note:", " ".join(visible(spoken(str(message)), lines=True).split()), file=sys.stderr)

    with warnings.catch_warnings():
        warnings.simplefilter("default", UserWarning)
        warnings.simplefilter("ignore", FutureWarning)  # news for developers
        warnings.showwarning = show
        yield replaced


if __name__ == "__main__":
    sys.exit(main())
