"""Views of self-supervised models: partners, programmes, and what is refused before compute."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pytest
import torch

import chreode as ch
from chreode.commands.app import main
from chreode.data.align import learn_spec, open_source
from chreode.data.batch import CellBatch
from chreode.data.cells import Cells
from chreode.errors import ConfigError, DataError, SchemaError
from chreode.learn import Rng
from chreode.models.selfsupervised.options import SCSSL, SCSSL_TUNED
from chreode.models.selfsupervised.views import Views, centred_log
from chreode.module import Step
from chreode.nn.augment import Thin
from chreode.schema import Spec

SCHEMA = ch.Schema(counts="layers/counts", batch="obs/batch", label="obs/cell_type")


def source_of(data, schema=SCHEMA, roles=("counts", "batch", "label")):
    cells = Cells.of(data, schema)
    spec = learn_spec(cells, roles, np.arange(len(cells)))
    return open_source(cells, spec, roles, {})


def test_each_view_mixes_with_its_own_partner(cells):
    source = source_of(cells)
    module = ch.SimCLR(augment=("mnn",), chance=1.0, mix=0.3).build(source.spec)
    rows = np.array([[3, 1, 4], [15, 9, 2], [6, 5, 35]])
    (batch,) = source.minibatches([rows.T.ravel()])
    x = source.batch(np.arange(40)).log_expression()
    for number, view in enumerate(module.two_views(batch), 1):
        expected = 0.3 * x[rows[:, 0]] + 0.7 * x[rows[:, number]]
        torch.testing.assert_close(view.values["counts"].dense(), expected)


def test_mixing_acts_on_all_that_both_have(cells):
    cells.obsm["protein"] = np.random.default_rng(0).poisson(20, (cells.n_obs, 6)).astype(float)
    cells.obsm["protein"][4] = np.nan
    schema = SCHEMA.with_(protein="obsm/protein")
    source = source_of(cells, schema, ("counts", "batch", "protein"))
    module = ch.SimCLR(augment=("bbknn",), chance=1.0, mix=0.5).build(source.spec)
    (batch,) = source.minibatches([np.array([0, 1, 2, 3, 5, 6])])
    protein, x = centred_log(batch, "protein"), batch.log_expression()
    one, two = module.two_views(batch)
    for view, partners in ((one, slice(2, 4)), (two, slice(4, 6))):
        expected = (protein[:2] + protein[partners]) / 2
        torch.testing.assert_close(view.values["protein"].dense(), expected)
        torch.testing.assert_close(view.values["counts"].dense(), (x[:2] + x[partners]) / 2)


@pytest.mark.parametrize("name", ["mnn", "bbknn"])
def test_a_fit_mixes_batches_and_the_same_seed_gives_the_same_bits(cells, quick, name):
    model = quick(ch.SimCLR, augment=("mask", name), n_neighbours=3)
    one, two = (model.fit(cells[:250], SCHEMA, seed=1, progress=False) for _ in range(2))
    for a, b in zip(
        one.module.state_dict().values(), two.module.state_dict().values(), strict=True
    ):
        assert torch.equal(a, b)
    without = quick(ch.SimCLR, augment=("mask",)).fit(cells[:250], SCHEMA, seed=1, progress=False)
    assert not torch.equal(*(next(f.module.parameters()) for f in (one, without)))


@pytest.mark.parametrize("cls", [ch.SimCLR, ch.MoCo, ch.VICReg])
def test_added_and_averaged_modalities_have_the_same_angles(cells, cls):
    """Of all cells, those without protein too; VICReg, which sees lengths, is the control."""
    cells.obsm["protein"] = np.random.default_rng(0).poisson(20, (cells.n_obs, 6)).astype(float)
    source = source_of(cells, SCHEMA.with_(protein="obsm/protein"), ("counts", "batch", "protein"))
    found = {}
    for fusion in ("add", "mean"):
        torch.manual_seed(0)
        module = cls(augment=(), fusion=fusion).build(source.spec)
        (batch,) = source.minibatches([np.arange(64)])
        batch.present["protein"] = torch.arange(64) % 3 > 0
        loss = module.loss(batch, Step(Rng(0), 0, 0.0)).objectives["model"]
        module.eval()
        found[fusion] = loss, module.embed(batch)
    same = torch.isclose(*(loss for loss, _ in found.values()), rtol=1e-5)
    assert bool(same) == (cls is not ch.VICReg)
    lengths = found["add"][1].norm(dim=1) / found["mean"][1].norm(dim=1)
    torch.testing.assert_close(lengths, 1.0 + (torch.arange(64) % 3 > 0))


# gene programmes


def blocks(n_cells=400, n_genes=60, n=4, seed=0):
    """Return counts in which genes of a programme rise and fall together, and programmes by themselves."""
    rng = np.random.default_rng(seed)
    of = rng.permutation(np.arange(n_genes) % n)
    rate = np.exp(2.5 + rng.normal(0, 0.3, n_genes) + rng.normal(0, 0.8, (n_cells, n))[:, of])
    return ad.AnnData(rng.poisson(rate).astype(np.float32)), of


def test_programmes_are_the_genes_that_vary_together(quick):
    data, of = blocks()
    schema = ch.Schema(counts="X")
    model = quick(ch.SimCLR, augment=("programmes",), n_programmes=4)
    fitted = model.fit(data, schema, progress=False)
    found = fitted.module.views.programmes.numpy()
    table = np.zeros((4, 4))
    np.add.at(table, (of, found), 1)
    assert ((table > 0).sum(0) == 1).all()
    assert ((table > 0).sum(1) == 1).all()


def test_a_fit_that_goes_on_keeps_its_programmes(quick):
    schema, model = ch.Schema(counts="X"), quick(ch.SimCLR, augment=("programmes",), n_programmes=4)
    first = model.fit(blocks()[0], schema, progress=False)
    other = blocks(seed=5)[0]
    on = model.fit(other, schema, from_=first, progress=False)
    alone = model.fit(other, schema, progress=False)
    assert torch.equal(on.module.views.programmes, first.module.views.programmes)
    assert not torch.equal(alone.module.views.programmes, first.module.views.programmes)


def test_genes_that_vary_little_are_no_programme_of_their_own():
    rng = np.random.default_rng(0)
    way = rng.standard_normal((3, 10))
    loadings = way[np.arange(90) % 3] * 10.0 ** rng.uniform(-3, 0, (90, 1))
    views = Views(ch.SimCLR(augment=("programmes",), n_programmes=3), "counts", 90)
    assert views.lacks_programmes
    views.learn_programmes(loadings, 0)
    assert not views.lacks_programmes
    assert [len(set(views.programmes[i::3].tolist())) for i in range(3)] == [1, 1, 1]


def test_programmes_do_not_see_cells_that_are_held_out(cells, quick):
    source = source_of(cells)
    module = quick(ch.SimCLR, augment=("programmes",)).build(source.spec)
    seen = []
    batches = source.batches
    object.__setattr__(source, "batches", lambda rows: seen.append(rows) or batches(rows))
    module.prepare(source, np.arange(100), Rng(0))
    assert {tuple(rows) for rows in seen} == {tuple(range(100))}


# what is refused


def refused(error, match, data, schema, **options):
    with pytest.raises(error, match=match):
        ch.SimCLR(max_epochs=1, **options).fit(data, schema, progress=False)


@pytest.mark.parametrize("name", ["mnn", "bbknn"])
def test_batches_are_needed_where_they_are_mixed(cells, name, monkeypatch):
    monkeypatch.setattr(ch.models.simclr.SimCLRModule, "loss", None)  # nothing is computed
    both = f"Cells of two batches are (needed|mixed) (for|by) {name}|cells of two batches are mixed by {name}"
    refused(SchemaError, both, cells, SCHEMA.with_(batch=None), augment=(name,))
    cells.obs["one"] = "a"
    refused(DataError, both, cells, SCHEMA.with_(batch="obs/one"), augment=(name,))
    held_out = np.flatnonzero(cells.obs.batch == cells.obs.batch.iloc[0])[:30]
    with pytest.raises(DataError, match=both):
        ch.SimCLR(augment=(name,)).fit(cells, SCHEMA, validation=held_out)


#: A batch for each label, the same by other names, several for each, labels of some cells, a few misplaced.
LEAKS = {
    "same": ("cell_type", "cell_type"),
    "renamed": ("plate", "cell_type"),
    "several": ("sorted", "cell_type"),
    "several, some labels": ("sorted", "part"),
    "some cells moved": ("impure", "cell_type"),
}
#: Several labels in each batch, one batch of several, and labels that one batch alone has.
DESIGNS = {
    "crossed": "cell_type",
    "a batch of two": "paired",
    "nested": "own",
    "many small": "fine",
}


@pytest.fixture
def designs(cells):
    kind, i = cells.obs.cell_type.astype(str), np.arange(cells.n_obs)
    cells.obs["plate"] = [f"plate of {k}" for k in kind]
    cells.obs["sorted"] = [f"{k}, day {n % 2}" for k, n in zip(kind, i, strict=True)]
    kinds = np.unique(kind)
    cells.obs["impure"] = [k if n % 40 else kinds[n % 3] for k, n in zip(kind, i, strict=True)]
    cells.obs["fine"] = [
        f"{b} {n % 40 if n % 3 else 0}" for b, n in zip(cells.obs.batch, i, strict=True)
    ]
    cells.obs["part"] = [k if n % 3 else None for k, n in zip(kind, i, strict=True)]
    cells.obs["paired"] = [b if n % 5 else "other" for b, n in zip(cells.obs.batch, i, strict=True)]
    cells.obs["own"] = [f"{b}, {k}" for b, k in zip(cells.obs.batch, kind, strict=True)]
    return cells


@pytest.mark.parametrize("mixed_by", ["mnn", "bbknn", "CLAIRE"])
@pytest.mark.parametrize("leak", LEAKS)
def test_labels_are_no_batches(designs, leak, mixed_by, monkeypatch):
    monkeypatch.setattr("chreode.model.run_phases", lambda *_: pytest.fail("compute began"))
    batch, label = LEAKS[leak]
    schema = SCHEMA.with_(batch=f"obs/{batch}", label=f"obs/{label}")
    model = ch.CLAIRE() if mixed_by == "CLAIRE" else ch.SimCLR(augment=(mixed_by,))
    said = (
        f"mixed by {mixed_by}, and here every batch holds one label, alone.*do without {mixed_by}"
    )
    with pytest.raises(ConfigError, match=said):
        model.fit(designs, schema, progress=False)


@pytest.mark.filterwarnings("ignore:.*all cells are held out")
@pytest.mark.parametrize("label", DESIGNS.values(), ids=DESIGNS)
@pytest.mark.parametrize("mixed_by", ["mnn", "bbknn", "CLAIRE"])
def test_labels_that_share_a_batch_may_be_in_one_batch_alone(designs, label, mixed_by, quick):
    options = {} if mixed_by == "CLAIRE" else {"augment": (mixed_by,)}
    model = quick(ch.CLAIRE if mixed_by == "CLAIRE" else ch.SimCLR, **options, max_epochs=1)
    model.fit(designs, SCHEMA.with_(label=f"obs/{label}"), progress=False)


def test_labels_may_be_batches_where_nothing_is_mixed(designs, quick):
    same = SCHEMA.with_(batch="obs/cell_type")
    quick(ch.SimCLR, max_epochs=1).fit(designs, same, progress=False)
    alone = SCHEMA.with_(batch="obs/plate", label=None)  # nobody knows what these are
    quick(ch.SimCLR, augment=("mnn",), max_epochs=1).fit(designs, alone, progress=False)


def test_expression_cannot_be_thinned(cells):
    cells.layers["log"] = np.log1p(cells.layers["counts"].toarray())
    schema = ch.Schema(expression="layers/log")
    refused(ConfigError, "thin draws from counts", cells, schema, augment=("thin",))


@pytest.mark.parametrize(
    ("augment", "match"),
    [
        ("mask", r"expected a tuple of text, got text. Write \('mask',\)"),
        (("maks",), "no augmentation 'maks'.*mask"),
        (("mask", "mask"), "named twice"),
        (("mnn", "bbknn"), "Name one"),
        (("label",), "would show the answer"),
        (5, "expected"),
        ((5,), "expected a tuple of text"),
    ],
)
def test_what_augment_may_be(augment, match):
    with pytest.raises(ConfigError, match=match):
        ch.SimCLR(augment=augment)


@pytest.mark.parametrize("file", [False, True])
def test_unknown_names_are_refused_from_files_and_the_terminal(cells, tmp_path, capsys, file):
    cells.write_h5ad(tmp_path / "cells.h5ad")
    (tmp_path / "fit.toml").write_text('[model]\naugment = ["maks"]\n')
    given = ["fit", "simclr", str(tmp_path / "cells.h5ad"), "--counts", "layers/counts"]
    given += ["--config", str(tmp_path / "fit.toml")] if file else ["--augment", "maks"]
    assert main([*given, "--output", str(tmp_path / "fit")]) != 0
    assert "no augmentation 'maks'" in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "fit").exists()


# what each view is made of


def test_a_thinned_view_is_the_log_expression_of_thinned_counts(cells):
    batch = source_of(cells).batch(np.arange(40))
    views = Views(ch.SimCLR(augment=("thin",), thin=0.02, chance=0.5), "counts", cells.n_vars)
    torch.manual_seed(3)
    found = views.draw(batch).values["counts"].dense()
    torch.manual_seed(3)
    chosen = torch.rand(40) < 0.5
    fewer = Thin(0.02)(batch.sparse("counts"), chosen).dense()
    expected = torch.log1p(1e4 * fewer / fewer.sum(1, keepdim=True))
    torch.testing.assert_close(found, expected)
    depth, kept = batch["counts"].sum(1), fewer.sum(1)
    assert (kept[~chosen] == depth[~chosen]).all()
    assert (kept[chosen] < depth[chosen]).all()
    assert (kept / depth).min() < 0.1  # below which the default never goes


@pytest.mark.parametrize("model", [ch.SimCLR(augment=("bbknn",), chance=1.0, mix=0.5), ch.CLAIRE()])
def test_a_partner_without_a_modality_gives_nothing_of_it(model):
    """What it lacks stands as 0 in its batch, which is no value to move towards."""
    spec = Spec(("counts", "protein"), {"counts": tuple("abcd"), "protein": tuple("pqr")},
        {"batch": ("one", "two")}, n_cells=12)  # fmt: skip
    views = model.build(spec).views
    torch.manual_seed(0)
    there = torch.tensor([True, True, True, False, True, False])
    both = CellBatch(
        torch.arange(12),
        {"counts": torch.rand(12, 4) + 1, "protein": 5 + 9 * torch.rand(12, 3)},
        {"protein": torch.cat([torch.ones(6, dtype=torch.bool), there])},
    )
    both["protein"][6:][~there] = 0
    own, partner = both.aligned(2)
    found, plain = views.draw(own, partner), views.plain(own)
    moved = (found.values["protein"].dense() - plain.values["protein"]).abs().max(1).values > 1e-3
    assert moved.tolist() == there.tolist()
    changed = found.values["counts"].dense() - plain.values["counts"].dense()
    assert (changed.abs().max(1).values > 1e-3).all()


# presets, as the facts on scSSL-Bench have them


def test_presets_are_those_of_the_benchmark():
    first = {
        "augment": ("mask", "noise", "swap", "crossover"), "chance": 0.5, "mask": 0.2,
        "noise_share": 0.8, "noise_scale": 0.2, "swap": 0.1, "crossover": 0.25, "lr": 1e-4,
        "weight_decay": 1e-6, "schedule": "step", "batch_size": 256, "max_epochs": 100, "n_hidden": 128,
        "n_latent": 64, "n_layers": 1,
    }  # fmt: skip
    tuned = {
        **first, "augment": ("mask", "noise", "swap", "mnn"), "mask": 0.5, "noise_share": 0.3, "swap": 0.3,
        "mix": 0.5, "n_neighbours": 3,
    }  # fmt: skip
    assert first == SCSSL
    assert tuned == SCSSL_TUNED
    model = ch.SimCLR(preset="scssl-tuned", mask=0.7)
    assert (model.mask, model.swap, model.temperature, model.projector) == (0.7, 0.3, 0.5, (64, 64))
