"""What embeddings tell of factors that are known: R² for wells that no reader has seen."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

import chreode as ch
from chreode import config
from chreode.data.cells import Cells
from chreode.trials.digest import fingerprint

from ..common import Row, Stopwatch, folded, spread
from ..speed.ratios import markdown
from .wells import ALONE, DATA, EVERY, READERS, r2, read

#: Of every fit, but of those that show what four times as many would do.
EPOCHS = 50
LONGER = {"SimCLR, 200 epochs": ch.SimCLR, "VICReg, 200 epochs": ch.VICReg}
SEEDS = (0, 1, 2)
#: The views of these models are varied; the second number of seeds is for the intervals.
VARIED: dict[str, tuple[Any, int]] = {"SimCLR": (ch.SimCLR, 5), "VICReg": (ch.VICReg, 3)}
#: Models as they are. SimCLR and VICReg with "mask" are theirs.
MODELS: dict[str, Any] = {
    "scVI": ch.SCVI, "MoCo": ch.MoCo, "SimSiam": ch.SimSiam, "NNCLR": ch.NNCLR, "BYOL": ch.BYOL,
    "Barlow Twins": ch.BarlowTwins, "masked autoencoder": ch.MaskedAutoencoder, "CLEAR": ch.CLEAR,
    "CLAIRE": ch.CLAIRE, "Concerto": ch.Concerto,
}  # fmt: skip
#: Closed forms, which have no seed, and the weights that SimCLR starts from: a rate of 0 moves none.
PLAIN: dict[str, Any] = {
    "PCA, 10": ch.PCA(n_latent=10), "PCA, 64": ch.PCA(n_latent=64),
    "untrained": ch.SimCLR(lr=0.0, max_epochs=1),
}  # fmt: skip
UNTRAINED = "untrained"
AS_IT_IS = "default"
#: Each augmentation alone, at its default strength; five of them weaker and stronger too.
VIEWS: dict[str, dict[str, Any]] = {
    "none": {"augment": ()},
    **{n: {"augment": (n,)} for n in ("mask", "swap", "crossover", "thin", "noise")},
    **{n: {"augment": (n,)} for n in ("programmes", "mnn", "bbknn")},
    "mask, weak": {"augment": ("mask",), "mask": 0.05},
    "mask, strong": {"augment": ("mask",), "mask": 0.6},
    "swap, weak": {"augment": ("swap",), "swap": 0.03},
    "swap, strong": {"augment": ("swap",), "swap": 0.4},
    "crossover, weak": {"augment": ("crossover",), "crossover": 0.05},
    "crossover, strong": {"augment": ("crossover",), "crossover": 0.6},
    "thin, weak": {"augment": ("thin",), "thin": 0.5},
    "thin, strong": {"augment": ("thin",), "thin": 0.01},
    "noise, weak": {"augment": ("noise",), "noise_scale": 0.05},
    "noise, strong": {"augment": ("noise",), "noise_scale": 0.8},
}  # fmt: skip
N_DEFAULT = 9


def cases() -> list[Row]:
    """Return the cases, those first without which there is no answer; then strengths, then seeds."""
    default, strengths = list(VIEWS)[:N_DEFAULT], list(VIEWS)[N_DEFAULT:]
    found = [
        *_of(PLAIN, (AS_IT_IS,), 0), *_of(["SimCLR"], default, 0), *_of(["scVI"], (AS_IT_IS,), 0),
        *_of(["SimCLR"], strengths, 0), *_of(["VICReg"], list(VIEWS), 0),
        *_of([name for name in MODELS if name != "scVI"], (AS_IT_IS,), 0),
    ]  # fmt: skip
    for seed in range(1, max(n for _, n in VARIED.values())):
        varied = [name for name, (_, n) in VARIED.items() if seed < n]
        found += _of(varied, list(VIEWS), seed)
        if seed in SEEDS:
            found += _of([UNTRAINED, *MODELS], (AS_IT_IS,), seed)
    return [*found, *_of(["PCA, 10"], (AS_IT_IS,), 0, ALONE), *_of(LONGER, (AS_IT_IS,), 0)]


def _of(models: Any, views: Any, seed: int, data: Any = DATA) -> list[Row]:
    return [
        {"data": some, "model": model, "views": name, "seed": seed}
        for model in models for name in views for some in data
    ]  # fmt: skip


def model_of(case: Row) -> Any:
    """Return the model of a case with its options."""
    if case["model"] in PLAIN:
        return PLAIN[case["model"]]
    if case["model"] in LONGER:
        return LONGER[case["model"]](max_epochs=4 * EPOCHS)
    if case["model"] in VARIED:
        return VARIED[case["model"]][0](max_epochs=EPOCHS, **VIEWS[case["views"]])
    return MODELS[case["model"]](max_epochs=EPOCHS)


@cache
def opened(name: str, folder: Path) -> tuple[Any, str]:
    """Return the wells and a hash of what a fit reads of them."""
    wells = read(name, folder)
    return wells, fingerprint(Cells(wells, EVERY[name].schema))


def measure(case: Row, data: Path, kept: Path) -> Row:  # noqa: ARG001 (the contract of a table)
    wells, of_data = opened(case["data"], data)
    model, of = model_of(case), EVERY[case["data"]]
    with Stopwatch() as watch:
        fitted = model.fit(wells, of.schema, seed=case["seed"], progress=False)
    x = fitted.embed(wells, progress=False)
    return {
        "r2": r2(x, wells.obs, of.factors), "n_latent": x.shape[1], "cells": wells.n_obs,
        "genes": wells.n_vars, "epochs": getattr(model, "max_epochs", None), "data": of_data,
        "config": config.as_dict(model), "state": fitted.provenance["state"],
        "threads": torch.get_num_threads(), **watch.times(),
    }  # fmt: skip


# the tables

#: R² by factor, a list over seeds.
Told = dict[str, list[float]]


def by_case(rows: list[Row], reader: str = "linear") -> dict[tuple[str, str, str], Told]:
    """Return R² by data set, model and views."""
    found: dict[tuple[str, str, str], Told] = {}
    for row in sorted(rows, key=lambda row: row["case"]["seed"]):
        case = row["case"]
        of = found.setdefault((case["data"], case["model"], case["views"]), {})
        for factor, value in row["r2"][reader].items():
            of.setdefault(factor, []).append(value)
    return found


def named(model: str, views: str) -> str:
    return model if views == AS_IT_IS else f"{model}: {views}"


#: SimCLR and VICReg have masking by default.
DEFAULTS = [
    *((name, AS_IT_IS) for name in PLAIN), *((name, "mask") for name in VARIED),
    *((name, AS_IT_IS) for name in MODELS),
]  # fmt: skip


def render(rows: list[Row]) -> list[str]:
    """Return what every model tells by its defaults, what SimCLR and VICReg tell by views, and all of it."""
    plain = [(name, AS_IT_IS) for name in PLAIN]
    lines = ["**Every model with its default options.**", "", *_short(rows, DEFAULTS), ""]
    for model in VARIED:
        of_views = [*plain, *((model, views) for views in VIEWS)]
        lines += [f"**{model}, by augmentation.**", "", *_short(rows, of_views), ""]
    longer = ((name, AS_IT_IS) for name in LONGER)
    views = ((model, views) for model in VARIED for views in VIEWS)
    every = list(dict.fromkeys([*DEFAULTS, *longer, *views]))
    for reader in READERS:
        for data, of in DATA.items():
            found = by_case(rows, reader)
            table = [
                (named(*key), *(spread(told.get(factor, [])) for factor in of.factors))
                for key in every if (told := found.get((data, *key)))
            ]  # fmt: skip
            title = f"{data}, {reader} reader: R² of every factor, mean (lowest to highest seed)"
            lines += [*folded(title, markdown(("embedding", *of.factors), table)), ""]
    return [*lines, *_alone(rows)]


def _short(rows: list[Row], keys: list[tuple[str, str]]) -> list[str]:
    """Return the mean over what was mixed of a kind, and the factor that is told worst; the best is bold."""
    found = by_case(rows)
    table = {}
    for key in keys:
        rna, cells = (means(found.get((data, *key), {}), data) for data in DATA)
        if rna and cells:
            *shares, amount = rna.values()
            worst = min({**rna, **cells}.items(), key=lambda item: item[1])
            table[key] = (fmean(shares), amount, fmean(cells.values()), worst)
    if not table:
        return []
    best = [max(row[k] for row in table.values()) for k in range(3)]
    lines = [
        (
            named(*key), *(_bold(value, value == top) for value, top in zip(values, best, strict=True)),
            f"{worst[0]} {worst[1]:.2f}",
        )
        for key, (*values, worst) in table.items()
    ]  # fmt: skip
    header = ("embedding", "shares of RNA", "amount of RNA", "numbers of cells", "worst factor")
    return markdown(header, lines)


def means(told: Told, data: str) -> dict[str, float]:
    """Return the mean over seeds of what was mixed."""
    return {factor: fmean(told[factor]) for factor in DATA[data].mixed if factor in told}


def _bold(value: float, best: bool) -> str:
    return f"**{value:.2f}**" if best else f"{value:.2f}"


def _alone(rows: list[Row]) -> list[str]:
    """Return what ten components of all genes of a single file tell."""
    found, lines = by_case(rows), []
    for name, of in ALONE.items():
        if told := found.get((name, "PCA, 10", AS_IT_IS)):
            values = ", ".join(f"{factor} {told[factor][0]:.2f}" for factor in of.mixed)
            lines.append(f"- `{name}`: {values}")
    return folded("Ten principal components of all genes, in single files", lines) if lines else []
