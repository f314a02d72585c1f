"""The probe: what is known comes out, the query stays unseen, and bad input is refused before any fit."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score
from sklearn.neighbors import KNeighborsClassifier

import chreode as ch
from chreode.bench import probing
from chreode.bench.embedded import Method
from chreode.bench.probe import GENES, GIVEN, MEAN, MEASURED, OWN, SEES, nowhere
from chreode.bench.probed import _summary
from chreode.bench.query import split
from chreode.data.simulate import simulate_cells, simulate_citeseq
from chreode.metrics.classifiers import NearestLabels
from chreode.metrics.proteins import by_neighbours
from chreode.metrics.typing import typing_scores
from chreode.model import Model
from chreode.models.selfsupervised.network import View
from chreode.models.simclr import SimCLRModule
from chreode.report import bench_sections, findings
from chreode.trials.trial import Outcome

SCHEMA = ch.Schema(counts="layers/counts", batch="obs/batch", label="obs/cell_type")
FEW = ["clisi", "silhouette_label", "ilisi", "graph_connectivity"]
SIMCLR = ch.SimCLR(max_epochs=1, n_latent=4, n_hidden=16, projector=(8, 4))


@pytest.fixture(scope="module", autouse=True)
def _few_draws():
    """Intervals of 20 resamples, which take a tenth of the time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(probing, "DRAWS", 20)
        yield


@pytest.fixture(scope="module")
def _known():
    """Cells of four batches; type_3 is in batch_3 alone."""
    cells = simulate_cells(600, 60, n_types=4, n_batches=4, seed=0)
    alone = (cells.obs["cell_type"] == "type_3") & (cells.obs["batch"] != "batch_3")
    cells = cells[~alone.to_numpy()].copy()
    rng, n = np.random.default_rng(0), cells.n_obs
    types = pd.factorize(cells.obs["cell_type"], sort=True)[0]
    cells.obsm["X_oracle"] = (np.eye(4)[types] * 9 + rng.normal(size=(n, 4))).astype(np.float32)
    cells.obsm["X_noise"] = rng.normal(size=(n, 4)).astype(np.float32)
    return cells


@pytest.fixture
def known(_known):
    return _known.copy()


def typing(cells, methods=(), schema=SCHEMA, **options):
    asked = {
        "held_out": ["batch_3"],
        "tasks": ["typing"],
        "seeds": (0,),
        "depths": (1.0,),
    } | options
    return ch.bench.probe(cells, schema, methods, progress=False, **asked)


@pytest.fixture(scope="module")
def bench(_known):
    before = list(_known.obsm)
    out = typing(_known, ["oracle", "noise"])
    assert list(_known.obsm) == before
    return out


@pytest.mark.slow
def test_an_oracle_scores_one_and_noise_by_chance(bench):
    table = bench.table()
    shared = table[
        ["knn_shared_f1", "knn_shared_accuracy", "linear_shared_f1", "knn_worst"]
    ].astype(float)
    assert (shared.loc["X_oracle"] == 1).all()
    share = pd.Series(
        [row["cells"] for _, row in bench.sizes.iterrows() if row["batch"] == "batch_3"]
    )
    assert shared.loc["X_noise", "knn_shared_accuracy"] < share.max() / share.sum() + 0.15
    assert table.loc["X_noise", "knn_shared_f1"] < 0.5 < table.loc["PCA", "knn_shared_f1"]
    assert table.loc[GENES, "linear_shared_f1"] > 0.7
    assert np.isnan(table.loc[GENES, "knn_f1"])


def test_types_that_the_reference_lacks_are_marked_and_not_told(bench):
    table = bench.table()
    assert bench.about["unseen"] == ["type_3"]
    assert table.loc["X_oracle", "knn_unseen_auroc"] > 0.99
    assert table.loc["X_oracle", "knn_unseen_found"] > 0.9
    assert table.loc["X_noise", "knn_unseen_found"] < 0.25
    assert abs(table.loc["X_noise", "knn_unseen_auroc"] - 0.5) < 0.15
    assert "type_3" not in {*bench.confusion.query("method == 'X_oracle'")["told"]}
    # the ceiling is scored on the same cells as the others: those of shared types
    sizes = bench.calibration.query("classifier == 'knn'").groupby("method")["cells"].sum()
    assert OWN in sizes.index
    assert sizes.nunique() == 1
    told = bench.confusion.query("method == @OWN and type != 'type_3'")
    right = told.query("type == told")["cells"].sum() / told["cells"].sum()
    assert table.loc[OWN, "knn_shared_accuracy"] == pytest.approx(right, abs=1e-12)
    assert abs(table.loc[OWN, "knn_accuracy"] - right) > 0.005
    cells = bench.by_class.query("`class` == 'type_3' and method == 'X_oracle'")
    assert (cells["value"] == 0).all()
    # three types of four are told, so that is the most there can be
    assert table.loc["X_oracle", "knn_f1"] < 0.75
    assert {*bench.confusion.query("method == @OWN")["told"]} > {
        "type_3"
    }  # the ceiling has seen it


def test_scores_are_those_of_scikit_learn_on_the_same_split(known, bench):
    query = (known.obs["batch"] == "batch_3").to_numpy()
    pca = ch.PCA(n_latent=50).fit(known, SCHEMA, rows=~query)
    x, y = pca.embed(known), known.obs["cell_type"].astype(str).to_numpy()
    said = KNeighborsClassifier(11).fit(x[~query], y[~query]).predict(x[query])
    expected = f1_score(
        y[query], said, labels=np.unique(y[query]), average="macro", zero_division=0
    )
    # close votes may be told in another way: the most probable type is that after calibration
    assert bench.table().loc["PCA", "knn_f1"] == pytest.approx(expected, abs=0.02)
    names, codes = np.unique(y[~query], return_inverse=True)
    nearest = NearestLabels.fit(
        x[~query], codes, len(names), k=11, groups=known.obs["batch"].to_numpy()[~query]
    )
    truth = pd.Index([*names, "type_3"]).get_indexer(y[query])
    for key, score in typing_scores(truth, *nearest.judge(x[query])).items():
        assert bench.table().loc["PCA", f"knn_{key}"] == pytest.approx(score.value, abs=1e-9), key
    counts = bench.confusion.query("method == 'PCA' and classifier == 'knn'")
    assert counts["cells"].sum() == query.sum() == bench.about["query"]


def test_baselines_ceiling_and_marks_are_there(bench):
    methods = bench.methods
    assert methods.index.tolist() == ["PCA", "Harmony", GENES, "X_oracle", "X_noise", OWN]
    assert methods.loc[["PCA", "Harmony", GENES], "role"].eq("baseline").all()
    assert methods.loc[OWN, "role"] == "ceiling"
    assert GIVEN in methods.loc["X_oracle", "notes"]
    assert SEES in methods.loc["Harmony", "notes"]
    assert GIVEN not in methods.loc["PCA", "notes"]
    worse = "not better than PCA in typing"
    assert worse in methods.loc["X_noise", "notes"]
    assert worse not in methods.loc["X_oracle", "notes"]
    scores = bench.scores.dropna(subset="value")
    assert (scores["low"] <= scores["value"] + 1e-9).all()
    assert (scores["high"] >= scores["value"] - 1e-9).all()


@pytest.mark.parametrize(("below", "noted"), [(2, False), (4, True)])
def test_a_row_is_better_if_it_is_so_in_97_5_percent_of_the_same_resamples(below, noted):
    """Of 100 resamples two may be below those of the baseline, and four may not."""
    base = np.random.default_rng(0).random(100)
    apart = np.where(np.arange(100) < below, -0.01, 0.2)
    row = {"state": "rested", "seconds": 1.0, "remarks": []}
    outcomes = {
        name: {0: Outcome(row, {"protein_r": base + more})}
        for name, more in (("PCA", 0), ("mine", apart))
    }
    mine = Method("mine", "method", nowhere, (0,), {})
    notes = _summary("missing", mine, outcomes)["notes"]
    assert notes == ["not better than PCA in missing protein"] * noted


def test_the_worst_type_of_the_report_is_that_of_the_score(known, bench):
    """Unseen cells that fall to a type lower its F1 over all cells, and not that over shared types."""
    types = known.obs["cell_type"].astype(str)
    places = {"type_0": 0, "type_1": 20, "type_2": 40, "type_3": 41}
    x = types.map(places).to_numpy(float)
    x[np.flatnonzero(types == "type_0")[::4]] = 20  # a quarter of one type looks like another
    x += known.obsm["X_noise"][:, 0]
    known.obsm["X_mine"] = x[:, None].astype(np.float32)
    out = typing(known, ["mine"])
    classes, table = out.of_classes()["X_mine"], out.table().loc["X_mine"]
    assert classes["knn_f1"].drop("type_3").idxmin() == "type_2"
    worst = classes["knn_shared_f1"].idxmin()
    assert worst != "type_2"
    assert classes["knn_shared_f1", worst] == pytest.approx(table["knn_worst"], abs=1e-12)
    assert classes["knn_shared_f1"].mean() == pytest.approx(table["knn_shared_f1"], abs=1e-12)
    said = f"X_mine does worst at the type {worst}, with an F1 of {table['knn_worst']:.2f}."
    assert said in findings(out)
    newest = out.table().sort_values("knn_unseen_auroc", ascending=False).iloc[0]
    found = (
        f"best in {newest.name} (AUROC {newest['knn_unseen_auroc']:.2f}; 0.5 is by chance): with a "
    )
    found += (
        f"limit that marks 5 % of the others as new, {100 * newest['knn_unseen_found']:.0f} % of"
    )
    assert any(s.startswith("The reference lacks type_3 (") and found in s for s in findings(out))


def test_genes_are_divided_by_their_standard_deviation(known):
    x = np.log1p(known.layers["counts"].toarray())
    codes = pd.factorize(known.obs["cell_type"], sort=True)[0]
    probe = probing.GeneProbe.fit(sp.csr_matrix(x), codes)
    plain = LogisticRegression(max_iter=5000).fit(x / x.std(0), codes)
    expected = plain.predict_proba(x / x.std(0))
    np.testing.assert_allclose(probe.judge(sp.csr_matrix(x))[0], expected, atol=2e-3)
    unscaled = LogisticRegression(max_iter=5000).fit(x, codes).predict_proba(x)
    assert np.abs(unscaled - expected).max() > 0.05


# the query stays unseen


@pytest.mark.parametrize(
    "model",
    [
        SIMCLR,
        pytest.param(ch.SCVI(max_epochs=1, n_latent=3), marks=pytest.mark.slow),
    ],
    ids=["simclr", "scvi"],
)
def test_no_fit_sees_the_query(known, model, monkeypatch):
    """With the counts of the query poisoned, what is learned is the same to the last bit."""
    learned, fit = [], Model.fit

    def recorded(self, *args, **options):
        fitted = fit(self, *args, **options)
        learned.append(fitted.module.state_dict())
        return fitted

    monkeypatch.setattr(Model, "fit", recorded)
    typing(known, [model])
    clean, learned[:] = [*learned], []
    poisoned = known.copy()
    query = np.flatnonzero(known.obs["batch"] == "batch_3")
    counts = sp.lil_matrix(poisoned.layers["counts"])
    counts[query] = np.random.default_rng(1).poisson(50, (len(query), known.n_vars))
    poisoned.layers["counts"] = sp.csr_matrix(counts)
    poisoned.obs["cell_type"] = poisoned.obs["cell_type"].astype(str)
    poisoned.obs.loc[poisoned.obs_names[query], "cell_type"] = "type_0"
    typing(poisoned, [model])
    assert len(clean) == len(learned) == 2  # principal components, and the model
    for one, other in zip(clean, learned, strict=True):
        assert all((one[name] == other[name]).all() for name in one)
    # the control: a fit of all cells is another one
    both = [model.fit(cells, SCHEMA, seed=0).module.state_dict() for cells in (known, poisoned)]
    assert not all((both[0][name] == both[1][name]).all() for name in both[0])


def test_genes_scales_and_calibration_are_of_the_reference(known, monkeypatch):
    seen = []
    for name in ("NearestLabels", "LinearProbe", "GeneProbe"):
        learn = getattr(probing, name).fit.__func__

        def watched(cls, x, codes, *args, learn=learn, **options):
            seen.append((cls.__name__, len(codes), options.get("groups")))
            return learn(cls, x, codes, *args, **options)

        monkeypatch.setattr(getattr(probing, name), "fit", classmethod(watched))
    typing(known)
    n = int((known.obs["batch"] != "batch_3").sum())
    own = [part for part in seen if part[1] != n]
    assert {name for name, *_ in seen} == {"NearestLabels", "LinearProbe", "GeneProbe"}
    assert len(own) == probing._FOLDS  # of the ceiling, which is the query's own
    groups = [g for name, size, g in seen if size == n and name != "GeneProbe"]
    assert all({*g} == {"batch_0", "batch_1", "batch_2"} for g in groups)


@pytest.mark.slow
def test_an_embedding_of_labels_is_marked_as_given(known):
    """Nothing tells a leak from a good embedding but where it comes from."""
    types = pd.factorize(known.obs["cell_type"])[0]
    known.obsm["X_leak"] = np.eye(4, dtype=np.float32)[types] + 0.01 * known.obsm["X_noise"]
    fitted = ch.PCA(n_latent=3).fit(known, SCHEMA)
    out = typing(known, {"leak": "X_leak", "mine": fitted, "new": ch.PCA(n_latent=3)})
    assert out.table().loc["leak", "knn_shared_f1"] == 1
    marked = out.methods.index[out.methods["notes"].map(lambda notes: GIVEN in notes)]
    assert marked.tolist() == ["leak", "mine"]
    assert any(s.startswith("What leak and mine learned from is not known") for s in findings(out))


# depths


@pytest.mark.slow
def test_fewer_counts_are_harder_and_the_same_seed_thins_the_same(known):
    depths, mine = (1.0, 0.3, 0.02), {"PCA 5": ch.PCA(n_latent=5)}
    one = typing(known, mine, depths=depths)
    two = typing(known, mine, depths=depths[2:], seeds=(0, 1))
    both = [of.scores.set_index(["method", "seed", "metric"]) for of in (one, two)]
    shared = both[0].index.intersection(both[1].index)
    pd.testing.assert_frame_equal(both[0].loc[shared], both[1].loc[shared])
    assert ("PCA 5", 0, "linear_f1_at_0.02") in shared
    table = one.table()
    for row, key in (("PCA", "knn_f1"), ("PCA 5", "linear_f1"), (GENES, "linear_f1")):
        whole, some, few = (table.loc[row, f"{key}{at}"] for at in ("", "_at_0.3", "_at_0.02"))
        assert whole >= some - 0.05
        assert some > few + 0.1
    mine = two.scores.query("method == 'PCA 5' and metric == 'linear_f1_at_0.02'")["value"]
    assert mine.nunique() == 2  # seeds thin anew
    harmony = one.scores.query("method == 'Harmony' and metric == 'knn_f1_at_0.3'")["reason"]
    assert harmony.str.contains("embeds no other cells").all()
    assert one.about["depths"] == [1.0, 0.3, 0.02]


def test_thinning_keeps_each_molecule_by_chance(known):
    counts = sp.csr_matrix(known.layers["counts"])
    fewer = probing._thinned(0, 0.1, counts)
    assert (fewer.toarray() <= counts.toarray()).all()
    n = counts.sum()
    assert fewer.sum() / n == pytest.approx(0.1, abs=float(5 * np.sqrt(0.09 / n)))
    assert (fewer != probing._thinned(1, 0.1, counts)).nnz


@pytest.mark.slow
def test_log_expression_alone_is_not_thinned(known):
    known.X = np.log1p(known.layers["counts"].toarray())
    schema = ch.Schema(expression="X", batch="obs/batch", label="obs/cell_type")
    out = typing(known, schema=schema, depths=None)
    assert out.about["depths"] == [1.0]
    with pytest.raises(ch.SchemaError, match="depths thins counts: name their place"):
        typing(known, schema=schema, depths=(1, 0.5))
    both = typing(known, schema=SCHEMA.with_(expression="X"), depths=(0.5,))
    assert both.lacking()["linear_f1_at_0.5"].startswith("it reads")


# a missing modality

UPDATES = pytest.mark.filterwarnings("ignore:From 0.4 .update:FutureWarning")  # of mudata

CITE = ch.Schema(counts="rna:X", protein="adt:X", batch="obs/batch", label="obs/cell_type")


@pytest.fixture(scope="module")
def cite():
    """Cells of three batches, of which every seventh has no label."""
    cells = simulate_citeseq(400, 100, 12, n_types=3, n_batches=3, seed=0)
    cells.obs["cell_type"] = cells.obs["cell_type"].astype(object)
    cells.obs.loc[cells.obs_names[::7], "cell_type"] = None
    return cells


def missing(data, methods=(), schema=CITE, **options):
    asked = {"held_out": ["batch_2"], "tasks": ["missing"], "seeds": (0,)} | options
    return ch.bench.probe(data, schema, methods, progress=False, **asked)


@UPDATES
def test_proteins_are_foretold_by_neighbours_and_the_mean_profile_says_nothing_of_them(cite):
    out = missing(cite)
    table = out.table()
    assert table.index.tolist() == ["PCA", "Harmony", MEAN, MEASURED]
    assert table.loc[MEAN, "cell_r"] > 0.3
    assert table.loc[MEAN, "protein_r"] == 0
    assert table.loc[MEASURED, "protein_r"] > table.loc["PCA", "protein_r"] > 0.1
    assert table.loc["PCA", "protein_f1"] > table.loc[MEAN, "protein_f1"]
    codes = pd.factorize(cite.obs["cell_type"], sort=True)[0]
    x = np.log1p(cite["adt"].X.toarray().astype(float))
    old, query = (cite.obs["batch"] != "batch_2").to_numpy(), codes >= 0
    query &= ~old
    learned = old & (codes >= 0)
    nearest = NearestLabels.fit(x[learned], codes[learned], 3, k=11)
    told = nearest.probabilities(by_neighbours(x[old], x[query], x[old])).argmax(1)
    expected = f1_score(codes[query], told, average="macro")
    assert table.loc[MEASURED, "protein_f1"] == pytest.approx(expected, abs=1e-9)
    single = out.by_class.query("method == 'PCA' and metric == 'protein_r'")
    assert len(single) == out.about["proteins"] == 12
    assert table.loc["PCA", "worst_protein"] == pytest.approx(single["value"].min())
    assert any("Per cell, the mean profile of the reference correlates" in s for s in findings(out))


@pytest.mark.slow
@UPDATES
def test_hidden_proteins_are_hidden(cite):
    """A model that would read proteins is fitted without, and foretells the same whatever the query has."""
    both = SIMCLR.fit(cite, CITE)
    out = missing(cite, {"SimCLR": SIMCLR, "both": both})
    assert out.methods.loc["both", "notes"][-1].startswith(
        "failed in missing protein, so that it has no correlation per protein: it reads the"
    )
    other = cite.copy()
    query = (other["adt"].obs["batch"] == "batch_2").to_numpy()
    counts = other["adt"].X.toarray()
    rng = np.random.default_rng(0)
    counts[query] = rng.permuted(counts[query], axis=0)
    other.mod["adt"].X = sp.csr_matrix(counts)
    again = missing(other, [SIMCLR])
    # what is foretold is the same, so that types told from it are; how right it is, is not
    key = "protein_f1"
    assert out.table().loc["SimCLR", key] == again.table().loc["SimCLR", key]
    assert abs(again.table().loc["SimCLR", "protein_r"]) < 0.1 < out.table().loc["PCA", "protein_r"]


@pytest.mark.slow
@UPDATES
def test_a_model_of_both_learns_from_proteins_of_the_reference_and_sees_none_of_the_query(cite):
    """What is scored is what `predict` fills in by RNA alone, whatever proteins the query has."""
    model = ch.ScCLIP(n_latent=8, n_hidden=16, max_epochs=15)
    out, key = missing(cite, [model]), "protein_f1"
    assert out.methods.loc["ScCLIP", "notes"][0].startswith(
        "it learned from the proteins of the ref"
    )
    query = (cite.obs["batch"] == "batch_2").to_numpy()
    proteins = np.log1p(cite["adt"].X.toarray().astype(float))
    fitted = model.fit(cite, CITE, seed=0, rows=np.flatnonzero(~query), progress=False)
    x = np.log1p(1e4 * (c := cite["rna"].X.toarray()) / c.sum(1, keepdims=True))
    with torch.no_grad():
        z = fitted.module.network.encode_role("counts", View({"counts": torch.tensor(x).float()}))
    told = by_neighbours(z[~query].numpy(), z[query].numpy(), proteins[~query])
    r = [np.corrcoef(a, b)[0, 1] for a, b in zip(told.T, proteins[query].T, strict=True)]
    assert out.table().loc["ScCLIP", "protein_r"] == pytest.approx(np.mean(r), abs=1e-3)
    other, shuffled = cite.copy(), cite["adt"].X.toarray()
    shuffled[query] = np.random.default_rng(0).permuted(shuffled[query], axis=0)
    other.mod["adt"].X = sp.csr_matrix(shuffled)
    assert missing(other, [model]).table().loc["ScCLIP", key] == out.table().loc["ScCLIP", key]
    with_log = cite.copy()
    with_log["rna"].layers["log"] = sp.csr_matrix(x)
    both = missing(with_log, [model], schema=CITE.with_(expression="rna:layers/log"))
    assert both.table().loc["ScCLIP", "protein_r"] == out.table().loc["ScCLIP", "protein_r"]
    log = CITE.with_(counts=None, expression="rna:layers/log")
    refused = missing(with_log, [model], schema=log).methods.loc["ScCLIP", "notes"][-1]
    assert "it cannot do without proteins, which are hidden beside counts alone" in refused


@pytest.mark.slow
@UPDATES
def test_a_mosaic_uses_the_cells_that_have_both():
    data = simulate_citeseq(
        400, 60, 8, n_types=3, n_batches=4, absent={"rna": ["batch_0"], "adt": ["batch_1"]}, seed=0
    )
    out = missing(data, held_out=["batch_3"], tasks=("typing", "missing"), depths=(0.5,))
    sizes = data.obs["batch"].value_counts()
    assert out.about["reference with protein"] == sizes["batch_2"]
    assert out.about["query with protein"] == out.about["query"] == sizes["batch_3"]
    assert out.about["reference"] == sizes["batch_1"] + sizes["batch_2"]
    assert out.about["not placed"] == {"batch_0": sizes["batch_0"]}
    with pytest.raises(ch.DataError, match="No query cell has RNA and protein"):
        missing(data, held_out=["batch_1"])
    with pytest.raises(ch.DataError, match="No reference cell has RNA and protein"):
        missing(data[data.obs["batch"].isin(["batch_1", "batch_2"])].copy(), held_out=["batch_2"])
    with pytest.raises(ch.DataError, match="batch 'batch_0' has 0 cells that every"):
        missing(data, held_out=["batch_0"])


@UPDATES
def test_proteins_need_no_labels(cite):
    out = missing(cite, schema=CITE.with_(label=None), held_out=None)
    assert len(out.about["held out"]) == 2
    assert "protein_f1" not in out.metrics.index
    assert np.isfinite(out.table().loc["PCA", "protein_r"])
    said = " ".join(findings(out))
    n = (out.about["query with protein"], out.about["reference with protein"])
    assert f"({n[0]} cells with protein, and {n[1]} in the reference)" in said
    assert n[0] + n[1] == 400
    assert "label" not in said
    assert "type" not in said
    held = (cite.obs["batch"] == "batch_2").to_numpy()
    few = cite[~held | (held.cumsum() < 9)].copy()
    with pytest.raises(ch.DataError, match="batch 'batch_2' has 8 cells that every"):
        missing(few, schema=CITE.with_(label=None))
    with pytest.raises(
        ch.ConfigError, match=r"none has 10 cells\. Give cells of more batches, or ask"
    ):
        missing(cite[::25].copy(), schema=CITE.with_(label=None), held_out=None)


@UPDATES
def test_a_collapsed_embedding_foretells_nothing_either(cite):
    cells, query = cite.copy(), (cite.obs["batch"] == "batch_2").to_numpy()
    whole = np.random.default_rng(0).normal(size=(400, 3)).astype(np.float32)
    for name, flat in (("all", query | True), ("query", query), ("reference", ~query)):
        cells.obsm[f"X_{name}"] = np.where(flat[:, None], 1, whole)
    out = missing(cells, keys=["all", "query", "reference"])
    for name, side in (("all", "reference"), ("query", "query"), ("reference", "reference")):
        assert out.methods.loc[f"X_{name}", "notes"][-1].startswith(
            f"failed in missing protein, so that it has no correlation per protein: X_{name}, of the "
            f"{side}, has collapsed"
        )
        assert np.isnan(out.table().loc[f"X_{name}", "cell_r"])


# correction, and all tasks as one


@pytest.fixture(scope="module")
def whole(_known, tmp_path_factory):
    out = ch.bench.probe(
        _known,
        SCHEMA,
        keys=["oracle", "noise"],
        seeds=(0,),
        metrics=FEW,
        depths=(1, 0.5),
        progress=False,
    )
    alone = ch.bench.integration(
        _known, SCHEMA, ["oracle", "noise"], seeds=(0,), metrics=FEW, progress=False
    )
    return out, alone


@pytest.mark.slow
def test_correction_is_the_bench_of_integration_with_the_scaled_total_beside(whole):
    out, alone = whole
    mine, theirs = out.table(), alone.table()
    columns = [*FEW, "bio", "batch", "total"]
    pd.testing.assert_frame_equal(
        mine.loc[theirs.index, columns].astype(float), theirs[columns].astype(float)
    )
    rows = theirs.index[theirs["role"] != "ceiling"]
    raw = theirs.loc[rows, FEW].astype(float)
    scaled = (raw - raw.min()) / (raw.max() - raw.min())
    expected = 0.3 * (scaled["clisi"] + scaled["silhouette_label"])
    expected += 0.2 * (scaled["ilisi"] + scaled["graph_connectivity"])
    np.testing.assert_allclose(mine.loc[rows, "scaled_total"].astype(float), expected)
    assert np.isnan(mine.loc["label oracle", "scaled_total"])
    assert out.embeddings.keys() == alone.embeddings.keys()


@pytest.mark.slow
def test_tasks_stand_in_one_table_and_a_page(whole, tmp_path):
    out, _ = whole
    assert out.about["tasks"] == ["correction", "typing"]
    assert out.about["held out by default"]
    smallest = out.sizes.groupby("batch")["cells"].sum().nsmallest(2).index
    assert {*out.about["held out"]} == {*smallest}
    assert out.methods.loc["X_noise", "notes"].count("one seed: a ready-made embedding") == 1
    said = findings(out)
    assert said[0].startswith("Correction: X_oracle has the highest total")
    assert said[1].startswith(
        "Typing: X_oracle has the highest macro-F1 of kNN over shared types, 1.000"
    )
    assert any(s.startswith("Held out as query") and "none was named" in s for s in said)
    assert any("min-max Total scales" in s for s in said)
    assert not any("average fewer metrics" in s for s in said)
    headings = [section.heading for section in bench_sections(out)]
    assert headings == [
        "Verdict", "Embeddings", "Which types are told for which", "How sure classifiers may be",
        "Fewer counts", "Tables",
    ]  # fmt: skip
    (caption, first), *_ = bench_sections(out)[-1].tables
    assert caption.startswith("The main scores")
    assert first.shape[1] <= 5
    page = out.report(tmp_path / "page.html").read_text()
    assert "<h1>Probe bench</h1>" in page
    again = ch.bench.Bench.load(out.save(tmp_path / "bench.json"))
    pd.testing.assert_frame_equal(again.table(), out.table(), check_dtype=False)
    for name in ("confusion", "calibration", "by_class"):
        pd.testing.assert_frame_equal(getattr(again, name), getattr(out, name), check_dtype=False)
    assert "Which types" in again.report(tmp_path / "again.html").read_text()


def test_it_goes_on_where_it_was_cut_off(known, tmp_path, monkeypatch):
    options = {"into": tmp_path / "run"}
    one = typing(known, ["noise"], **options)
    monkeypatch.setattr(probing, "_told", None)  # nothing is judged again
    two = typing(known, ["noise"], **options)
    pd.testing.assert_frame_equal(one.scores, two.scores)
    with pytest.raises(ch.StoreError, match="results of another run"):
        typing(known, ["noise"], held_out=["batch_2"], **options)


@pytest.mark.slow
def test_collapse_is_in_the_notes_with_its_seed(known, monkeypatch):
    monkeypatch.setattr(SimCLRModule, "remarks", lambda self: ["the embedding has collapsed"])
    with pytest.warns(UserWarning, match="collapsed"):
        out = typing(known, [SIMCLR], seeds=(0, 1))
    notes = out.methods.loc["SimCLR", "notes"]
    assert [n for n in notes if "collapsed" in n] == [
        f"the embedding has collapsed (seed {s})" for s in (0, 1)
    ]
    assert any("SimCLR: the embedding has collapsed" in s for s in findings(out))


def test_a_row_that_fails_in_a_task_says_so(known):
    known.obsm["X_flat"] = np.zeros((known.n_obs, 3), np.float32)
    out = typing(known, ["flat"])
    assert any(
        n.startswith("failed in typing, so that it has no macro-F1: ") and "collapsed" in n
        for n in out.methods.loc["X_flat", "notes"]
    )
    assert np.isnan(out.table().loc["X_flat", "knn_f1"])
    assert any(s.startswith("X_flat: failed in typing") for s in findings(out))


# bad input


@pytest.fixture
def fits(monkeypatch):
    begun = []
    monkeypatch.setattr(Model, "fit", lambda self, *_, **__: begun.append(self))
    return begun


def test_bad_input_is_refused_before_any_fit(known, fits):
    one = known[known.obs["batch"] == "batch_0"].copy()
    few = known.copy()
    few.obs["cell_type"] = few.obs["cell_type"].astype(object)
    few.obs.loc[few.obs_names[(few.obs["batch"] == "batch_3").to_numpy()][9:], "cell_type"] = None
    two = known[known.obs["cell_type"].isin(["type_0", "type_3"])].copy()
    every = [f"batch_{i}" for i in range(4)]
    for cells, schema, options, kind, said in (
        (known, SCHEMA.with_(label=None), {}, ch.SchemaError, "bench.probe needs label: Schema"),
        (known, SCHEMA.with_(batch=None), {}, ch.SchemaError, "bench.probe needs batch: Schema"),
        (known, SCHEMA.with_(counts=None), {}, ch.SchemaError, "needs counts or expression"),
        (one, SCHEMA, {}, ch.DataError, "The cells are of 1 batch: a query is a whole batch"),
        (known, SCHEMA, {"held_out": ["batch3"]}, ch.ConfigError, "no batch 'batch3'. Did you mean 'batch"),
        (known, SCHEMA, {"held_out": every}, ch.ConfigError, "names all 4 batches, so no reference"),
        (two, SCHEMA, {}, ch.DataError, "The reference has 1 type without batch_3, and"),
        (few, SCHEMA, {}, ch.DataError, "batch 'batch_3' has 9 labelled cells"),
        (known, SCHEMA, {"tasks": ["typin"]}, ch.ConfigError, "no task 'typin'. Did you mean 'typing'"),
        (known, SCHEMA, {"tasks": []}, ch.ConfigError, "tasks is empty"),
        (known, SCHEMA, {"tasks": ["missing"]}, ch.SchemaError, "'missing' needs protein: Schema"),
        (known, SCHEMA, {"depths": (1, 0)}, ch.ConfigError, "depths: 0 is no share of the counts"),
        (known, SCHEMA, {"seeds": ()}, ch.ConfigError, "There are no seeds"),
        (known, SCHEMA, {"keys": ["oracel"]}, ch.SchemaError, "no obsm.'oracel'"),
        (known, SCHEMA, {"metrics": ["x"], "tasks": None}, ch.ConfigError, "no metric 'x'"),
    ):  # fmt: skip
        with pytest.raises(kind, match=said):
            typing(cells, [ch.SCVI()], schema=schema, **options)
    assert fits == []


def test_cells_without_a_label_are_left_out_and_counted(known):
    known.obs["cell_type"] = known.obs["cell_type"].astype(object)
    query = known.obs_names[(known.obs["batch"] == "batch_3").to_numpy()]
    other = known.obs_names[(known.obs["batch"] == "batch_0").to_numpy()]
    known.obs.loc[query[:5].append(other[:7]), "cell_type"] = None
    out = typing(known)
    assert out.about["unlabelled"] == 12
    assert out.about["query"] == len(query) - 5
    assert (
        out.confusion.query("method == 'PCA' and classifier == 'knn'")["cells"].sum()
        == len(query) - 5
    )
    assert any(s.startswith("No label: 12 of") for s in findings(out))


def test_the_smallest_batches_that_can_be_are_held_out():
    batch = pd.Series(np.repeat(["tiny", "odd", "small", "mid", "big"], [5, 20, 30, 40, 90]))
    label = pd.Series(np.resize(["A", "B"], 185))
    label[batch == "odd"] = "C"  # no type that others have

    def held_out(keep):
        some = batch.isin(keep).to_numpy()
        return split(label, batch, some, None).held_out

    assert held_out(batch.unique()) == ("small", "mid")
    assert held_out(["small", "big"]) == ("small",)
    with pytest.raises(ch.ConfigError, match="No batch can be the query"):
        held_out(["odd", "big"])


@pytest.mark.slow
def test_few_query_cells_have_no_ceiling_and_a_word(known):
    few = known[:400].copy()
    few.obs["batch"] = np.where(np.arange(400) < 388, "old", "new")
    out = typing(few, held_out=["new"])
    note = out.methods.loc[OWN, "notes"][-1]
    assert note.startswith("failed in typing")
    assert "of 12 query cells the 11 nearest are too many" in note
    said = " ".join(findings(out))
    assert "The query has 12 cells with a label, so that a single one moves scores by 0.08" in said
    assert "The reference is a single batch" in said
    assert "single batch" not in " ".join(findings(typing(known, held_out=["batch_3"])))


def test_a_model_that_is_named_is_asked_for(known):
    for name in ("SimCLR", "simclr"):
        with pytest.raises(ch.SchemaError, match=r"Did you mean the model chreode\.SimCLR\(\)"):
            typing(known, [name])
    with pytest.raises(ch.ArgumentError, match=r"SimCLR is a class: call it, as in SimCLR\(\)\."):
        typing(known, [ch.SimCLR])
