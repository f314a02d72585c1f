"""What the runs of a study say, in sentences that hold for any rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol, runtime_checkable

import numpy as np
import pandas as pd

from ..errors import counted
from ..report.words import ABSENT, joined

#: R² from which latents count as recovered.
RECOVERED = 0.99
#: How near a mean R² must be to the paper's to agree with it; how far apart seeds disagree.
_NEAR, _APART = 0.05, 0.1
#: Loss above the identity's that counts as none; R² of an axis below which a map is no rotation, and by
#: kernel regression from which nothing is lost.
_EQUAL, _BENT, _KEPT = 0.02, 0.8, 0.95
#: R² below which a coordinate is lost.
_LOST = 0.2
#: Runs that a sentence names at the most.
_NAMED = 5
OPTIONS = ("mixing", "n_latent", "n_fixed", "sampler", "ratio", "encoder")
_DRAWN = {"theorem": "as the theorem has it (κr²)", "published": "as it was published (κ)"}


@runtime_checkable
class Told(Protocol):
    """What is read of a study."""

    @property
    def kind(self) -> str: ...  # noqa: D102 (as in `Study`)
    @property
    def rows(self) -> pd.DataFrame: ...  # noqa: D102
    @property
    def about(self) -> Mapping[str, Any]: ...  # noqa: D102
    @property
    def points(self) -> Mapping[str, tuple[np.ndarray, np.ndarray]]: ...  # noqa: D102
    def table(self) -> pd.DataFrame: ...  # noqa: D102
    def axes(self) -> pd.DataFrame: ...  # noqa: D102


def runs_of(study: Told) -> pd.DataFrame:
    """Return the table of a study with the options that name its runs."""
    return study.table().join(study.rows.groupby("run", sort=False)[list(OPTIONS)].first())


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """Return what matters most of `Study.table`, in six columns of text and numbers with the run's name."""
    runs = table.index
    interval = [
        ABSENT if np.isnan(r2) else f"{r2:z.3f}" + _between(low, high)
        for r2, low, high in table[["r2", "low", "high"]].to_numpy(float)
    ]
    return pd.DataFrame(
        {
            "R² (95 % interval)": interval, "worst axis": table["worst"],
            "untrained": table["r2_untrained"], "paper": table["published"],
            "note": [_note(table.loc[run]) for run in runs],
        },
        index=runs,
    )  # fmt: skip


def _between(low: float, high: float) -> str:
    return "" if np.isnan(low) else f" ({low:z.3f} to {high:z.3f})"


def _note(run: pd.Series) -> str:
    notes = [run["note"]] if run["note"] else []
    if run["still improving"] > 0:
        seeds = counted(int(run["seeds"]), "seed")
        notes.append(f"{run['still improving']:.0f} of {seeds} still improving")
    return "; ".join(notes)


def answer(study: Told) -> list[str]:
    """Return what a study answers, then what to know of its seeds and fits."""
    runs = runs_of(study)
    return [
        *_ANSWERS[study.kind](runs[runs["r2"].notna()]),
        *_untrained(runs),
        *_seeds(runs),
        *_bent(study.rows),
        *_stuck(study.rows),
        *_unfinished(study.rows),
        *_failed(runs),
    ]


# the answer of each kind


def _diversity(runs: pd.DataFrame) -> Iterator[str]:
    for (n_fixed, _), of in runs.groupby(["n_fixed", "sampler"], sort=False):
        text = _all_reached(of) if n_fixed == 0 else _some_kept(of)
        yield f"{text}{_paper(of)}"


def _all_reached(of: pd.DataFrame) -> str:
    good, others = of[of["r2"] >= RECOVERED], of[of["r2"] < RECOVERED]
    if good.empty:
        return f"If nothing is fixed, no mean R² reaches {RECOVERED}: it is {_values(others)}."
    text = (
        f"If nothing is fixed, InfoNCE recovers the latents but for a rotation or reflection: the mean R² is "
        f"{RECOVERED} or more for {joined(good['mixing'].unique())}."
    )
    return text if others.empty else f"{text} It is lower for others: {_values(others)}."


def _some_kept(of: pd.DataFrame) -> str:
    losses = [f"{_loss(r)} has {_values(rows)}" for r, rows in of.groupby("ratio", sort=False)]
    good = of[of["r2"] >= RECOVERED]
    found = [
        f"{joined(rows['mixing'])} by {_loss(ratio)}"
        for ratio, rows in good.groupby("ratio", sort=False)
    ]
    verdict = (
        f"Recovered, with {RECOVERED} or more: {'; '.join(found)}."
        if found
        else f"No mean reaches {RECOVERED}."
    )
    return f"{_condition(of)}, R² is as follows: {'; '.join(losses)}. {verdict}{_at_most(of)}"


def _at_most(of: pd.DataFrame) -> str:
    """Say what InfoNCE strives for if some coordinates are fixed and others vary."""
    n_fixed, n_latent = int(of["n_fixed"].iloc[0]), int(of["n_latent"].iloc[0])
    if not (of["ratio"] == 0).any() or n_fixed == n_latent:
        return ""
    most = n_fixed / n_latent
    above = of[(of["ratio"] == 0) & (of["r2"] > most + _NEAR)]
    text = (
        " The lowest loss of InfoNCE is that of maps which keep nothing but what is fixed: their R² is "
        f"{most:.2f} at most, and any value up to it may come out."
    )
    if len(above):
        text += (
            f" Fits with more had a higher loss than these maps have: {joined(above['mixing'])}."
        )
    return text


def _ratio(runs: pd.DataFrame) -> Iterator[str]:
    for (mixing, sampler), of in runs.groupby(["mixing", "sampler"], sort=False):
        best = of["r2"].idxmax()
        if of["r2"][best] <= of["r2_untrained"][best] + _NEAR:
            how = f"{mixing}, positives drawn {_DRAWN[sampler]}"
            yield f"{how}: no ratio recovers more than an encoder before training."
            continue
        text = (
            f"{mixing}, positives drawn {_DRAWN[sampler]}: R² is highest at a ratio of "
            f"{of['ratio'][best]:g}, with {of['r2'][best]:z.3f}"
        )
        plain = of[of["ratio"] == 0]
        if len(plain) and of["ratio"][best] != 0:
            text += f"; InfoNCE, a ratio of 0, has {plain['r2'].iloc[0]:z.3f}"
        others = of.drop(index=best)
        rivals = others.loc[others["highest"] >= of["lowest"][best], "ratio"]
        if len(rivals):
            text += f". Seeds at {joined(f'{r:g}' for r in rivals)} reach as high, so the best ratio is open"
        paper = of["published"].dropna()
        if len(paper) and sampler == "published":
            at = f"{of['ratio'][paper.idxmax()]:g}, with {paper.max():.2f}"
            text += f". Of these ratios, it is highest in the paper at {at}"
        yield f"{text}."


def _encoders(runs: pd.DataFrame) -> Iterator[str]:
    for (_, _, ratio), of in runs.groupby(["n_fixed", "sampler", "ratio"], sort=False):
        both = of.pivot(index="mixing", columns="encoder", values="r2")
        both = both.reindex(index=of["mixing"].unique(), columns=["mlp", "inverse"]).dropna()
        if both.empty:
            continue
        pairs = [f"{b['mlp']:z.3f} and {b['inverse']:z.3f} ({m})" for m, b in both.iterrows()]
        gain = both["inverse"] - both["mlp"]
        far = gain.abs() > _NEAR
        ends = of.pivot(index="mixing", columns="encoder", values=["lowest", "highest"]).loc[
            both.index
        ]
        above = ends["lowest", "inverse"] > ends["highest", "mlp"]
        below = ends["highest", "inverse"] < ends["lowest", "mlp"]
        kinds = {
            "the inverse encoder is better": gain[far & above],
            "it is worse": gain[far & below],
            "seeds of both overlap": gain[far & ~above & ~below],
            f"both are within {_NEAR}": gain[~far],
        }
        told = [f"{what} for {joined(g.index)}" for what, g in kinds.items() if len(g)]
        verdict = "; ".join(told)
        yield (
            f"{_condition(of)}, {_loss(ratio)}: R² of the network and of the inverse encoder is "
            f"{joined(pairs)}. {verdict[:1].upper()}{verdict[1:]}.{_paper(of)}"
        )


_ANSWERS: dict[str, Callable[[pd.DataFrame], Iterator[str]]] = {
    "diversity": _diversity, "ratio": _ratio, "encoders": _encoders,
}  # fmt: skip


def _condition(of: pd.DataFrame) -> str:
    n_fixed, n_latent = int(of["n_fixed"].iloc[0]), int(of["n_latent"].iloc[0])
    if n_fixed == 0:
        return "With nothing fixed"
    if n_fixed == n_latent:
        return "With all coordinates fixed"
    how = _DRAWN[of["sampler"].iloc[0]]
    return f"With {n_fixed} of {counted(n_latent, 'coordinate')} fixed and the others drawn {how}"


def _loss(ratio: float) -> str:
    named = {0.0: "InfoNCE", 1.0: "the corrected loss"}
    return named.get(ratio, f"the loss with a ratio of {ratio:g}")


def _values(of: pd.DataFrame) -> str:
    return joined(f"{row['r2']:z.3f} ({row['mixing']})" for _, row in of.iterrows())


def _paper(of: pd.DataFrame) -> str:
    """Say whether the runs agree with the paper; it drew positives in one way alone."""
    known = of[of["published"].notna()]
    if known.empty:
        return ""
    varies = 0 < known["n_fixed"].iloc[0] < known["n_latent"].iloc[0]
    if varies and known["sampler"].iloc[0] == "theorem":
        spans = [
            f"{_span(rows['published'])} for {_loss(r)}"
            for r, rows in known.groupby("ratio", sort=False)
        ]
        return f" The paper drew positives in the other way alone, and has {joined(spans)}."
    told = (known["high"] - known["low"] <= 2 * _APART) | known["low"].isna()
    known = known[told & (known["still improving"] == 0)]
    if known.empty:
        return (
            " Whether this agrees with the paper cannot be told: seeds differ too much, or fits were still "
            "improving."
        )
    within = (known["low"] <= known["published"]) & (known["published"] <= known["high"])
    agrees = within | ((known["r2"] - known["published"]).abs() <= _NEAR)
    text = f" {agrees.sum()} of {counted(len(known), 'run')} agree with the paper"
    text = (
        text
        if len(known) > 1
        else f" It {'agrees' if agrees.all() else 'disagrees'} with the paper"
    )
    text += f", within {_NEAR} or the 95 % interval"
    off = [f"{row['published']:.2f} for {run}" for run, row in known[~agrees].iterrows()]
    return f"{text}. The paper has {_few(off)}." if off else f"{text}."


def _span(values: pd.Series) -> str:
    low, high = f"{values.min():.2f}", f"{values.max():.2f}"
    return low if low == high else f"{low} to {high}"


# what to know of seeds and fits


def _untrained(runs: pd.DataFrame) -> Iterator[str]:
    """Name runs that recover no more than their encoders do before training."""
    found = runs[runs["r2"] <= runs["r2_untrained"] + _NEAR]
    if len(found):
        named = [
            f"{run} ({row['r2']:z.3f}, untrained {row['r2_untrained']:z.3f})"
            for run, row in found.iterrows()
        ]
        yield f"Encoders before training have as much or more than these runs, within {_NEAR}: {_few(named)}."


def _seeds(runs: pd.DataFrame) -> Iterator[str]:
    done = runs[runs["seeds"] > 0]
    apart = done[done["highest"] - done["lowest"] > _APART]
    if len(apart):
        named = [
            f"{run} ({row['lowest']:z.3f} to {row['highest']:z.3f})"
            for run, row in apart.iterrows()
        ]
        yield f"Seeds differ by more than {_APART} in R², so that no mean is typical: {_few(named)}."
    if len(done) and (done["seeds"] == 1).all():
        yield "There is one seed of each run, so nothing is known of how far seeds differ."


def _bent(rows: pd.DataFrame) -> Iterator[str]:
    """Name runs whose loss is the identity's and whose R² is not: the corrected loss has such optima."""
    some = (rows["n_fixed"] > 0) & (rows["n_fixed"] < rows["n_latent"])
    free = some & (rows["ratio"] == 1) & (rows["sampler"] == "theorem")
    found = rows[free & (rows["excess"].abs() <= _EQUAL) & (rows["worst"] < _BENT)]
    fixed = [np.mean(r2[:n]) for r2, n in found[["r2_axis", "n_fixed"]].to_numpy()]
    folded = np.array(fixed) < _LOST
    twisted = (found["r2_kernel"] >= _KEPT) & ~folded
    for of, what in (
        (
            found[folded],
            "What is fixed is lost. This is how a fold looks: a map such as u to |u| of what is fixed costs "
            "the corrected loss nothing (theorem A.5)",
        ),
        (
            found[twisted],
            f"Kernel regression reads {_KEPT} or more, so nothing is lost. This is how a twist looks: to "
            "turn what varies by an angle that depends on what is fixed costs the corrected loss nothing",
        ),
        (
            found[~(folded | twisted)],
            "The corrected loss has many optima: to fold what is fixed, or to turn what varies by an angle "
            "that depends on it, however wildly, costs nothing",
        ),
    ):
        if len(of):
            named = [
                f"{row['run']}, seed {row['seed']} ({row['r2']:z.3f})" for _, row in of.iterrows()
            ]
            yield (
                f"The loss equals the identity's, within {_EQUAL} nats, but linear R² is low: {_few(named)}. "
                f"{what}. It is as good an optimum as the truth, so longer training does not mend it."
            )


def _stuck(rows: pd.DataFrame) -> Iterator[str]:
    """Name runs that did not find the optimum which theory speaks of."""
    found = rows[rows["excess"] > _NEAR]
    if len(found):
        named = [
            f"{row['run']}, seed {row['seed']} ({row['excess']:.3f} nats above)"
            for _, row in found.iterrows()
        ]
        yield (
            f"These fits ended above the loss of the truth, so they tell nothing of what the best maps "
            f"recover: {_few(named)}. Widen the network (hidden; an inverse encoder has no width), raise "
            "n_negatives, or train for longer."
        )


def _unfinished(rows: pd.DataFrame) -> Iterator[str]:
    n, done = int((rows["state"] == "still improving").sum()), int((rows["failed"] == "").sum())
    if n:
        verb = "was" if n == 1 else "were"
        yield (
            f"{n} of {counted(done, 'fit')} {verb} still improving at the last step: raise n_steps before "
            "you judge what is not recovered."
        )


def _failed(runs: pd.DataFrame) -> Iterator[str]:
    notes = runs.loc[runs["note"] != "", "note"]
    if len(notes):
        yield f"Not all runs could be made. {_few([f'{run}, {why}' for run, why in notes.items()])}"


def _few(named: list[str]) -> str:
    more = len(named) - _NAMED
    return "; ".join([*named[:_NAMED], *([f"and {more} more"] if more > 0 else [])])
