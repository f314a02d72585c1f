"""The image experiment on scikit-learn's digits: measure what has no row yet, and write docs/images.md.

It can be stopped and started again at any time.
"""

from __future__ import annotations

import math
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import pandas as pd
from benchmarks.common import ROOT, Row, folded, spread
from benchmarks.speed.ratios import markdown
from benchmarks.tables import measure as measure_tables
from benchmarks.tables import write

import chreode as ch
from chreode.identify.imaging.data import parts
from chreode.version import code_hash

SEEDS = (0, 1, 2, 3, 4)
ENCODERS = ("resnet", "vit", "mlp")
#: "no flip" is not of the paper: it says what the flip does to images that are not symmetric.
REGIMES = ("all", "crop", "no crop", "no flip")
NAMES = {"resnet": "ResNet-18, narrow", "vit": "ViT, small", "mlp": "MLP, small"}


def cases() -> list[Row]:
    """Return one case for each row, seed by seed."""
    return [
        {"seed": seed, "encoder": encoder, "regime": regime}
        for seed in SEEDS
        for encoder in ENCODERS
        for regime in REGIMES
    ]


def measure(case: Row, data: Path, kept: Path) -> Row:  # noqa: ARG001 (the digits are scikit-learn's)
    found = ch.identify.images(
        *ch.identify.digits(), encoders=[case["encoder"]], regimes=[case["regime"]],
        seeds=[case["seed"]], into=kept / "digits" / code_hash(), device="cpu", progress=False,
    )  # fmt: skip
    rows = found.rows.astype(object).where(found.rows.notna(), None)
    return {"about": found.about, "rows": rows.to_dict("records")}


def render(rows: list[Row]) -> list[str]:
    """Return accuracies by encoder and regime, the gap of the paper's claim, and all that was measured."""
    found = pd.DataFrame([told for row in rows for told in row["rows"]])
    found = found.drop_duplicates(["encoder", "regime", "seed"])
    of = dict(iter(found.groupby(["encoder", "regime"], sort=False)))

    def told(encoder: str, regime: str, what: str) -> str:
        some = of.get((encoder, regime))
        scale = 1 if what.endswith("loss") else 100
        return "–" if some is None else spread([scale * value for value in some[what].dropna()])

    def table(what: str) -> list[str]:
        baselines = [
            (name, *(told(name, "-", what) if regime == "untrained" else "" for regime in columns))
            for name in ("chance", "raw pixels", "PCA")
        ]
        encoders = [(NAMES[e], *(told(e, regime, what) for regime in columns)) for e in ENCODERS]
        return markdown(("", "no training", *REGIMES), [*baselines, *encoders])

    columns = ("untrained", *REGIMES)
    about = rows[0]["about"]
    return [
        f"Accuracy on test images in %: the mean over seeds {SEEDS[0]} to {SEEDS[-1]} (lowest to highest). "
        f"{about['epochs']} epochs, minibatches of {about['batch_size']}, learning rate {about['lr']}; "
        f"data `{about['data']}`. {improving(found)} were still improving when they stopped.",
        "", *table("accuracy"), "",
        "Share of the worst class that is named right, in %:", "", *table("worst"), "",
        "Accuracy of ResNet-18 minus that of the MLP, in points, seed by seed:", "", *gaps(found), "",
        *folded("Loss of the last epoch, in nats", [
            f"Embeddings that are all alike have a loss of {blind(about['batch_size']):.2f}.", "",
            *markdown(("", *REGIMES), [
                (NAMES[e], *(told(e, regime, "last_loss") for regime in REGIMES)) for e in ENCODERS
            ]),
        ]),
    ]  # fmt: skip


def blind(batch_size: int) -> float:
    """Return the loss of embeddings that tell no image from another: of 2 n views, any other one."""
    n = len(parts(ch.identify.digits()[1], SEEDS[0]).train)
    return math.log(2 * n / (n // batch_size) - 1)


def improving(found: pd.DataFrame) -> str:
    """Say how many fits might have learned more."""
    fits = found[found["state"] != ""]
    return f"{int((fits['state'] == 'still improving').sum())} of {len(fits)} fits"


def gaps(found: pd.DataFrame) -> list[str]:
    """Return by how much the ResNet is ahead of the MLP, of seeds that have both."""
    table = found.pivot_table(index="seed", columns=["encoder", "regime"], values="accuracy")
    kept = [r for r in REGIMES if ("resnet", r) in table and ("mlp", r) in table]
    told = [spread(list(100 * (table["resnet", r] - table["mlp", r]))) for r in kept]
    return markdown(("", *kept), [("digits", *told)])


def main() -> None:
    measure_tables("identify", ("digits",), __doc__)
    write("identify", ("digits",), ROOT / "docs" / "images.md")


if __name__ == "__main__":
    main()
