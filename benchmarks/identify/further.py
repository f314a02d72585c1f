"""Beyond the sphere of one modality: boxes and R^n with L_p, AnInfoNCE, two modalities that share latents."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from chreode import identify as lab

from ..common import Row, folded, spread
from ..speed.ratios import markdown

SEEDS = (0, 1, 2, 3, 4)
_SPACE, _ANISOTROPIC, _MODAL = lab.SpaceSetting(), lab.AnisotropicSetting(), lab.ModalSetting()
#: What is run, by what it is called in the table.
RUNS: dict[str, tuple[Any, Any]] = {
    "box, L1": (lab.recover_in_space, _SPACE),
    "box, L2": (lab.recover_in_space, replace(_SPACE, power=2.0)),
    "R^4 Laplace, L1": (lab.recover_in_space, replace(_SPACE, space="laplace", scale=0.3)),
    "R^4 normal, L2": (
        lab.recover_in_space, replace(_SPACE, space="normal", power=2.0, scale=0.3),
    ),
    "AnInfoNCE, 5 to 25": (lab.recover_anisotropic, _ANISOTROPIC),
    "AnInfoNCE, 5 and 25": (
        lab.recover_anisotropic, replace(_ANISOTROPIC, precision=(5.0, 5.0, 5.0, 25.0, 25.0)),
    ),
    "two modalities": (lab.recover_shared, _MODAL),
    "two modalities, all shared": (
        lab.recover_shared, replace(_MODAL, n_shared=5, n_private=0),
    ),
}  # fmt: skip


def cases() -> list[Row]:
    return [{"run": name, "seed": seed} for seed in SEEDS for name in RUNS]


def measure(case: Row, _data: Path, _kept: Path) -> Row:
    recover, setting = RUNS[case["run"]]
    row, _ = recover(setting, case["seed"])
    return row


def render(rows: list[Row]) -> list[str]:
    """Return what was recovered, with the lowest and the highest seed."""
    by_run = {name: [row for row in rows if row["case"]["run"] == name] for name in RUNS}
    header = ("run", "R², or R² of shared latents", "MCC", "R² of private latents", "learned Λ")
    found = {name: of for name, of in by_run.items() if of}
    return [
        *markdown(header, [(name, *_told(of)) for name, of in found.items()]), "",
        *folded("The same before training", markdown(
            header[:4], [(name, *_told(of, "_untrained")[:3]) for name, of in found.items()]
        )),
    ]  # fmt: skip


def _told(rows: list[Row], when: str = "") -> list[str]:
    def mean(key: str) -> str:
        values = [row[f"{key}{when}"] for row in rows if f"{key}{when}" in row]
        return spread(values) if values else "–"

    learned = "–"
    if "precision" in rows[0]:
        learned = ", ".join(
            f"{sum(values) / len(values):.1f}"
            for values in zip(*(row["precision"] for row in rows), strict=True)
        )
    found = mean("r2") if "r2" in rows[0] else mean("shared")
    return [found, mean("mcc"), mean("private"), learned]
