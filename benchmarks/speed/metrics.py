"""Metrics of integration of one embedding: the same list, first call in a new process and later ones."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import numpy as np

from ..common import Row, folded
from .harness import Case, Folders, Prepared, Side
from .ratios import laps, mark, markdown, median, ratio, spread

THEIRS = Side("scib-metrics", "scib_metrics", rival=True)
OURS = Side("chreode", "chreode")
#: Key here -> key there. Leiden is left out: the two search other resolutions.
KEYS = {
    "isolated_labels": "isolated_labels",
    "nmi_kmeans": "nmi_ari_cluster_labels_kmeans_nmi",
    "ari_kmeans": "nmi_ari_cluster_labels_kmeans_ari",
    "silhouette_label": "silhouette_label",
    "clisi": "clisi_knn",
    "bras": "bras",
    "ilisi": "ilisi_knn",
    "kbet": "kbet_per_label",
    "graph_connectivity": "graph_connectivity",
    "pcr_comparison": "pcr_comparison",
}
CALLS = ("first call", "second call", "third call")


def cases(quick: bool) -> list[Case]:
    sizes = {2_000: 90} if quick else {10_000: 120, 50_000: 600}  # cells: seconds of a repeat
    repeats = 1 if quick else 3
    return [
        Case(
            "metrics", f"{cells:,} cells", (THEIRS, OURS),
            {"cells": cells, "dimensions": 10, "types": 10, "batches": 5, "seed": 0},
            repeats * cost, repeats,
        )
        for cells, cost in sizes.items()
    ]  # fmt: skip


def prepare(settings: Row, folders: Folders) -> Prepared:
    """Types are clouds; before integration, batches shift them more than after."""
    n, width = settings["cells"], settings["dimensions"]
    rng = np.random.default_rng(settings["seed"])
    label, batch = (
        rng.integers(settings["types"], size=n),
        rng.integers(settings["batches"], size=n),
    )
    cloud = rng.normal(0, 2, (settings["types"], width))[label] + rng.normal(size=(n, width))
    shift = rng.normal(size=(settings["batches"], width))[batch]
    arrays = {
        "x": (cloud + 0.3 * shift).astype(np.float32),
        "pre": np.hstack([cloud + shift, rng.normal(size=(n, 40))]).astype(np.float32),
        "label": np.char.add("type", label.astype(str)),
        "batch": np.char.add("batch", batch.astype(str)),
    }
    file = folders.scratch / f"embedding-{n}.npz"
    np.savez(file, **arrays)
    digest = hashlib.sha256(b"".join(np.ascontiguousarray(a).tobytes() for a in arrays.values()))
    return {"file": str(file), "sha256": digest.hexdigest()}


# the sides; the first lap counts from the start of the process


def chreode(given: Prepared, lap: Callable[..., None]) -> None:
    import torch

    from chreode.metrics.integration import integration_scores

    torch.set_num_threads(given["threads"])
    a = _arrays(given)
    for name in CALLS:
        found = integration_scores(
            a["x"], a["label"], a["batch"], pre=a["pre"], seed=given["seed"], metrics=KEYS
        )
        lap(name, scores={key: found[key].value for key in KEYS})


def scib_metrics(given: Prepared, lap: Callable[..., None]) -> None:
    import pandas as pd
    from anndata import AnnData
    from scib_metrics.benchmark import Benchmarker, BioConservation

    a = _arrays(given)
    for name in CALLS:
        cells = AnnData(
            obs=pd.DataFrame({k: pd.Categorical(a[k]) for k in ("label", "batch")}),
            obsm={"x": a["x"], "pre": a["pre"]},
        )
        cells.obs_names = cells.obs_names.astype(str)
        bench = Benchmarker(
            cells, "batch", "label", ["x"], BioConservation(nmi_ari_cluster_labels_leiden=False),
            pre_integrated_embedding_obsm_key="pre", n_jobs=given["threads"], progress_bar=False,
        )  # fmt: skip
        bench.benchmark()
        found = bench.get_results(min_max_scale=False, clean_names=False).loc["x"]
        lap(name, scores={ours: float(found[theirs]) for ours, theirs in KEYS.items()})


def _arrays(given: Prepared) -> dict[str, np.ndarray]:
    with np.load(given["file"], allow_pickle=False) as arrays:
        return dict(arrays)


# the table


def render(rows: list[Row]) -> list[str]:
    short, full, apart = [], [], []
    for row in rows:
        for name in CALLS:
            theirs, ours = (laps(row, side.label, name) for side in (THEIRS, OURS))
            who, found = f"{row['case']}, {name}" + mark(row, *CALLS), ratio(theirs, ours)
            short.append((who, median(theirs), median(ours), found.plain()))
            full.append((who, spread(theirs), spread(ours), str(found)))
        apart.append(f"{row['case']}: {_differences(row)}.")
    header = ("", f"{THEIRS.label}, s", f"{OURS.label}, s", "times as fast")
    return [
        *markdown(header, short),
        "",
        "Largest difference of a score. " + " ".join(apart),
        "",
        *folded("With ranges and 95 % intervals", markdown(header, full)),
    ]


def _differences(row: Row) -> str:
    theirs, ours = (row["runs"][side.label][0][-1]["scores"] for side in (THEIRS, OURS))
    apart = {key: abs(theirs[key] - ours[key]) for key in KEYS}
    worst = sorted(apart, key=apart.__getitem__, reverse=True)[:3]
    return ", ".join(f"{key} {apart[key]:.4f}" for key in worst)
