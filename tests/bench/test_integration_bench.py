"""The bench of integration: baselines and ceiling, honest notes, files."""

from __future__ import annotations

import signal
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest

import chreode as ch
from chreode.bench.embedded import Given, _harmony, _oracle, rows_of
from chreode.commands.judging import answer
from chreode.data.cells import Cells
from chreode.learn import sgd
from chreode.model import Model
from chreode.report import findings
from chreode.report.findings import doubts

FEW = ["nmi_kmeans", "silhouette_label", "ilisi", "graph_connectivity", "pcr_comparison"]


@pytest.fixture(scope="module")
def bench(request, quick):
    cells = request.getfixturevalue("_simulated").copy()
    rng = np.random.default_rng(0)
    cells.obsm["X_noise"] = rng.normal(size=(500, 5)).astype(np.float32)
    types = pd.factorize(cells.obs["cell_type"])[0]
    cells.obsm["X_good"] = (np.eye(4)[types] * 9 + rng.normal(size=(500, 4))).astype(np.float32)
    schema = ch.Schema(counts="layers/counts", batch="obs/batch", label="obs/cell_type")
    before = list(cells.obsm)
    out = ch.bench.integration(
        cells, schema, ["noise", "X_good", quick(ch.SCVI)], seeds=(0, 1), metrics=FEW
    )
    assert list(cells.obsm) == before
    assert "chreode" not in cells.uns
    return out


@pytest.mark.slow
def test_baselines_and_ceiling_are_always_there(bench):
    table = bench.table()
    assert table.index.tolist() == ["PCA", "Harmony", "X_noise", "X_good", "SCVI", "label oracle"]
    assert table["role"].tolist() == [
        "baseline",
        "baseline",
        "method",
        "method",
        "method",
        "ceiling",
    ]
    assert table.columns.tolist() == ["role", *FEW, "bio", "batch", "total", "seeds", "note"]
    assert table["seeds"].tolist() == [1, 2, 1, 1, 2, 1]


@pytest.mark.slow
def test_scores_are_raw_and_summed_as_said(bench):
    table = bench.table()
    assert table.loc["PCA", "pcr_comparison"] == 0
    bio = table[["silhouette_label", "nmi_kmeans"]].mean(axis=1)
    np.testing.assert_allclose(table["bio"].astype(float), bio.astype(float))
    total = 0.6 * table["bio"] + 0.4 * table["batch"]
    np.testing.assert_allclose(table["total"].astype(float), total.astype(float))
    assert table.loc["X_good", "bio"] > table.loc["PCA", "bio"] > table.loc["X_noise", "bio"]


@pytest.mark.slow
def test_what_does_not_beat_pca_says_so(bench):
    notes = bench.table()["note"]
    assert "not better than PCA" in notes["X_noise"]
    assert "not better than PCA" not in notes["X_good"]
    assert "one seed" in notes["X_good"]
    assert "still improving" in notes["SCVI"]
    assert notes["PCA"] == notes["label oracle"] == ""


@pytest.mark.slow
def test_intervals_hold_the_values(bench):
    scores = bench.scores
    assert (scores["low"] <= scores["value"] + 0.02).all()
    assert (scores["high"] >= scores["value"] - 0.02).all()
    assert (scores["high"] > scores["low"]).mean() > 0.8
    assert " to " in bench.intervals().loc["SCVI", "total"]


@pytest.mark.slow
def test_it_survives_a_file_and_a_broken_one_is_refused(bench, tmp_path):
    path = bench.save(tmp_path / "bench.json")
    again = ch.bench.Bench.load(path)
    pd.testing.assert_frame_equal(again.table(), bench.table(), check_dtype=False)
    path.write_text(path.read_text()[:300])
    with pytest.raises(ch.StoreError, match="no saved bench"):
        ch.bench.Bench.load(path)


@pytest.mark.slow
def test_provenance_tells_what_was_judged(bench):
    assert bench.about["cells"] == 500
    assert bench.about["labels"] == 4
    assert bench.about["batches"] == 3
    assert len(bench.about["data"]) == 16


def test_roles_and_keys_must_be_there(cells, schema):
    with pytest.raises(ch.SchemaError, match="needs label"):
        ch.bench.integration(cells, schema.with_(label=None), [])
    with pytest.raises(ch.SchemaError, match=r"no obsm\['X_scvii'\]"):
        ch.bench.integration(cells, schema, ["X_scvii"])


def test_what_is_not_there_is_refused_before_anything_is_fitted(cells, schema, fits):
    for more, said in (
        ({"metrics": ["nmi_kmeans", "nmi"]}, "no metric 'nmi'.*nmi_kmeans"),
        ({"metrics": []}, "Name a metric"),
        ({"seeds": ()}, "no seeds"),
        ({"seeds": (0, -1)}, "seeds: -1: expected whole numbers from 0"),
    ):
        with pytest.raises(ch.ConfigError, match=said):
            ch.bench.integration(cells, schema, [ch.PCA()], **more)
    for bench in (ch.bench.generation, ch.bench.augmentation):
        for seeds, said in (((), "no seeds"), ((2, -1), "seeds: -1")):
            with pytest.raises(ch.ConfigError, match=said):
                bench(cells, schema, seeds=seeds)
    assert fits == []
    with pytest.raises(
        ch.DataError, match="No row could be judged. PCA, seed 0: .* 2 cells or more"
    ):
        ch.bench.integration(cells, schema, [], rows=[], seeds=(0,), metrics=["ilisi"])


@pytest.mark.parametrize("first", ["A", "B", None])
def test_cells_without_a_label_are_of_no_type_whatever_the_order(first):
    label = pd.Series(np.repeat(np.array(["A", "B", None], dtype=object), 20))
    label = label.sort_values(key=lambda v: v != first if first else v.notna(), kind="stable")
    x_pca, cells = np.zeros((60, 1), np.float32), np.arange(60)
    given = Given(Path(), ch.Schema(), {"label": label}, x_pca, cells, None, 1, ch.Run())
    x, _ = _oracle(given, 0)
    places = pd.DataFrame(x).groupby(label.fillna("").to_numpy()).mean().to_numpy()
    apart = np.linalg.norm(places[:, None] - places, axis=-1)
    np.testing.assert_allclose(apart[~np.eye(3, dtype=bool)], 2**0.5, atol=0.1)


def test_one_batch_leaves_nothing_to_correct_and_no_score_of_it(cells, schema):
    cells = cells[:120].copy()
    cells.obs["batch"] = "one"
    cells.obsm["X_noise"] = np.random.default_rng(0).normal(size=(120, 5)).astype(np.float32)
    bench = ch.bench.integration(cells, schema, ["noise"], seeds=(0,), metrics=FEW[1:-1])
    assert list(bench.lacking()) == ["ilisi", "batch", "total"]
    assert np.isfinite(bench.table().loc["PCA", ["bio", "graph_connectivity"]].astype(float)).all()
    said = str(answer(bench, ["bio", "batch", "total", "note"], None, None, json=False))
    assert said.split()[:3] == ["bio", "note", "method"]
    assert "There is no 'batch': no metric that compares batches is defined" in said
    found = findings(bench)
    assert "PCA, a baseline, has the highest bio" in found[0]  # what there is decides
    assert found[1].startswith("There is no 'batch'")
    assert "not better than PCA" in bench.table().loc["X_noise", "note"]
    assert "nan" not in " ".join(found)


def test_of_few_cells_harmony_says_what_it_lacks():
    pytest.importorskip("harmonypy")
    batch = pd.Series(["p", "q"] * 7)
    x = np.random.default_rng(0).normal(size=(14, 3)).astype(np.float32)
    given = Given(Path(), ch.Schema(), {"batch": batch}, x, np.arange(14), None, 1, ch.Run())
    with pytest.raises(ch.CapabilityError, match="takes 16 cells"):
        _harmony(given, 0)


@pytest.mark.slow
def test_fitted_models_are_judged_as_they_are(cells, schema, quick):
    fitted = quick(ch.SCVI).fit(cells, schema, seed=7)
    table = ch.bench.integration(cells, schema, [fitted], metrics=["ilisi"])
    assert table.scores.query("method == 'SCVI'")["seed"].unique().tolist() == [7]


def test_a_method_that_fails_is_a_row(cells, schema, quick):
    methods = [ch.PCA(n_latent=400), quick(ch.PCA)]
    bench = ch.bench.integration(cells, schema, methods, seeds=(0,), metrics=["ilisi"])
    row = bench.table().loc["PCA n_latent=400"]
    assert row["note"].startswith("failed: A fit with n_latent=400 needs 401 cells")
    assert row["seeds"] == 0
    assert np.isnan(row["ilisi"])
    assert np.isfinite(bench.table().loc["PCA n_latent=5", "ilisi"])


def test_rows_have_the_names_that_tell_them_apart(cells, quick):
    """Of two models of one kind nobody could say which was which, and PCA was in the table twice."""
    schema = ch.Schema(counts="X", batch="obs/batch")
    fitted = quick(ch.PCA).fit(cells, schema)
    there = Cells.of(cells, schema)

    def names(methods):
        return [row.name for row in rows_of(there, methods, (0,), ch.PCA())][2:-1]

    two = [ch.SCVI(n_latent=20), ch.SCVI(likelihood="zinb", n_layers=2), ch.PPCA()]
    assert names(two) == ["SCVI n_latent=20", "SCVI n_layers=2 likelihood=zinb", "PPCA"]
    assert names([ch.PCA(), ch.SCVI(), ch.PCA(n_latent=3)]) == ["SCVI", "PCA n_latent=3"]
    assert names([fitted, fitted]) == ["PCA (2)", "PCA (3)"]
    assert names({"PCA runs/a": fitted, "mine": ch.SCVI()}) == ["PCA runs/a", "mine"]


@pytest.fixture
def fits(monkeypatch):
    """Return a list that grows by the name of each model that is fitted, and its seed."""
    begun, fit = [], Model.fit

    def recorded(self, *args, seed=0, **options):
        begun.append((type(self).__name__, self.n_latent, seed))
        return fit(self, *args, seed=seed, **options)

    monkeypatch.setattr(Model, "fit", recorded)
    return begun


@pytest.mark.slow
def test_a_bench_goes_on_where_ctrl_c_cut_it_off(cells, schema, quick, tmp_path, monkeypatch, fits):
    def judge(*models, into=None, seeds=(0, 1)):
        fits.clear()
        return ch.bench.integration(
            cells, schema, models, seeds=seeds, metrics=["ilisi"], into=into
        )

    model, pca = quick(ch.SCVI), ("PCA", 50, 0)
    whole = judge(model)
    epoch = sgd._Loop.run_epoch

    def stop(loop):
        if loop.epoch == 1 and fits[-1] == ("SCVI", 5, 1):
            signal.raise_signal(signal.SIGINT)
        return epoch(loop)

    with monkeypatch.context() as patch:
        patch.setattr(sgd._Loop, "run_epoch", stop)
        with pytest.raises(KeyboardInterrupt, match=r"run keeps 4 results, and the same"):
            judge(model, into=tmp_path / "run")
    again = judge(model, into=tmp_path / "run")
    assert fits == [pca, ("SCVI", 5, 1)]
    pd.testing.assert_frame_equal(again.scores, whole.scores, check_exact=True)
    for name, x in whole.embeddings.items():
        np.testing.assert_array_equal(again.embeddings[name], x)
    # a seed, a method and other options add rows; what is there stays
    judge(quick(ch.SCVI, n_latent=3), model, into=tmp_path / "run", seeds=(0, 1, 2))
    assert fits == [pca, *(("SCVI", 3, seed) for seed in (0, 1, 2)), ("SCVI", 5, 2)]
    cells.layers["counts"].data[0] += 1
    with pytest.raises(ch.StoreError, match=r"another run \(data: "):
        judge(model, into=tmp_path / "run")


@pytest.mark.slow
def test_data_on_disk_is_the_same_data(cells, schema, quick, tmp_path):
    cells.obsm["X_ready"] = np.random.default_rng(0).normal(size=(500, 4)).astype(np.float32)
    cells.write_h5ad(tmp_path / "cells.h5ad")
    kinds = [
        cells,
        ad.read_h5ad(tmp_path / "cells.h5ad", backed="r"),
        ch.open(tmp_path / "cells.h5ad"),
    ]
    here, *others = (
        ch.bench.integration(d, schema, ["ready", quick(ch.PPCA)], seeds=(0,), metrics=["ilisi"])
        for d in kinds
    )
    for other, data in zip(others, kinds[1:], strict=True):
        assert other.about == here.about
        pd.testing.assert_frame_equal(other.scores, here.scores)
        assert sorted(data.obsm) == sorted(cells.obsm)


@pytest.mark.slow
def test_cells_that_lack_the_modality_are_left_out(real, quick):
    import warnings

    import mudata

    path = real("midas_pbmc_rna_adt/quickstart_pbmc_mosaic.h5mu")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        data = mudata.read_h5mu(path)
        schema = ch.Schema(counts="rna:X", batch="obs/batch", label="obs/celltype")
        bench = ch.bench.integration(data, schema, [], seeds=(0,), metrics=["ilisi"])
    assert bench.about["cells"] == 1200
    assert bench.about["batches"] == 3
    batch = data.obs["batch"].astype(str)
    (left,) = set(batch) - set(batch[data["rna"].obs_names])
    assert bench.about["not placed"] == {left: 400}
    said = [sentence for sentence in doubts(bench) if sentence.startswith("Not scored")]
    assert said == [
        "Not scored: 400 cells that a method cannot place, as they lack what it reads. "
        f"By batch: {left} (400)."
    ]


@pytest.mark.slow
@pytest.mark.parametrize("genes", [2, 3, 30])
def test_panels_of_few_features_and_embeddings_of_one_dimension_are_scored(genes):
    rng = np.random.default_rng(0)
    obs = pd.DataFrame({"batch": ["x", "y"] * 60, "label": ["A"] * 60 + ["B"] * 60})
    x = (rng.poisson(3, (120, genes)) + 1).astype(np.float32)
    cells = ad.AnnData(x, obs.set_index(obs.index.astype(str)))
    cells.obsm["X_e"] = rng.normal(size=(120, 1))
    schema = ch.Schema(counts="X", batch="obs/batch", label="obs/label")
    out = ch.bench.integration(cells, schema, ["e"], seeds=(0,), metrics=[*FEW, "clisi", "bras"])
    assert np.isfinite(out.table().loc[["PCA", "X_e"], "total"].astype(float)).all()
    assert out.about["components of PCA"] == genes


@pytest.mark.slow
def test_no_interval_leaves_the_range_of_its_metric(cells):
    cells = cells[:200].copy()
    code = pd.factorize(cells.obs["batch"])[0][:, None]
    noise = np.random.default_rng(0).normal(size=(200, 5))
    cells.obsm["X_noise"], cells.obsm["X_batch"] = noise, noise + 4 * code
    schema = ch.Schema(counts="layers/counts", batch="obs/batch", label="obs/cell_type")
    out = ch.bench.integration(cells, schema, ["noise", "batch"], seeds=(0,)).scores
    lowest = out["metric"].map(
        {"ari_kmeans": -0.5, "ari_leiden": -0.5, "bio": -1 / 7, "total": -0.6 / 7}
    )
    defined = out["value"].notna()
    assert (out["low"] >= lowest.fillna(0) - 1e-9)[defined].all()
    assert (out["high"] <= 1 + 1e-9)[defined].all()
    assert (out["low"] <= out["value"] + 1e-9)[defined].all()
    assert (out["high"] >= out["value"] - 1e-9)[defined].all()


@pytest.mark.slow
def test_a_fitted_model_reads_the_roles_that_are_named(cells):
    """And by another batch than that of its fit it can be judged."""
    fitted = ch.SCVI(max_epochs=1, n_latent=3).fit(
        cells, ch.Schema(counts="layers/counts", batch="obs/batch")
    )
    moved = cells.copy()
    moved.X = moved.layers.pop("counts")
    moved.obs["lane"] = moved.obs["batch"]
    moved.obs["site"] = np.where(np.arange(moved.n_obs) % 2, "a", "b")
    expected = fitted.embed(cells)
    for batch, lacks in (("lane", ["batch"]), ("site", ["lane"])):
        query = moved.copy()
        query.obs = query.obs.drop(columns=lacks)
        schema = ch.Schema(counts="X", batch=f"obs/{batch}", label="obs/cell_type")
        out = ch.bench.integration(query, schema, [fitted], metrics=["silhouette_label"])
        assert out.methods.loc["SCVI", "seeds"] == 1, out.methods["note"]
        np.testing.assert_array_equal(out.embeddings["SCVI"], expected)
