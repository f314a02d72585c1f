"""The examples run offline, stay short, and print what they are there to show."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

pytestmark = pytest.mark.usefixtures("as_users_have_it")

FOLDER = Path(__file__).parents[1] / "examples"


def numbers(pattern: str, text: str) -> list[float]:
    match = re.search(pattern, text)
    assert match, f"{pattern!r} is not in:\n{text}"
    return [float(group.replace(",", "")) for group in match.groups()]


def integrate(said: str) -> None:
    for row in ("PCA .*baseline", "Harmony .*baseline", "SCVI .*method", "label oracle .*ceiling"):
        assert re.search(row, said)
    assert numbers(r"SCVI against PCA: ([+-][\d.]+)", said)[0] > 0.05


def generate(said: str) -> None:
    real, real_zeros = numbers(r"real cells: +([\d.]+) counts per cell, ([\d.]+)%", said)
    drawn, drawn_zeros = numbers(r"generated cells: +([\d.]+) counts per cell, ([\d.]+)%", said)
    assert drawn == pytest.approx(real, rel=0.2)
    assert drawn_zeros == pytest.approx(real_zeros, abs=3)
    assert numbers(r"log means: ([\d.]+)", said)[0] > 0.95
    assert "got ['batch_1']" in said
    assert numbers(r"add up to ([\d,]+)", said) == [10_000]


def type_new_cells(said: str) -> None:
    assert numbers(r"known types of the new batch: (\d+)%", said)[0] > 75
    known, unknown = numbers(r"median: ([\d.]+) of known types, ([\d.]+) of the type", said)
    assert known < unknown
    for row in ("PCA +baseline", "logistic regression +baseline", "SimCLR +method", "ceiling"):
        assert re.search(row, said)


def query_mapping(said: str) -> None:
    assert "never saw 'batch_2'" in said
    assert "batches known now: batch_0, batch_1, batch_2" in said
    assert "unchanged, bit for bit: True" in said
    before, after = numbers(r"(-[\d.]+) nats taken for batch_0, (-[\d.]+) mapped", said)
    assert after > before + 1


def factors(said: str) -> None:
    assert len(re.findall(r"nmf_\d: mean activity [\d.]+, led by gene_\d+", said)) == 4
    one, three = (numbers(rf"{n} factors: (-[\d.]+) nats", said)[0] for n in (1, 3))
    assert three > one
    found, guessed = numbers(r"error ([\d.]+) with pPCA, ([\d.]+) with", said)
    assert found < guessed / 2


def select_genes_and_check(said: str) -> None:
    assert re.search(r"warning: .*'unknown' of 7 cells", said)
    assert re.search(r"refused: .*looks normalised", said)
    assert "kept 200 of 1000 genes" in said


def attributes(said: str) -> None:
    pairs = re.findall(r"asked for (\w+ \w+): nearest to (\w+ \w+)", said)
    assert len(pairs) == 6
    assert all(asked == found for asked, found in pairs)
    none, one, two = (numbers(rf"guidance {w}: ([\d.]+) from", said)[0] for w in (0, 1, 2))
    assert none < one < two


def multiome(said: str) -> None:
    assert numbers(r"openness by type: ([\d.]+)", said)[0] > 0.9
    assert numbers(r"peaks of (\d+) cells from (\d+) that were measured", said) == [800, 400]
    assert re.search(r"type_\d +300 ", said)


def motion_capture(said: str) -> None:
    errors = dict(re.findall(r"^(\w+(?: \w+)*) +(?:baseline|method) +error ([\d.]+)", said, re.M))
    assert float(errors["NeuralODE"]) < float(errors["training mean"])
    assert len(errors) == 9  # two models, and baselines


def haematopoiesis(said: str) -> None:
    sure, n = numbers(r"surest: (\d+)% of (\d+)", said)
    others, _ = numbers(r"others: (\d+)% of (\d+)", said)
    assert sure > 60
    assert n > 5
    assert sure > others + 20
    without, unchanged = numbers(r"error ([\d.]+), ([\d.]+) if", said)
    assert without < unchanged


def identify(said: str) -> None:
    full = numbers(r"none fixed, InfoNCE +R² ([\d.]+)", said)[0]
    kept = numbers(r"1 fixed \(theorem\), InfoNCE +R² ([\d.]+)", said)[0]
    corrected = numbers(r"1 fixed \(theorem\), corrected +R² ([\d.]+)", said)[0]
    assert full > 0.9
    assert min(full, corrected) > kept + 0.1
    assert "There is one seed of each run" in said
    assert "InfoNCE: lowest at a factor of 0.6" in said
    assert "corrected: lowest at a factor of 1.0" in said


SHOWN = {
    show.__name__: show
    for show in (
        integrate, generate, query_mapping, type_new_cells, factors, select_genes_and_check, attributes,
        multiome, motion_capture, haematopoiesis, identify,
    )
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*are held at its end")  # users see it, beside what is printed
@pytest.mark.parametrize("example", sorted(FOLDER.glob("*.py")), ids=lambda path: path.stem)
def test_it_runs_and_shows_its_point(example, capsys, monkeypatch, tmp_path):
    assert len(example.read_text(encoding="utf-8").splitlines()) <= 60
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(example), run_name="__main__")
    SHOWN[example.stem](capsys.readouterr().out)
    assert not list(tmp_path.iterdir())  # an example leaves nothing behind
