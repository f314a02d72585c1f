"""The demo: what it says, what it leaves, and what it does without a network."""

from __future__ import annotations

import re
import signal
from dataclasses import replace
from functools import partial

import pandas as pd
import pytest

import chreode as ch
from chreode.bench.table import Bench
from chreode.commands.app import main
from chreode.commands.demo import _cells, _opening, whole
from chreode.errors import StoreError
from chreode.learn import sgd


def bench_of(**totals: float) -> Bench:
    roles = {"PCA": "baseline", "Harmony": "baseline"}
    scores = [
        {"method": m, "seed": 0, "metric": "total", "value": v, "low": v, "high": v, "reason": ""}
        for m, v in totals.items()
    ]
    methods = pd.DataFrame(
        {"role": [roles.get(m, "method") for m in totals], "seeds": 1, "notes": [[]] * len(totals)},
        index=pd.Index(totals, name="method"),
    )
    metrics = pd.DataFrame(
        {"name": ["total"], "group": "total"}, index=pd.Index(["total"], name="metric")
    )
    return Bench("integration", pd.DataFrame(scores), methods, metrics, {})


def test_a_baseline_that_wins_is_named_in_the_first_line():
    lost = bench_of(PCA=0.719, Harmony=0.782, SCVI=0.763)
    text = _opening("Cells.", lost, lost, lost, lost).text
    assert text.startswith("No method beats the baselines: Harmony, a baseline, has the highest")
    won = bench_of(PCA=0.719, Harmony=0.782, SCVI=0.8)
    assert _opening("Cells.", won, lost, lost, lost).text.startswith(
        "SCVI has the highest total, 0.800"
    )


@pytest.mark.usefixtures("as_users_have_it")
def test_one_ctrl_c_in_a_fit_ends_it(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sgd, "default_epochs", lambda _: 3)
    monkeypatch.setattr(ch.simulate, "simulate_cells", partial(few, ch.simulate.simulate_cells))
    run = sgd._Loop.run_epoch
    begun = []

    def stop(loop):
        begun.append(loop)
        if len(begun) == 2:
            signal.raise_signal(signal.SIGINT)
        return run(loop)

    monkeypatch.setattr(sgd._Loop, "run_epoch", stop)
    assert main(["demo", "--offline", "-o", str(tmp_path / "demo")]) == 130
    out = capsys.readouterr().out
    assert "Fitting SCVI" in out
    assert "Judging" not in out
    assert not (tmp_path / "demo/models/scvi").exists()


def few(simulate, *_, **options):
    return simulate(120, 60, **options)


def test_a_fit_whose_refits_were_cut_short_is_no_whole_one(cells, schema):
    fitted = ch.PCA(n_latent=2).fit(cells, schema)
    assert whole(fitted) is fitted
    cut = replace(fitted, provenance={**fitted.provenance, "notes": ["interrupted in the refits"]})
    with pytest.raises(KeyboardInterrupt):
        whole(cut)


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
    assert "has the highest total" in html
    assert "Bands reach from the lowest to the highest of 3 refits" in html
    parts = re.findall("<h2>(.*?)</h2>", html)
    assert parts[:3] == ["Verdict", "The cells", "Integration: verdict"]
    assert "Typing: verdict" in parts
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
