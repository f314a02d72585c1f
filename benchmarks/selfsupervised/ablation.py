"""What each augmentation adds to SimCLR, on cells on which no option was chosen."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import chreode as ch

from ..common import Row, folded, spread
from ..speed.ratios import markdown
from .methods import by_task, probed
from .tasks import SEEDS
from .tuning import of

_FOUR = ["mask", "noise", "swap", "crossover"]
#: Strengths are those of scSSL-Bench where it has the augmentation.
VARIANTS: dict[str, dict[str, Any]] = {
    "none": {"augment": []},
    **{name: {"augment": [name]} for name in (*_FOUR, "programmes", "thin", "mnn", "bbknn")},
    "mask, half of the genes": {"augment": ["mask"], "mask": 0.5},
    **{f"mask + {name}": {"augment": ["mask", name]} for name in ("thin", "mnn", "bbknn")},
    "mask + noise + swap + crossover": {"augment": _FOUR},
    **{f"mask, {n} dimensions": {"augment": ["mask"], "n_latent": n} for n in (16, 256)},
}
#: Batches that differ much, whose labels no clustering made; and donors that no fit has seen.
CORRECTION, TYPING = "lines", "kang-ctrl, two donors"


def cases() -> list[Row]:
    return [
        {"task": task, "views": name, "seed": seed, "options": options}
        for task in (CORRECTION, TYPING)
        for name, options in VARIANTS.items()
        for seed in SEEDS
    ]


def measure(case: Row, data: Path, kept: Path) -> Row:
    return probed(case, case["views"], ch.SimCLR(**of(case["options"])), data, kept)


#: Task, metric, heading.
COLUMNS = [
    (CORRECTION, "bio", "lines: bio"), (CORRECTION, "batch", "batch"), (CORRECTION, "total", "total"),
    (TYPING, "knn_shared_f1", "Kang: macro-F1"), (TYPING, "knn_f1_at_0.1", "at 10 % of the counts"),
]  # fmt: skip


def render(rows: list[Row]) -> list[str]:
    """Return the means over seeds, and folded their ranges."""
    found = by_task(rows)
    header = ("views", *(heading for *_, heading in COLUMNS))

    def table(tell: Any) -> list[str]:
        return markdown(
            header,
            [
                (
                    name,
                    *(
                        tell(found.get(task, {}).get(name, []), metric)
                        for task, metric, _ in COLUMNS
                    ),
                )
                for name in VARIANTS
            ],
        )

    def ranges(rows: list[Row], metric: str) -> str:
        return spread([told["scores"].get(metric, float("nan")) for told in rows])

    def mean(rows: list[Row], metric: str) -> str:
        return ranges(rows, metric).partition(" ")[0]

    return [
        *table(mean),
        "",
        *folded("The same, with the lowest and highest of three seeds", table(ranges)),
    ]
