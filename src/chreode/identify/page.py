"""The page of a study: its answer, then what it rests on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..errors import counted
from ..losses.optima import log_mean_exp
from ..plot import recovery_dots, recovery_over_ratio, rescaled_losses, spheres
from ..report.page import Section, write
from ..report.words import duration, listed
from .answer import Told, answer, runs_of, summary

TITLES = {
    "diversity": "Does a contrastive loss recover the latents?",
    "ratio": "Which negatives recover the latents?",
    "encoders": "Does an encoder like the inverse recover the latents?",
}
#: What has a table of its own, of at most fifteen rows each for the usual grids.
_APART = {
    "diversity": ["n_fixed", "sampler"], "ratio": ["mixing"], "encoders": ["n_fixed", "sampler", "ratio"],
}  # fmt: skip
#: Options that all runs may share, and which say what a run is.
_SHARED = ("n_latent", "kappa", "hidden", "n_negatives", "batch_size", "n_steps", "lr")
_COLUMNS = (
    "R² is linear and the mean over axes and seeds, with the 95 % interval of the mean; worst axis is the R² "
    "of the coordinate that is recovered worst; untrained is the R² of the encoder before training; paper is "
    "the R² that the paper reports. It drew positives by the published sampler alone, so beside runs of the "
    "theorem's sampler its value is of other positives."
)
_GEOMETRY = {
    "r2_kernel": "R² by kernel", "mcc": "MCC", "angle": "angle error", "orthogonal": "distance to orthogonal",
    "alignment": "alignment", "uniformity": "uniformity",
}  # fmt: skip
_LOSSES = {
    "loss": "loss",
    "excess": "above the identity's",
    "closed": "identity's, closed form",
}


def write_study(path: str | Path, study: Told) -> Path:
    """Write the report of a study, and return its path.

    Raises
    ------
    StoreError
        If the place cannot be written.
    """
    return write(path, TITLES[study.kind], sections(study), study.about)


def sections(study: Told) -> list[Section]:
    """Return the answer, tables and pictures of a study."""
    return [
        Section("The answer", listed(answer(study)), figures=(_runs_picture(study),)),
        *_tables(study),
        *_before_and_after(study),
        *_lowest(study.rows),
        Section("Everything else", tables=tuple(_everything_else(study))),
        Section("How it came about", _came_about(study)),
    ]


def _runs_picture(study: Told) -> tuple[str, Axes]:
    if study.kind == "ratio":
        caption = (
            "R² over the share of negatives from the anchor's own support. 0 is InfoNCE, 1 the "
            "corrected loss. Solid lines: positives drawn as the theorem has it. Dashed: as it was "
            "published. Grey: the paper."
        )
        return caption, recovery_over_ratio(study.rows)
    caption = (
        "R² of each run. Dots are seeds, ticks their means, grey diamonds the paper's values, and hollow "
        "circles the encoders before training."
    )
    return caption, recovery_dots(study.rows)


def _tables(study: Told) -> Iterator[Section]:
    """Yield a section with a table for each part of the grid."""
    for _, of in runs_of(study).groupby(_APART[study.kind], sort=False):
        first = of.iloc[0]
        heading = first.name.partition(", ")[2].rpartition(", ")[0]
        if study.kind == "ratio":
            heading = first["mixing"]
        elif study.kind == "encoders":
            heading = of.index[0].partition(", ")[2].removesuffix(", inverse encoder")
        heading = f"{heading[:1].upper()}{heading[1:]}"
        yield Section(heading, tables=((f"R² of each run. {_COLUMNS}", summary(of)),))


def _before_and_after(study: Told) -> Iterator[Section]:
    """Yield the spheres of the first seed, a picture for each mixing."""
    if not study.points:
        return
    mixing = study.rows.drop_duplicates("run").set_index("run")["mixing"]
    figures: list[tuple[str, Figure]] = []
    for name in mixing.unique():
        found = {run: points for run, points in study.points.items() if mixing[run] == name}
        if found:
            latents = next(iter(found.values()))[0]  # all runs of a seed have the same
            recovered = {run.partition(", ")[2]: points for run, (_, points) in found.items()}
            caption = f"{name}: the latents, and what each run recovered."
            figures.append((caption, spheres(latents, recovered)))
    n = int(study.rows["n_latent"].max())
    first = "" if n <= 3 else f" Of {counted(n, 'coordinate')} the first three are shown."
    halves = "" if n < 3 else " Each sphere is shown as its two halves, seen from opposite sides."
    yield Section(
        "Before and after",
        "Points are coloured by the first latent coordinate, which points upwards and is the first to be "
        "fixed. What was recovered is turned or mirrored so that it lies as near to the truth as it can."
        f"{halves}{first} Shown is the first seed, and R² above each picture is of the points in it; runs of "
        "which this seed failed are left out.",
        figures=tuple(figures),
    )


def _lowest(rows: pd.DataFrame) -> Iterator[Section]:
    some = rows[(rows["n_fixed"] > 0) & (rows["n_fixed"] < rows["n_latent"])]
    asked = some[["kappa", "n_latent", "n_fixed"]].drop_duplicates()
    if asked.empty:
        return
    figures = tuple(
        (
            f"{m} of {counted(int(n), 'coordinate')} fixed, kappa {kappa:.3g}: loss of the stretched maps.",
            rescaled_losses(float(kappa), int(n), int(m)),
        )
        for kappa, n, m in asked.itertuples(index=False)
    )
    yield Section(
        "Which map has the lowest loss",
        "The losses of maps that stretch what varies, v, by λ and scale the result to length 1, in closed "
        "form. λ = 1 is the identity, which has the loss of every rotation. A dot is the lowest point of a "
        "line; a triangle says that the line still falls at the edge.\n\n"
        "If InfoNCE (orange) is lowest elsewhere than at 1, no rotation is its best map (theorem 4.5). The "
        "corrected loss (blue) is lowest at 1 if positives are drawn as the theorem has it (solid; theorem "
        "4.6). If they are drawn as it was published (dashed), it need not be.",
        figures=figures,
    )


def _everything_else(study: Told) -> Iterator[tuple[str, pd.DataFrame]]:
    table = study.table()
    rows = study.rows.drop(columns=["r2_axis", "r2_kernel_axis"])
    rows["hidden"] = rows["hidden"].astype(str)
    yield "Every fit. One row for each run and seed.", rows.set_index("run")
    n = int(study.rows["n_latent"].iloc[0])
    even = -4 + float(log_mean_exp(4.0, n))
    formula = ", which is −4 + ln(sinh 4 / 4)" if n == 3 else ""
    yield (
        "Geometry. Means over seeds. R² by kernel regression also sees latents that were recovered in "
        "another shape. MCC is 1 if axes are recovered up to order and sign; a rotation lowers "
        "it. The angle error is from 0 to 2, and 0 is best. Distance to orthogonal is 0 if the sphere is "
        "recovered. Alignment is the mean squared distance of positives. Uniformity of an even sphere is "
        f"{even:.3f} in {counted(n, 'dimension')}{formula}.",
        table[list(_GEOMETRY)].rename(columns=_GEOMETRY),
    )
    yield (
        "Loss. In nats, with 2,000 negatives for each anchor, on latents that were not trained on; means "
        "over seeds. The identity's loss is that of h(x) = z on the same draws, and in closed form.",
        table[list(_LOSSES)].rename(columns=_LOSSES),
    )
    yield (
        "R² of each axis. Means over seeds; coordinates that positives keep come first.",
        study.axes(),
    )
    fits = pd.DataFrame(
        {
            "seeds": table["seeds"], "lowest R²": table["lowest"], "highest R²": table["highest"],
            "still improving": table["still improving"], "time of a fit": table["seconds"].map(duration),
            "note": table["note"],
        }
    )  # fmt: skip
    yield "Fits. Seeds, how many of them were still improving, and the mean time of training.", fits


def _came_about(study: Told) -> str:
    rows = study.rows
    shared = [
        f"{name} {values[0]:.4g}" if isinstance(values[0], float) else f"{name} {values[0]}"
        for name in _SHARED
        if len(values := rows.loc[rows[name].astype(str).drop_duplicates().index, name].tolist())
        == 1
    ]
    seeds = ", ".join(map(str, sorted(rows["seed"].unique())))
    return (
        "Latents are drawn evenly from a sphere, and positives about them. A frozen function, the mixing, "
        "makes data of both. An encoder sees the data alone and learns by contrast. Linear regression then "
        "tells latents from what it says, on points that neither has seen.\n\n"
        f"All runs share: {', '.join(shared)}. Seeds: {seeds}.\n\n"
        "The paper is The Loss Is Not Enough (2026), arXiv:2606.04280. It drew positives with fixed "
        "coordinates by what is called the published sampler here."
    )
