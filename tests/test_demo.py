"""The demo: what it says, what it leaves, and what it does without a network."""

from __future__ import annotations

import re

import pandas as pd
import pytest

import chreode as ch
from chreode.bench.table import Bench
from chreode.commands.app import main
from chreode.commands.demo import _cells, verdict
from chreode.errors import StoreError
from chreode.learn import sgd


def bench_of(pca: float, scvi: float, note: str) -> Bench:
    scores = pd.DataFrame(
        [(m, 0, "total", v, v, v) for m, v in (("PCA", pca), ("SCVI", scvi))],
        columns=["method", "seed", "metric", "value", "low", "high"],
    )
    methods = pd.DataFrame(
        {"role": ["baseline", "method"], "seeds": 1, "note": ["", note]},
        index=pd.Index(["PCA", "SCVI"], name="method"),
    )
    metrics = pd.DataFrame({"name": ["total"]}, index=pd.Index(["total"], name="metric"))
    return Bench("integration", scores, methods, metrics, {})


def test_the_verdict_follows_the_paired_comparison_not_the_totals():
    said = verdict(bench_of(0.5, 0.6, "one seed: a fitted model"))
    assert said.startswith("scVI beats PCA here: total 0.600 against 0.500")
    said = verdict(bench_of(0.5, 0.51, "one seed: a fitted model; not better than PCA"))
    assert said.startswith("scVI does not beat PCA here: total 0.510 against 0.500")


def test_without_the_index_it_says_so_and_goes_on(monkeypatch, capsys):
    def fail():
        raise StoreError("scmidas==0.3.0 could not be downloaded.")

    monkeypatch.setattr(ch.datasets, "pbmc_mosaic", fail)
    cells, said = _cells(offline=False, seed=0)
    out = capsys.readouterr().out
    assert out.startswith(
        "scmidas==0.3.0 could not be downloaded.\nSo the demo goes on with simulated"
    )
    assert "not real data" in said
    assert cells.shape == (1200, 500)
    assert {"batch", "celltype"} <= set(cells.obs)


def test_offline_asks_nobody(monkeypatch):
    monkeypatch.setattr(ch.datasets, "pbmc_mosaic", lambda: pytest.fail("asked the index"))
    assert _cells(offline=True, seed=0)[0].n_obs == 1200


@pytest.mark.slow
@pytest.mark.usefixtures("as_users_have_it")
def test_the_whole_demo(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sgd, "default_epochs", lambda _: 3)
    assert main(["demo", "--offline", "-o", str(tmp_path / "demo"), "--seed", "1"]) == 0
    out = capsys.readouterr().out
    page = tmp_path / "demo" / "report.html"
    assert out.splitlines()[-1].endswith(f"Open {page}")
    html = page.read_text(encoding="utf-8")
    assert "PCA here: total" in html
    parts = re.findall("<h2>(.*?)</h2>", html)
    assert parts[:3] == ["Verdict", "The cells", "Integration: verdict"]
    assert "New cells: cells of CFGen" in parts
    assert "Dynamics: paths, edges and a knock-out" in parts
    assert "A knock-out of " in html
    assert "Marker genes of every type" in html
    assert not re.search(r">-0(\.0+)?<", html)
    assert "<script src" not in html
    assert 'src="http' not in html
    bench = Bench.load(tmp_path / "demo" / "bench.json")
    assert {"PCA", "PPCA", "SCVI"} <= set(bench.methods.index)
    assert {ch.load(p).model.key for p in (tmp_path / "demo/models").iterdir()} == {
        "pca",
        "ppca",
        "scvi",
    }
    assert ch.load(tmp_path / "demo/models/scvi").provenance["seed"] == 1
