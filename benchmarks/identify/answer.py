"""The first lines of docs/coverage-measured.md: who tells most, and whether coverage says so beforehand."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

import numpy as np

from ..common import Row
from .cells import AS_IT_IS, DEFAULTS, MODELS, UNTRAINED, VARIED, VIEWS, by_case, means, named
from .relation import POOLED, PREDICTORS, correlations, pairs
from .wells import CELLS, DATA, RNA

BASELINE = ("PCA, 10", AS_IT_IS)
#: What is asked of an embedding: data set, and which of what was mixed.
ASKED = {
    "the shares of three RNAs": (RNA, DATA[RNA].mixed[:3]),
    "the amount of RNA": (RNA, DATA[RNA].mixed[3:]),
    "the numbers of cells of three lines": (CELLS, DATA[CELLS].mixed),
}
Key = tuple[str, str]


def scores(rows: Sequence[Row], keys: Sequence[Key]) -> dict[str, dict[Key, float]]:
    """Return the mean R² of every embedding for all that is asked."""
    found = by_case(list(rows))
    asked: dict[str, dict[Key, float]] = {}
    for question, (data, factors) in ASKED.items():
        told = {key: means(found.get((data, *key), {}), data) for key in keys}
        asked[question] = {key: fmean(of[f] for f in factors) for key, of in told.items() if of}
    return asked


def render(recovered: Sequence[Row], covered: Sequence[Row]) -> list[str]:
    """Return the answer, as short sentences."""
    learned = [key for key in DEFAULTS if key[0] in MODELS or key[0] in VARIED]
    every = [*learned, *((model, views) for model in VARIED for views in VIEWS)]
    of = scores(recovered, [BASELINE, (UNTRAINED, AS_IT_IS), *dict.fromkeys(every)])
    lost = [
        q for q, told in of.items() if told[BASELINE] >= max(told[k] for k in told if k != BASELINE)
    ]
    lines = [_headline(lost, len(of)), ""]
    for question, told in of.items():
        best = max((k for k in learned if k in told), key=told.__getitem__)
        views = max((k for k in every if k in told), key=told.__getitem__)
        lines.append(
            f"- **R² of {question}.** PCA with ten components: {told[BASELINE]:.2f}. The best model with its "
            f"default options is {named(*best)} ({told[best]:.2f}), and the best of all rows with a network "
            f"is {named(*views)} ({told[views]:.2f}). A network that learned nothing has "
            f"{told[UNTRAINED, AS_IT_IS]:.2f}."
        )
    return [*lines, *(_related(recovered, covered) if covered else [])]


def _headline(lost: Sequence[str], asked: int) -> str:
    if len(lost) == asked:
        return (
            "**PCA with ten components tells more of every factor that was mixed than any network here does. "
            "Use PCA for data such as these.**"
        )
    if lost:
        return f"**PCA with ten components tells most of {' and of '.join(lost)}. For the rest, see below.**"
    return (
        "**For each factor that was mixed, some network tells more than PCA with ten components.**"
    )


def _related(recovered: Sequence[Row], covered: Sequence[Row]) -> list[str]:
    """Return a sentence for each predictor: in which data and for which model it tells R² beforehand."""
    lines = []
    for predictor in PREDICTORS:
        found = {}
        for model in VARIED:
            told = correlations(pairs(recovered, covered, model), predictor)
            for data in DATA:
                if (data, POOLED) in told:
                    found[f"{data}, {model}"] = told[data, POOLED]
        if found:
            lines.append(f"- **Does {predictor} predict R²?** {_verdict(found)} {_listed(found)}")
    return lines


def _verdict(found: dict[str, np.ndarray]) -> str:
    signs = [int(low > 0) - int(high < 0) for _, low, high in found.values()]
    less, more, n = signs.count(-1), signs.count(1), len(signs)
    if not less and not more:
        return "No: every interval of the rank correlation holds 0."
    if less == n:
        return (
            "Yes: the more of it an augmentation has, the less the embedding tells of the factor."
        )
    if more == n:
        return (
            "Yes: the more of it an augmentation has, the more the embedding tells of the factor."
        )
    return (
        f"Not everywhere: of {n} rank correlations {less} are surely below 0 (more of it, lower R²), "
        f"{more} surely above, and {n - less - more} may be 0."
    )


def _listed(found: dict[str, np.ndarray]) -> str:
    told = (
        f"{name} {rho:.2f} ({low:.2f} to {high:.2f})" for name, (rho, low, high) in found.items()
    )
    return f"Rank correlation over augmentations, within factors: {'; '.join(told)}."
