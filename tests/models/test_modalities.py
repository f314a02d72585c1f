"""Expression and protein in one self-supervised model: fusion, masks, CLIP, and protein filled in."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import anndata as ad
import mudata
import numpy as np
import pytest
import scipy.sparse as sp
import torch
import torch.nn.functional as F

import chreode as ch
from chreode.compute.processes import Group
from chreode.compute.rng import Rng
from chreode.data.batch import CellBatch, SparseRows
from chreode.data.simulate import simulate_citeseq
from chreode.model import Model
from chreode.models.selfsupervised import reference
from chreode.models.selfsupervised.network import Network, View
from chreode.models.selfsupervised.views import centred_log
from chreode.module import Step
from chreode.nn.blocks import share_statistics
from chreode.schema import Spec

SCHEMA = ch.Schema(counts="rna:X", protein="adt:X", batch="obs/batch", label="obs/cell_type")
LEFT_OUT = pytest.mark.filterwarnings("ignore:.*without what the model reads")
FUSIONS = ("concat", "mean", "add", "clip")
QUICK = {"n_latent": 6, "n_hidden": 32, "projector": (16, 8), "max_epochs": 3, "batch_size": 64}


def joined(**parts):
    """A MuData with the columns of its first modality."""
    with mudata.set_options(pull_on_update=False):
        found = mudata.MuData(parts)
    first = next(iter(parts.values()))
    found.obs = first.obs.reindex(found.obs_names)
    return found


@pytest.fixture(scope="module")
def whole():
    cells = simulate_citeseq(300, 80, 8, n_types=4, n_batches=3, seed=0)
    return joined(rna=cells["rna"].copy(), adt=cells["adt"].copy())


@pytest.fixture(scope="module")
def mosaic():
    """Of three batches the second lacks protein, and the third lacks RNA."""
    absent = {"adt": ["batch_1"], "rna": ["batch_2"]}
    return simulate_citeseq(300, 80, 8, n_types=4, n_batches=3, absent=absent, seed=0)


@pytest.fixture(scope="module")
def fitted(mosaic):
    return {f: ch.SimCLR(fusion=f, **QUICK).fit(mosaic, SCHEMA, progress=False) for f in FUSIONS}


def parts_of(fitted, cells):
    """The embedding by each encoder, by hand on dense values, and which cells have each."""
    network, found = fitted.module.network, {}
    for role, name in (("counts", "rna"), ("protein", "adt")):
        part = cells[name]
        at = cells.obs_names.get_indexer(part.obs_names)
        x = part.X.toarray() if sp.issparse(part.X) else part.X
        x = torch.tensor(x, dtype=torch.float32)
        if role == "counts":
            x = (x * 1e4 / x.sum(1, keepdim=True)).log1p()
        else:
            x = x.log1p() - x.log1p().mean(1, keepdim=True)
        z = torch.zeros(cells.n_obs, 6)
        with torch.no_grad():
            z[at] = network.encoders[role](x)
        found[role] = z.numpy(), np.isin(np.arange(cells.n_obs), at)
    return found


@pytest.mark.slow
def test_ways_to_fuse_differ(fitted, mosaic):
    """Side by side, mean over what is there, sum; what a cell lacks is 0."""
    found = {f: fitted[f].embed(mosaic) for f in FUSIONS}
    for fusion, z in found.items():
        (rna, has_rna), (adt, has_adt) = parts_of(fitted[fusion], mosaic).values()
        assert (has_rna & ~has_adt).sum() == (has_adt & ~has_rna).sum() == 100
        together = {
            "mean": (rna + adt) / (has_rna.astype(int) + has_adt)[:, None], "add": rna + adt,
        }.get(fusion, np.hstack([rna, adt]))  # fmt: skip
        np.testing.assert_allclose(z, together, atol=1e-4)
    assert np.abs(found["add"] - found["mean"]).max() > 0.1
    assert np.abs(found["concat"] - found["clip"]).max() > 0.1


def network(fusion="concat"):
    spec = Spec(
        ("counts", "protein"), {"counts": tuple("abcdefg"), "protein": tuple("pqrst")}, n_cells=50
    )
    with Rng(0).scope("init"):
        return Network(ch.SimCLR(fusion=fusion, **QUICK), spec), spec


@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize("form", [lambda x: x, SparseRows.of])
def test_what_is_not_there_is_not_looked_at(fusion, form):
    net, _ = network(fusion)
    x, y = torch.rand(9, 7) + 0.1, torch.randn(9, 5)
    there = {"counts": torch.arange(9) < 6, "protein": torch.arange(9) >= 3}
    clean, dirty = (
        View(
            {
                role: form(torch.where(there[role][:, None], v, fill))
                for role, v in (("counts", x), ("protein", y))
            },
            there,
        )
        for fill in (0.0, 1e6)  # as crossover brings values of other cells
    )
    for training in (True, False):
        net.train(training)
        for one, other in zip(net(clean), net(dirty), strict=True):
            torch.testing.assert_close(one, other)
        # batch norm looks at the cells that are there alone
        alone, parts = net.encoders["counts"](x[:6]), net.encode(clean)
        torch.testing.assert_close(parts["counts"][:6], alone)
        assert not parts["counts"][6:].any()
        assert not net.project(parts, clean)["protein"][:3].any()


def test_the_order_of_modalities_and_cells_does_not_matter(mosaic, fitted):
    turned = joined(adt=mosaic["adt"].copy(), rna=mosaic["rna"].copy())
    turned.obs = mosaic.obs.reindex(turned.obs_names)
    assert turned.obs_names.tolist() != mosaic.obs_names.tolist()
    at = turned.obs_names.get_indexer(mosaic.obs_names)
    np.testing.assert_allclose(
        fitted["concat"].embed(turned)[at], fitted["concat"].embed(mosaic), atol=1e-5
    )


def test_centred_log_is_the_log_less_its_mean_over_what_was_measured():
    counts = np.random.default_rng(0).poisson(20, (6, 5)).astype(np.float32)
    counts[1, 2] = counts[4] = np.nan
    counts[4, 0] = 3
    present = torch.tensor([True, True, True, False, True, True])
    observed = torch.tensor([True, True, True, True, False])
    batch = CellBatch(
        torch.arange(6), {"protein": torch.from_numpy(counts)}, {"protein": present},
        {"protein": observed},
    )  # fmt: skip
    known = ~np.isnan(counts) & observed.numpy() & present.numpy()[:, None]
    logs = np.where(known, np.log1p(counts), np.nan)
    expected = np.nan_to_num(
        logs - np.nanmean(np.where(known.any(1)[:, None], logs, 0), 1)[:, None]
    )
    np.testing.assert_allclose(centred_log(batch, "protein").numpy(), expected, atol=1e-6)
    assert centred_log(batch, "protein")[4].tolist() == [0] * 5  # of one protein it tells nothing


def test_augmentations_bring_nothing_to_a_modality_that_is_not_there(mosaic):
    """Crossover alone leaves rows sparse, and takes values from any cell of the minibatch."""
    model = ch.SimCLR(augment=("crossover",), chance=1.0, crossover=0.5, **QUICK)
    assert np.isfinite(model.fit(mosaic, SCHEMA, progress=False).embed(mosaic)).all()


# CLIP


def between(net_view, module, group=Group()):
    return module.between(net_view, Step(Rng(0), 0, 0.0, group=group))


@pytest.fixture
def joining():
    _, spec = network("clip")
    with Rng(0).scope("init"):
        module = ch.SimCLR(fusion="clip", **QUICK).build(spec)
    there = {"counts": torch.arange(12) < 9, "protein": torch.arange(12) >= 4}  # five have both
    torch.manual_seed(0)
    return module, torch.rand(12, 7) + 0.1, torch.randn(12, 5), there


def test_clip_is_the_cross_entropy_both_ways_over_cells_that_have_both(joining):
    module, x, y, there = joining
    found = between(View({"counts": x, "protein": y}, there), module.eval())
    net = module.network
    one, two = (
        F.normalize(net.projectors[r](net.encoders[r](v[4:9])), dim=1).detach().double().numpy()
        for r, v in (("counts", x), ("protein", y))
    )
    logits = one @ two.T / 0.07
    log_p, log_q = (m - np.log(np.exp(m).sum(1, keepdims=True)) for m in (logits, logits.T))
    expected = -(np.diag(log_p).mean() + np.diag(log_q).mean()) / 2
    assert found.item() == pytest.approx(expected, rel=1e-5)
    # the others are no negatives
    moved = View({"counts": x + (torch.arange(12) < 4)[:, None], "protein": y}, there)
    assert between(moved, module).item() == found.item()
    found.backward()
    assert net.log_scale.grad.abs() > 0
    net.log_scale.data.fill_(99.0)
    assert net.temperature().item() == pytest.approx(0.01)


@pytest.mark.parametrize("n_both", [0, 1])
def test_clip_of_none_or_one_is_nothing(joining, n_both):
    module, x, y, _ = joining
    there = {"counts": torch.arange(12) < 6 + n_both, "protein": torch.arange(12) >= 6}
    found = between(View({"counts": x, "protein": y}, there), module)
    found.backward()
    assert found.item() == 0
    grads = [p.grad for p in module.parameters() if p.grad is not None]
    assert grads
    assert all(bool(g.isfinite().all()) for g in grads)


@pytest.mark.slow
def test_clip_is_added_to_the_objective_of_the_model(whole):
    history = ch.SimCLR(fusion="clip", **QUICK).fit(whole, SCHEMA, progress=False).history
    first = history.iloc[0]
    assert first["train_clip"] > 1
    plain = ch.SimCLR(fusion="concat", **QUICK).fit(whole, SCHEMA, progress=False).history.iloc[0]
    assert "train_clip" not in plain
    gap = first["train_objective"] - first["train_clip"] - plain["train_objective"]
    assert abs(gap) < 0.3


def ranks(fitted, cells):
    """How many proteins look likelier than a cell's own, given its RNA: the mean share."""
    rna, adt = (
        F.normalize(fitted.module.network.projectors[role](torch.from_numpy(z)), dim=1)
        for role, (z, _) in parts_of(fitted, cells).items()
    )
    likeness = rna @ adt.T
    return float((likeness > likeness.diagonal()[:, None]).float().mean())


@pytest.mark.usefixtures("without_types")
@pytest.mark.slow
def test_modalities_find_each_other_by_clip_alone(whole):
    held, rest = np.arange(0, 300, 3), np.setdiff1d(np.arange(300), np.arange(0, 300, 3))
    query = joined(rna=whole["rna"][held].copy(), adt=whole["adt"][held].copy())
    options = {**QUICK, "max_epochs": 40, "lr": 3e-3}
    found = {
        f: ranks(ch.SimCLR(fusion=f, **options).fit(whole, SCHEMA, rows=rest), query)
        for f in ("clip", "concat")
    }
    assert found["clip"] < 0.35
    assert found["concat"] > 0.4  # 0.5: by chance


def gathered(group):
    """CLIP's term and its gradient in float64, of cells shared out so that one process has one pair."""
    torch.set_default_dtype(torch.float64)
    _, spec = network("clip")
    with Rng(0).scope("init"):
        module = ch.SimCLR(fusion="clip", **QUICK).build(spec).double()
    share_statistics(module, among_processes=not group.alone)
    r = np.random.default_rng(0)
    x, y = torch.from_numpy(r.random((13, 7))), torch.from_numpy(r.normal(size=(13, 5)))
    there = {"counts": torch.arange(13) < 8, "protein": torch.arange(13) >= 2}
    mine = torch.from_numpy(group.share(np.arange(13)))
    view = View(
        {"counts": x[mine], "protein": y[mine]}, {name: v[mine] for name, v in there.items()}
    )
    loss = between(view, module, group) * len(mine) / 13
    parameters = [p for n, p in module.named_parameters() if "network" in n]
    found = [loss.detach(), *torch.autograd.grad(loss, parameters)]
    group.add(found)
    torch.set_default_dtype(torch.float32)
    return [t.flatten().tolist() for t in found]


@pytest.mark.slow
def test_two_processes_find_clip_of_the_joint_minibatch(tmp_path):
    launcher = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    quiet = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    quiet["PYTHONPATH"] = str(Path(ch.__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-m", *launcher, __file__, str(tmp_path)], env=quiet, capture_output=True,
        text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    alone, both = gathered(Group()), [json.loads(f.read_text()) for f in tmp_path.iterdir()]
    assert len(both) == 2
    for one in both:
        for found, expected in zip(one, alone, strict=True):
            np.testing.assert_allclose(found, expected, atol=1e-10)


# protein filled in


def proteins(cells):
    x = cells["adt"].X
    return x.toarray() if sp.issparse(x) else np.asarray(x)


@LEFT_OUT
def test_protein_is_the_mean_of_the_nearest_by_expression(mosaic, fitted, monkeypatch):
    one = fitted["concat"]
    rna, has_rna = parts_of(one, mosaic)["counts"]
    stored = one.module.paired
    assert int(stored.n) == pytest.approx(one.provenance["cells"] / 3, abs=15)
    near = F.normalize(torch.from_numpy(rna[has_rna]), dim=1).numpy()
    keys = F.normalize(stored.x[: int(stored.n)], dim=1).numpy()
    found = one.predict(mosaic)
    order = np.argsort(-(near @ keys.T), axis=1)[:, :5]
    expected = stored.proteins.numpy()[order].mean(1)
    np.testing.assert_allclose(found.X, expected, rtol=1e-4)
    assert found.X.dtype == np.float32
    assert found.obs_names.tolist() == mosaic.obs_names[has_rna].tolist()
    assert found.var_names.tolist() == mosaic["adt"].var_names.tolist()
    assert json.loads(found.uns["chreode"]["predict"])["scale"] == "counts"
    # what is kept is of the training cells that have both, each with its own proteins
    measured = {tuple(row): i for i, row in enumerate(proteins(mosaic))}
    own = [measured[tuple(row)] for row in stored.proteins[: int(stored.n)].numpy()]
    at = mosaic.obs_names.get_indexer(mosaic["adt"].obs_names[own])
    assert has_rna[at].all()
    np.testing.assert_allclose(stored.x[: int(stored.n)].numpy(), rna[at], atol=1e-4)
    monkeypatch.setattr(reference, "_CHUNK", 7)
    np.testing.assert_array_equal(one.predict(mosaic).X, found.X)


@LEFT_OUT
def test_protein_is_not_read_where_it_is_filled_in(mosaic, fitted, tmp_path):
    one = fitted["mean"]
    expected = one.predict(mosaic).X
    bare = joined(rna=mosaic["rna"].copy())
    np.testing.assert_array_equal(one.predict(bare).X, expected)
    alone = mosaic["rna"].copy()
    np.testing.assert_array_equal(one.predict(alone, schema=ch.Schema(counts="X")).X, expected)
    other = joined(rna=mosaic["rna"].copy(), adt=mosaic["adt"].copy())
    other["adt"].X = np.full(other["adt"].shape, 7.0, np.float32)
    np.testing.assert_array_equal(one.predict(other).X, expected)
    written = one.predict(alone, schema=ch.Schema(counts="X"), into=tmp_path / "new.h5ad")
    np.testing.assert_array_equal(ad.read_h5ad(written).X, expected)
    again = ch.load(one.save(tmp_path / "model"))
    np.testing.assert_array_equal(again.predict(bare).X, expected)


@pytest.mark.usefixtures("without_types")
@pytest.mark.slow
def test_held_out_proteins_are_found_and_shuffled_ones_are_not(whole):
    held = np.arange(0, 300, 3)
    rest = np.setdiff1d(np.arange(300), held)
    options = {**QUICK, "max_epochs": 15, "n_latent": 16, "lr": 3e-3}
    fitted = ch.SimCLR(**options).fit(whole, SCHEMA, rows=rest, progress=False)
    truth = np.log1p(proteins(whole)[held])

    def correlation():
        found = np.log1p(fitted.predict(whole).X[held])
        return np.mean([np.corrcoef(a, b)[0, 1] for a, b in zip(found.T, truth.T, strict=True)])

    assert correlation() > 0.2
    stored = fitted.module.paired
    n = int(stored.n)
    order = torch.from_numpy(np.random.default_rng(0).permutation(n))
    stored.proteins[:n] = stored.proteins[:n][order]
    assert correlation() < 0.1


def test_conditions_and_models_that_fill_in_nothing_are_told_apart(whole, fitted):
    with pytest.raises(ch.ConfigError, match="fills in protein and has no conditions to change"):
        fitted["concat"].predict(whole, to={"batch": "batch_0"})
    rna = whole["rna"].copy()
    bare = ch.SimCLR(**QUICK).fit(rna, ch.Schema(counts="X"), progress=False)
    with pytest.raises(ch.CapabilityError, match="cannot predict.*Name protein in the fit"):
        bare.predict(rna)
    scvi = ch.SCVI(n_latent=2, max_epochs=1).fit(rna, ch.Schema(counts="X"), progress=False)
    with pytest.raises(ch.ConfigError, match="under which conditions scvi is to predict"):
        scvi.predict(rna)


# what cells lack


@pytest.fixture
def no_compute(monkeypatch):
    monkeypatch.setattr(Model, "_learn", lambda *_: pytest.fail("compute began"))


def test_a_modality_that_no_training_cell_has_is_refused(mosaic, no_compute):
    batches = mosaic.obs["batch"].to_numpy()
    for batch, role in (("batch_1", "protein"), ("batch_2", "counts")):
        with pytest.raises(ch.DataError, match=f"No cell to learn from has {role}"):
            ch.SimCLR(**QUICK).fit(mosaic, SCHEMA, rows=batches == batch)
    apart = np.isin(batches, ["batch_1", "batch_2"])
    with pytest.raises(ch.DataError, match="cells that have both modalities, and none has"):
        ch.SimCLR(fusion="clip", **QUICK).fit(mosaic, SCHEMA, rows=apart)


@LEFT_OUT
def test_without_any_pair_nothing_can_be_filled_in(mosaic):
    apart = np.isin(mosaic.obs["batch"], ["batch_1", "batch_2"])
    fitted = ch.SimCLR(fusion="mean", **QUICK).fit(mosaic, SCHEMA, rows=apart, progress=False)
    assert np.isfinite(fitted.embed(mosaic)).all()
    with pytest.raises(ch.DataError, match="No cell of the fit has both expression and protein"):
        fitted.predict(mosaic)


def test_a_query_without_protein_is_told_what_to_do(mosaic, fitted):
    rna = mosaic["rna"].copy()
    with pytest.raises(ch.SchemaError, match="fitted on protein, and this schema does not say"):
        fitted["concat"].embed(rna, schema=ch.Schema(counts="X"))
    with pytest.raises(ch.SchemaError, match="no modality 'adt'"):
        fitted["concat"].embed(joined(rna=rna))


def test_proteins_that_were_not_measured_are_left_out(whole):
    holed = joined(rna=whole["rna"].copy(), adt=whole["adt"].copy())
    values = proteins(whole).astype(np.float32)
    values[::10, 2] = np.nan
    values[:, 5] = np.nan
    holed["adt"].X = values
    fitted = ch.SimCLR(**QUICK).fit(holed, SCHEMA, progress=False)
    assert np.isfinite(fitted.embed(holed)).all()
    found = fitted.predict(holed)
    assert np.isnan(found.X[:, 5]).all()
    assert np.isfinite(found.X[:, :5]).all()
    assert fitted.classify(holed)["confidence"].notna().all()


def test_cells_with_neither_have_no_answers(mosaic, fitted):
    rna = mosaic["rna"][:60].copy()
    adt = mosaic["adt"][mosaic["adt"].obs_names.isin(rna.obs_names)][:40].copy()
    other = ad.AnnData(np.ones((300, 2), np.float32), obs=mosaic.obs[[]].copy())
    few = joined(rna=rna, adt=adt, other=other)
    few.obs = mosaic.obs.reindex(few.obs_names)
    z, table = fitted["concat"].embed(few), fitted["concat"].classify(few)
    lacking = ~few.obs_names.isin([*rna.obs_names, *adt.obs_names])
    assert lacking.sum() == 240
    np.testing.assert_array_equal(np.isnan(z).all(1), lacking)
    np.testing.assert_array_equal(table["label"].isna(), lacking)
    np.testing.assert_array_equal(table["novelty"].isna(), lacking)
    again = ch.SimCLR(**QUICK).fit(few, SCHEMA, progress=False)  # they are not learned from
    assert again.spec.n_cells == 60


def test_expression_may_be_dense_or_sparse(whole):
    rna = whole["rna"].copy()
    x = rna.X.toarray() if sp.issparse(rna.X) else rna.X
    logs = np.log1p(x * 1e4 / x.sum(1, keepdims=True)).astype(np.float32)
    rna.layers["dense"], rna.layers["sparse"] = logs, sp.csr_matrix(logs)
    schemas = (ch.Schema(expression=f"layers/{form}") for form in ("dense", "sparse"))
    one, two = (
        ch.SimCLR(**QUICK).fit(rna, schema, progress=False).embed(rna) for schema in schemas
    )
    np.testing.assert_array_equal(one, two)
    counted = ch.SimCLR(**QUICK).fit(rna, ch.Schema(counts="X"), progress=False).embed(rna)
    np.testing.assert_allclose(counted, one, atol=1e-2)


@LEFT_OUT
@pytest.mark.slow
@pytest.mark.parametrize("fusion", FUSIONS)
def test_a_real_mosaic(real, fusion):
    path = real("midas_pbmc_rna_adt/quickstart_pbmc_mosaic.h5mu")
    schema = SCHEMA.with_(label="obs/celltype")
    fitted = ch.SimCLR(fusion=fusion, **{**QUICK, "max_epochs": 2}).fit(
        path, schema, progress=False
    )
    assert np.isfinite(fitted.embed(path)).all()
    found = fitted.predict(path)
    assert found.n_obs == 1200
    assert np.isfinite(found.X).all()
    assert set(fitted.classify(path)["label"].dropna()) <= {
        *fitted.spec.categories["label"],
        "unseen",
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    joint = Group.join()
    Path(sys.argv[1], f"{joint.rank}.json").write_text(json.dumps(gathered(joint)))
    torch.distributed.destroy_process_group()
