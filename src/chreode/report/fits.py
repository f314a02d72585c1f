"""What a report says of a fitted model."""

from __future__ import annotations

import pandas as pd
from anndata import AnnData

from .. import config
from ..compute.convergence import STATES
from ..config.arguments import checked
from ..errors import counted
from ..plot import history
from ..verbs.state import FittedState
from .dynamics import dynamics_sections
from .page import Section
from .words import listed


@checked
def fit_sections(fitted: FittedState, data: AnnData | None = None) -> list[Section]:
    """Return what a fitted model was learned from, its training curves, its dynamics and its options.

    Parameters
    ----------
    fitted
        The model.
    data
        Cells to draw beside the paths of a model of time.
    """
    facts, spec = fitted.provenance, fitted.spec
    sizes = [f"{counted(len(names), 'feature')} of {role}" for role, names in spec.features.items()]
    sizes += [
        f"{counted(len(names), 'category')} of {role}" for role, names in spec.categories.items()
    ]
    card = [
        *(f"{note[:1].upper()}{note[1:]}." for note in facts["notes"]),
        f"Learned from {counted(facts['cells'], 'cell')} ({', '.join(sizes)}), seed {facts['seed']}, "
        f"by chreode {facts['version']}.",
        f"It can {', '.join(fitted.verbs)}.",
    ]
    return [
        Section("The fit", f"It {STATES[facts['state']]}.\n\n{listed(card)}"),
        _training(fitted),
        *(dynamics_sections(fitted, data) if {"trajectory", "rank"} <= {*fitted.verbs} else []),
        _configuration(fitted),
    ]


def _training(fitted: FittedState) -> Section:
    if not any(c.startswith("train_") for c in fitted.history):
        return Section("Training", "Solved in closed form: there is no training curve.")
    caption = "Per epoch, over the cells learned from and the cells held out"
    if not fitted.model.comparable:
        end = "The objectives of two epochs cannot be compared, as the target moves."
        return Section("Training", figures=((f"{caption}. {end}", history(fitted)),))
    return Section("Training", figures=((f"{caption}; the dot is the lowest.", history(fitted)),))


def _configuration(fitted: FittedState) -> Section:
    values = config.as_dict(fitted.model)
    options = pd.DataFrame(
        [
            (o["name"], str(values[o["name"]]), str(o["default"]), o["doc"])
            for o in config.describe(type(fitted.model))
        ],
        columns=["option", "value", "default", "meaning"],
    ).set_index("option")
    changed = options.loc[options["value"] != options["default"], ["value", "default"]]
    every = ("All options. Their values in this fit, their defaults and what they mean.", options)
    if changed.empty:
        return Section("Configuration", "All options have their defaults.", tables=(every,))
    return Section(
        "Configuration", tables=(("Options that are not at their defaults.", changed), every)
    )
