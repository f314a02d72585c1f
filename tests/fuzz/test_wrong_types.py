"""Every public function and method, given what is of the wrong type: an error that is a sentence.

Functions are found, not listed. Each argument in turn is replaced by wrong values while the others are
right, so that the call gets as far as it can; then two arguments change places.
"""

from __future__ import annotations

import inspect
import itertools
import warnings
from collections.abc import Callable, Iterator
from types import FunctionType, ModuleType
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from fuzz.common import EFFORT

import chreode as ch

ENDLESS: list[Any] = []
ENDLESS.append(ENDLESS)
#: What nobody means, and what is easily meant: a string for a list, a list for a number, the wrong object.
WRONG = (
    None,
    True,
    -1,
    0,
    10**400,
    0.5,
    float("nan"),
    float("inf"),
    "",
    "pDC",
    b"pDC",
    "\x00",
    [],
    ["pDC"],
    [None],
    [[1, 2], [3]],
    ENDLESS,
    (),
    {},
    {"batch": "nowhere"},
    {1: 2},
    {"batch": None},
    {"batch": []},
    {"batch": ["a", "b"]},
    set("ab"),
    object(),
    int,
    len,
    slice(3),
    range(2),
    np.nan,
    np.array(3),
    np.zeros((2, 0)),
    np.array(["a", None], object),
    np.array(["2020-01-01"], "M8[D]"),
    1j,
    pd.Series(["a"]),
    pd.NA,
    pd.DataFrame({"a": ["x"]}),
    sp.csr_matrix((2, 2)),
    ad.AnnData(np.ones((2, 2))),
    ch.Schema(),
    ch.PCA,
    ch.PCA(),
    (i for i in "ab"),
    Exception("x"),
)
#: They look for a file of the network.
OFFLINE = {"datasets.kang", "datasets.pbmc_mosaic"}
#: Of a model, what users call; the rest is the contract of those who write one.
OF_MODELS = {"fit"}
#: Wrong values that each argument is given; all of them where CHREODE_FUZZ says to try harder.
TRIED = 4 if EFFORT == 1 else len(WRONG)


class Begun(ch.FitError):
    """Compute has begun: the arguments were taken."""


def public() -> Iterator[tuple[str, Callable[..., Any]]]:
    """Yield what ``chreode`` and its packages name: functions, classes, and methods of these."""
    seen = set()
    for name in dir(ch):
        thing = getattr(ch, name)
        members = [(name, thing)]
        if isinstance(thing, ModuleType):
            names = getattr(thing, "__all__", vars(thing))
            members = [(f"{name}.{n}", getattr(thing, n)) for n in names if not n.startswith("_")]
            own = hasattr(thing, "__all__")
            members = [
                m for m in members if own or getattr(m[1], "__module__", "") == thing.__name__
            ]
        for label, member in members:
            if member is ch.Spec:  # made by fits, for those who write models
                continue
            if isinstance(member, FunctionType):
                yield label, member
            if (
                isinstance(member, type)
                and not issubclass(member, Exception)
                and member not in seen
            ):
                seen.add(member)
                yield label, member
                for n, method in inspect.getmembers(member, inspect.isroutine):
                    ours = str(getattr(method, "__module__", "")).startswith("chreode")
                    if (
                        ours
                        and n[0] != "_"
                        and (n in OF_MODELS or not issubclass(member, ch.Model))
                    ):
                        yield f"{label}.{n}", method


PUBLIC = dict(public())


@pytest.fixture(scope="module")
def right(_simulated, tmp_path_factory) -> dict[str, Any]:
    """Values that fit, by the name of the argument, and of an argument of one function."""
    folder = tmp_path_factory.mktemp("types")
    cells = _simulated[:120, :60].copy()
    cells.obsm["X_e"] = np.random.default_rng(0).normal(size=(120, 3)).astype(np.float32)
    cells.write_h5ad(folder / "cells.h5ad")
    schema = ch.Schema(counts="layers/counts", batch="obs/batch", label="obs/cell_type")
    fitted = ch.SCVI(max_epochs=1, n_hidden=8, n_latent=2).fit(cells, schema, progress=False)
    fitted.save(folder / "model")
    label, batch = cells.obs["cell_type"].to_numpy(), cells.obs["batch"].to_numpy()
    x = cells.obsm["X_e"]
    near = ch.metrics.exact_neighbours(x, 20)
    scores = ch.metrics.integration_scores(x, label, batch, metrics=["clisi", "ilisi"])
    bench = ch.bench.integration(
        cells, schema, ["e"], seeds=(0,), metrics=["clisi", "ilisi"], progress=False
    )
    bench.save(folder / "bench.json")
    counts = sp.csr_matrix(cells.layers["counts"])
    edges = pd.DataFrame({"source": ["a"], "target": ["b"], "weight": [1.0], "confidence": [0.5]})
    return {
        "data": cells,
        "schema": schema,
        "fitted": fitted,
        "model": ch.PCA(n_latent=2),
        "to": {"batch": "batch_0"},
        "folder": folder / "model",
        "path": folder / "out.html",
        "paths": folder / "cells.h5ad",
        "n": 5,
        "methods": ["e"],
        "labels": label,
        "batches": batch,
        "batch": pd.factorize(batch)[0],
        "clusters": label,
        "groups": batch,
        "x": x,
        "pre": x,
        "embedding": x,
        "neighbours": near,
        "scores": scores,
        "bench": bench,
        "counts": counts,
        "real": counts,
        "generated": counts,
        "edges": edges,
        "genes": list(cells.var_names[:2]),
        "title": "title",
        "sections": [],
        "heading": "heading",
        "k": 5,
        "slot": "X",
        "text": "layers/counts",
        "values": {"counts": "X"},
        "condition": "batch",
        "name": "toggle",
        "rows": np.arange(5),
        "tests": {},
        "kept": np.ones(120, bool),
        "n_cells": 120,
        "reason": "none",
        "statistic": lambda counts: 0.5,
        "value": 0.5,
        "curves": bench.curves,
        "role": "counts",
        "key": "pca",
        "word": "pca",
        "known": ["pca"],
        "x_genes": x,
        "self": {
            "Fitted": fitted,
            "Bench": bench,
            "Score": scores["clisi"],
            "Neighbours": near,
            "Schema": schema,
            "Spec": fitted.spec,
            "Place": ch.Place.parse("X"),
            "Model": ch.PCA(n_latent=2),
        },
        "bench.Bench.load": {"path": folder / "bench.json"},
        "plot.history": {"fitted": fitted},
        "augment": {"fitted": fitted},
    }


def bound(label: str, call: Callable[..., Any], right: dict[str, Any]) -> dict[str, Any] | None:
    """Return arguments that fit, by name; None where one is not known here."""
    own, given = right.get(label, {}), {}
    for name, parameter in inspect.signature(call).parameters.items():
        if name == "self":
            owner = label.split(".")[-2]
            owner = (
                "Model"
                if owner in dir(ch) and issubclass(getattr(ch, owner, int), ch.Model)
                else owner
            )
            if owner not in right["self"]:
                return None
            given[name] = right["self"][owner]
        elif name in own or (parameter.default is parameter.empty and name in right):
            given[name] = own.get(name, right.get(name))
        elif parameter.default is parameter.empty and parameter.kind.name not in (
            "VAR_KEYWORD",
            "VAR_POSITIONAL",
        ):
            return None
    return given


def complaint(call: Callable[..., Any], given: dict[str, Any]) -> str:
    """Return what is wrong with how the call ended: nothing where it answered, or said why not."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            names = list(inspect.signature(call).parameters)
            first = [given.pop("self")] if names[:1] == ["self"] else []
            call(*first, **given)
    except (ch.ChreodeError, TypeError) as error:
        said = str(error)
        raised = inspect.trace()[-1].filename
        if isinstance(error, ch.ChreodeError) or "chreode" in raised or "missing" in said:
            return "" if len(said) > 12 and " " in said else f"no sentence: {said!r}"
        return f"TypeError of {raised}: {said[:90]}"
    except Exception as error:  # noqa: BLE001 (any other is what is looked for)
        where = [f for f in inspect.trace() if "chreode" in f.filename][-1]
        return f"{type(error).__name__} at {where.filename[-30:]}:{where.lineno}: {str(error)[:90]}"
    return ""


#: UMAP is compiled for ten seconds.
SLOW = {"plot.embedding"}


@pytest.mark.parametrize(
    "label",
    [pytest.param(k, marks=[pytest.mark.slow] if k in SLOW else []) for k in sorted(PUBLIC)],
)
def test_wrong_types_are_told_in_a_sentence(label, right, monkeypatch, tmp_path):
    call = PUBLIC[label]
    plain = bound(label, call, right)
    if label in OFFLINE or plain is None:
        pytest.skip("its arguments are made by no one here")
    monkeypatch.chdir(tmp_path)

    def begin(*_, **__):
        raise Begun("it begins here")

    monkeypatch.setattr(ch.Model, "_learn", begin)
    for module in ("recovery", "further"):
        monkeypatch.setattr(f"chreode.identify.{module}.minimise", begin)
    rng = np.random.default_rng(sum(map(ord, label)))
    bad, calls = [], 0
    names = [
        n for n, p in inspect.signature(call).parameters.items() if p.kind.name != "VAR_KEYWORD"
    ]
    for name in names:
        if name == "self":
            continue
        for i in rng.permutation(len(WRONG))[:TRIED]:
            calls += 1
            found = complaint(call, {**plain, name: WRONG[i]})
            bad += (
                [f"{label}({name}={str(WRONG[i])[:40]!r} {type(WRONG[i]).__name__}): {found}"]
                if found
                else []
            )
    for one, other in itertools.combinations([n for n in plain if n != "self"], 2):
        calls += 1
        found = complaint(call, {**plain, one: plain[other], other: plain[one]})
        bad += [f"{label}({one} and {other} exchanged): {found}"] if found else []
    print(f"{calls} calls")
    assert not bad, "\n".join(bad)
