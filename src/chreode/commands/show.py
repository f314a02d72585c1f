"""Commands that list: ``models`` and ``show``."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import TYPE_CHECKING, Any

import chreode as ch

from .. import config, registry
from ..errors import visible
from ..schema import CATEGORY_ROLES, MATRIX_ROLES, Spec
from ..text import shown
from .common import Answer, Json, records
from .spelling import spoken

if TYPE_CHECKING:
    from ..model import Model


def models(*, json: Json = False) -> Answer:
    """List the models, what each needs and what it can answer."""
    rows = [_described(registry.find(key)) for key in registry.keys()]  # noqa: SIM118 (a function)
    text = "\n".join(
        f"{row['key']:<18}{row['about']}\n"
        f"{'':<18}needs {', '.join(n.replace('|', ' or ') for n in row['needs'])}; "
        f"can {', '.join(row['verbs'])}"
        for row in rows
    )
    return Answer(f"{text}\nThe options of a model: chreode fit MODEL --help", rows, json)


def _described(model: type[Model]) -> dict[str, Any]:
    return {
        "key": model.__name__.lower(),
        "class": model.__name__,
        "about": (inspect.getdoc(model) or "").partition("\n")[0],
        "needs": list(model.needs),
        "uses": list(model.uses),
        "verbs": verbs(model),
        "fields": config.describe(model),
    }


def verbs(model: type[Model], *, uses: bool = True) -> list[str]:
    """Return what a model can answer by default: it is built on a made-up spec, without memory.

    Parameters
    ----------
    uses
        Whether all roles that it can use are named, such as label, or those alone that it needs.
    """
    import torch

    from ..module import capabilities

    with torch.device("meta"):
        return capabilities(model().build(_tiny_spec(model, uses=uses)))


def _tiny_spec(model: type[Model], *, uses: bool) -> Spec:
    roles = (*(need.partition("|")[0] for need in model.needs), *(model.uses if uses else ()))
    names = [f"{r}/{i}" if r == "views" else r for r in roles for i in range(1 + (r == "views"))]
    categories = {r: ("a", "b") for r in roles if r in CATEGORY_ROLES}
    return Spec(
        roles=roles,
        features={
            n: tuple(map(str, range(100))) for n in names if n.partition("/")[0] in MATRIX_ROLES
        },
        categories=categories,
        blocks=dict.fromkeys(categories, (2,)),
        n_cells=100,
        sets={r: "a" for r in model.sets if r in categories},
    )


def show(model: Path, /, *, json: Json = False) -> Answer:
    """Show what a fitted model is and what it learned from.

    Parameters
    ----------
    model
        Folder of a fitted model.
    """
    fitted = ch.load(model)
    sizes: dict[str, Any] = {
        "features": {role: len(names) for role, names in fitted.spec.features.items()},
        "categories": {role: list(names) for role, names in fitted.spec.categories.items()},
        "continuous": list(fitted.spec.continuous),
    }
    places = [(visible(role), visible(place)) for role, place in fitted.schema.places()]
    wide = 2 + max(14, *(len(role) for role, _ in places), *map(len, sizes["categories"]))
    roles = [f"{role:<{wide}}{place}" for role, place in places]
    groups = [
        f"{visible(role):<{wide}}{len(names)}: {', '.join(map(visible, names[:8]))}"
        f"{', …' if len(names) > 8 else ''}"
        for role, names in sizes["categories"].items()
    ]
    history = fitted.history
    learned = [c for c in history if c.startswith(("train_", "validation_"))]
    # a stage in closed form has none of these
    history = history.dropna(subset=learned, how="all") if learned else history
    last = history.tail(3).dropna(axis="columns", how="all")  # of other phases
    tail = shown(last.map(lambda v: f"{v:.4g}" if isinstance(v, float) else v))
    text = "\n".join(
        [spoken(fitted.card(plain=True)), "Roles", *roles, *(["", "Categories", *groups] if groups else []),
         "", "Last epochs", tail.T.to_string(header=False)]
    )  # fmt: skip
    return Answer(
        text,
        {
            **fitted.provenance, "schema": fitted.schema.as_dict(), **sizes,
            "verbs": fitted.verbs, "history": records(history.tail(3)),
        },
        json,
    )  # fmt: skip
