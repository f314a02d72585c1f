"""A fitted model in words: its card, a line, and a table for notebooks.

Every function here is a method of `Fitted`.
"""

from __future__ import annotations

from collections.abc import Callable
from html import escape

from .. import config
from ..compute.convergence import STATES
from ..errors import counted, visible
from ..text import markdown
from .state import FittedState


def card(self: FittedState, *, plain: bool = False) -> str:
    """Return a page in Markdown that says what this model is and what it was learned from.

    Parameters
    ----------
    plain
        For people rather than for Markdown: nothing is escaped.
    """
    provenance, shown = self.provenance, visible if plain else markdown
    rows = [f"| {k} | {shown(v)} |" for k, v in config.as_dict(self.model).items()]
    groups = ", ".join(f"{len(n)} {shown(r)}" for r, n in self.spec.categories.items())
    return "\n".join(
        [
            f"# {type(self.model).__name__}", "",
            f"Fitted with chreode {shown(provenance['version'])} on {counted(provenance['cells'], 'cell')} "
            f"({_features(self, shown)}{'; ' + groups if groups else ''}), seed {provenance['seed']}.",
            f"It {STATES[provenance['state']]}. It can: {', '.join(self.verbs)}.",
            *[f"Note: {shown(note)}." for note in provenance["notes"]], "",
            "| option | value |", "|---|---|", *rows, "",
        ]
    )  # fmt: skip


def line(self: FittedState) -> str:
    """Return the model, its cells and features, and what it can answer."""
    return (
        f"Fitted {type(self.model).__name__} on {counted(self.provenance['cells'], 'cell')} "
        f"({_features(self, visible)}); it offers {', '.join(self.verbs)}"
    )


def table(self: FittedState) -> str:
    """Return the same and the notes of the fit, as a table in HTML."""
    sizes = [(self.spec.features, "feature"), (self.spec.categories, "category")]
    rows = {
        "cells": f"{self.provenance['cells']:,}",
        **{role: counted(len(n), what) for names, what in sizes for role, n in names.items()},
        "state": STATES[self.provenance["state"]],
        "verbs": ", ".join(self.verbs),
        "notes": "; ".join(self.provenance["notes"]),
    }
    lines = "".join(
        f"<tr><td>{escape(visible(name))}</td><td>{escape(visible(value))}</td></tr>"
        for name, value in rows.items()
        if value
    )
    head = f"<thead><tr><th colspan=2>{type(self.model).__name__}</th></tr></thead>"
    return f"<table>{head}{lines}</table>"


def _features(self: FittedState, shown: Callable[[str], str]) -> str:
    named = self.spec.features.items()
    return ", ".join(f"{counted(len(names), 'feature')} of {shown(role)}" for role, names in named)
