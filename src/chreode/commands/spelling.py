"""The words of the command line: messages of the library, flags, and commands to type."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

#: What messages of the library say in Python, and how the command line has it.
_SPOKEN = {
    "cannot predict": "cannot correct",
    r"fitted\.model\.fit\(query, schema, from_=fitted\)": "chreode fit MODEL FILE --from FOLDER",
    r"Go on with from_\.model": "Leave these out, so that they are as in that fit",
    r"(?<![\w'])from_(?= (is a|has the|reads|does not) )": "--from",
    r"name some: space=…": "give fewer options, for those that are given are not searched",
    r"as in seeds=\(0,\)": "as in --seeds 0",
    r"\(into\)": "(--into)",
    r"(?<=under no other conditions; leave out )to\b": "--latent",
}


def spoken(text: str) -> str:
    """Return a message of the library in the words of the command line.

    Examples
    --------
    >>> spoken("if 'nan' means 'not known', set Schema(missing=('nan',)).")
    "if 'nan' means 'not known', set --missing nan."
    >>> spoken("PCA cannot predict; raise flow_epochs (now 400)")
    'PCA cannot correct; raise --flow-epochs (now 400)'
    """
    for pattern, words in _SPOKEN.items():
        text = re.sub(pattern, words, text)
    text = re.sub(
        r"raise (\w+) \((now|0 by)", lambda m: f"raise --{m[1].replace('_', '-')} ({m[2]}", text
    )
    # a text with a backslash, which stands for another letter, is left as it is
    text_ = r"""(?:'[^'\\]*'|"[^"\\]*")"""
    text = re.sub(rf"\brows=({text_})", lambda m: f"--rows {shlex.quote(m[1][1:-1])}", text)
    return re.sub(
        rf"Schema\((\w+)=(True|{text_}|\({text_},\))\)",
        # a place that is to be filled in (obs/…) is nothing that a shell reads
        lambda match: " ".join(
            word if "…" in word else shlex.quote(word)
            for word in as_flags({match[1]: _value(match[2])})
        ),
        text,
    )


def _value(written: str) -> Any:
    """Return the value that a message writes as Python does: True, a text, or a tuple of one text."""
    if written == "True":
        return True
    return (written[2:-3],) if written[0] == "(" else written[1:-1]


def as_flags(values: Mapping[str, Any]) -> list[str]:
    """Return roles or options as the words of a command line.

    Examples
    --------
    >>> as_flags({"batch": "obs/donor", "missing": ("nan", "?"), "fractional": True, "control": "-"})
    ['--batch', 'obs/donor', '--missing', 'nan', '?', '--fractional', '--control=-']
    >>> as_flags({"missing": ("-", "nan")})
    ['--missing=-', '--missing=nan']
    """
    words = []
    for name, value in values.items():
        flag = "--" + name.replace("_", "-")
        if isinstance(value, bool):
            words.append(flag if value else f"--no-{flag[2:]}")
            continue
        several = value if isinstance(value, (tuple, list)) else (value,)
        # a word that begins with a hyphen would be taken for a flag
        joined = any(str(word).startswith("-") for word in several)
        words += [f"{flag}={word}" for word in several] if joined else [flag, *map(str, several)]
    return words


def suggested(*words: object) -> str:
    """Return a command line as it can be typed."""
    # a file whose name begins with a hyphen is no flag
    return shlex.join(
        [
            "chreode",
            *(f"./{w}" if isinstance(w, Path) and str(w)[0] == "-" else str(w) for w in words),
        ]
    )
