"""What every registered model must do, whatever it is. A new model is tested by being there."""

from __future__ import annotations

import dataclasses
import json
import typing
import warnings

import anndata as ad
import mudata
import numpy as np
import pytest
import scipy.sparse as sp

import chreode as ch
from chreode import models
from chreode.config.options import _hints
from chreode.data.align import MissingFeatures

KEYS = models.keys()
#: Enough for new cells to tell where the flow ends.
LEARNED = {"max_epochs": 40, "lr": 0.02, "kl": 0.1, "flow_epochs": 40, "flow_lr": 0.02}
#: Values that differ from the defaults where no rule can find one, with what makes them visible.
OTHERWISE = {
    "patience": ({"patience": 1}, {"max_epochs": 25, "lr": 0.05, "kl_warmup": 0.0}),
    "keep": ({"keep": "last"}, {"max_epochs": 25, "lr": 0.05, "kl_warmup": 0.0}),
    "tol": ({"tol": 0.5}, {"max_epochs": 50}),
    "max_epochs": ({"max_epochs": 2}, {}),
    "ema": ({"ema": None}, {}),
    "weight_decay": ({"weight_decay": 0.5}, {}),
    "kl_warmup": ({"kl_warmup": 0.0}, {}),
    "dispersion": ({"dispersion": "gene-batch"}, {}),
    "hidden": ({"hidden": (24, 12)}, {}),
    "batch_size": ({"batch_size": 32}, {}),
    "flow_epochs": ({"flow_epochs": 2}, {}),
    "flow_schedule": ({"flow_schedule": "constant"}, LEARNED),
    "tolerance": ({"tolerance": 0.05}, {"solver": "dopri5", **LEARNED}),
    "steps": ({"steps": 1}, LEARNED),
    "solver": ({"solver": "euler"}, {"steps": 2, **LEARNED}),
    "guide": ({"guide": "each"}, LEARNED),
    "match_steps": ({"match_steps": 5}, {}),
    "piece_steps": ({"piece_steps": 5}, {}),
    "path_steps": ({"path_steps": 5}, {}),
    "targets": ({"targets": "smoothed"}, {}),
    "n_times": ({"n_times": 10}, {}),
    "strength": ({"strength": 0.5}, {}),
    "strengths": ({"strengths": (0.5,)}, {}),
    "ratio": ({"ratio": 0.1}, {"strength": 1.0}),
    "projector": ({"projector": (8,)}, {}),
    "augment": ({"augment": ("swap",)}, {}),
    "chance": ({"chance": 0.9}, {"augment": ("swap",)}),
    "mask": ({"mask": 0.5}, {"augment": ("mask",)}),
    ("maskedautoencoder", "mask"): ({"mask": 0.25}, {}),
    "swap": ({"swap": 0.5}, {"augment": ("swap",)}),
    "crossover": ({"crossover": 0.5}, {"augment": ("crossover",)}),
    "noise_scale": ({"noise_scale": 0.1}, {"augment": ("noise",)}),
    "noise_share": ({"noise_share": 0.4}, {"augment": ("noise",)}),
    "queue": ({"queue": 40}, {}),
    "decoder": ({"decoder": (24,)}, {}),
    "thin": ({"thin": 0.5}, {"augment": ("thin",)}),
    "programmes": ({"programmes": 0.5}, {"augment": ("programmes",)}),
    "n_programmes": ({"n_programmes": 5}, {"augment": ("programmes",)}),
    "mix": ({"mix": 0.9}, {"augment": ("bbknn",)}),
    "n_neighbours": ({"n_neighbours": 2}, {"augment": ("bbknn",)}),
    # of one model alone
    ("claire", "mix"): ({"mix": 0.9}, {}),
    ("claire", "n_neighbours"): ({"n_neighbours": 2}, {}),
    ("claire", "refine"): ({"refine": 1.0}, {}),
}
#: Options that these cells cannot show, and the test that does.
ELSEWHERE = {
    **{
        (key, "fusion"): "tests/models/test_modalities.py::test_ways_to_fuse_differ"
        for key in KEYS
        if "fusion" in {f.name for f in dataclasses.fields(models.find(key))}
    },
    ("claire", "schedule"): "tests/models/test_claire.py::test_the_rate_falls_after_the_refinement",
    ("cfgen", "peaks"): "tests/models/test_cfgen.py::test_peaks_may_be_open_or_not",
    **{
        (key, "population_steps"): "tests/models/test_neuralode.py::"
        "test_populations_part_where_their_means_do_not"
        for key in KEYS
        if "population_steps" in {f.name for f in dataclasses.fields(models.find(key))}
    },
}


@pytest.fixture(params=KEYS)
def cls(request):
    return models.find(request.param)


def needed(cls):
    """Return the roles that the model needs besides counts: of time, proteins, batches."""
    roles = {"time": "obs/day", "trajectory": "obs/donor"} if "time" in cls.needs else {}
    if any("protein" in need.split("|") for need in cls.needs):
        roles["protein"] = "obsm/protein"
    return roles | ({"batch": "obs/batch"} if "batch" in cls.needs else {})


@pytest.fixture
def schema(cls, schema):
    return schema.with_(**needed(cls))


@pytest.fixture
def model(cls, quick):
    return quick(cls)


@pytest.fixture
def fitted(cls, schema, fitted_once):
    return fitted_once(cls, schema)


def tensors(fitted):
    return {k: v.numpy() for k, v in fitted.module.state_dict().items()}


def same(a, b):
    return a.keys() == b.keys() and all(np.array_equal(a[k], b[k], equal_nan=True) for k in a)


def test_it_is_described_where_users_look(cls):
    assert cls.__doc__, cls
    assert "References" in cls.__doc__
    assert cls.needs
    for field in dataclasses.fields(cls):
        assert field.metadata["doc"].endswith("."), field.name


def test_fit_leaves_the_data_alone_and_embed_writes_its_slots(fitted, cells):
    before = cells.copy()
    z = fitted.embed(cells)
    key = f"X_{fitted.model.key}"
    assert z.shape == (500, 5)
    assert z.dtype == np.float32
    assert np.isfinite(z).all()
    assert z.std(0).min() > 0
    assert np.array_equal(cells.obsm[key], z)
    told = json.loads(cells.uns["chreode"][key])
    assert told["model"] == fitted.model.key
    assert set(told) == {"model", "version", "config", "spec", "seed"}
    assert (cells.X != before.X).nnz == 0
    assert list(cells.layers) == list(before.layers)
    fitted.embed(cells, key_added="elsewhere")
    assert "elsewhere" in cells.obsm


def test_the_same_seed_gives_the_same_bits(model, cells, schema, fitted):
    again = model.fit(cells, schema, seed=0)
    assert same(tensors(again), tensors(fitted))
    assert again.history.drop(columns="seconds").equals(fitted.history.drop(columns="seconds"))


def test_another_seed_gives_another_fit_if_anything_is_random(model, cells, schema, fitted):
    other = model.fit(cells, schema, seed=1)
    random = any(p.learner.validates for p in model.phases())
    assert same(tensors(other), tensors(fitted)) != random or fitted.model.key == "nmf"


def test_a_saved_model_is_the_same_model(fitted, cells, tmp_path):
    loaded = ch.load(fitted.save(tmp_path / "model"))
    assert same(tensors(loaded), tensors(fitted))
    assert loaded.model == fitted.model
    assert loaded.spec.hash == fitted.spec.hash
    assert loaded.schema == fitted.schema
    assert np.array_equal(loaded.embed(cells), fitted.embed(cells))
    assert {p.name for p in (tmp_path / "model").iterdir()} == {
        "model.json", "weights.safetensors", "history.csv", "card.md",
    }  # fmt: skip


def test_the_order_of_rows_does_not_matter(fitted, cells):
    order = np.random.default_rng(0).permutation(500)
    z, shuffled = fitted.embed(cells), fitted.embed(cells[order].copy())
    np.testing.assert_allclose(shuffled, z[order], atol=1e-4, rtol=1e-3)


def test_dense_and_sparse_are_the_same(model, cells, schema, fitted):
    dense = cells.copy()
    dense.layers["counts"] = dense.layers["counts"].toarray()
    assert same(tensors(model.fit(dense, schema, seed=0)), tensors(fitted))
    csc = cells.copy()
    csc.layers["counts"] = sp.csc_matrix(csc.layers["counts"])
    np.testing.assert_array_equal(fitted.embed(csc), fitted.embed(dense))


def test_files_are_as_good_as_objects(model, cells, schema, fitted, tmp_path):
    cells.write_h5ad(tmp_path / "cells.h5ad")
    from_file = model.fit(tmp_path / "cells.h5ad", schema, seed=0)
    assert same(tensors(from_file), tensors(fitted))
    fitted.embed(cells)
    cells.write_h5ad(tmp_path / "embedded.h5ad")
    back = ad.read_h5ad(tmp_path / "embedded.h5ad")
    key = f"X_{fitted.model.key}"
    np.testing.assert_array_equal(back.obsm[key], cells.obsm[key])
    assert back.uns["chreode"][key] == cells.uns["chreode"][key]


def test_a_query_is_matched_by_gene_name(fitted, cells):
    z = fitted.embed(cells)
    order = np.random.default_rng(0).permutation(300)
    extra = cells[:, :40].copy()
    extra.var_names = [f"unheard{i}" for i in range(40)]
    query = ad.concat([cells[:, order], extra], axis=1)
    query.obs, query.obsm = cells.obs, cells.obsm
    np.testing.assert_allclose(fitted.embed(query), z, atol=1e-4, rtol=1e-3)


def test_missing_genes_are_reported_and_too_many_refused(fitted, cells):
    with pytest.warns(
        MissingFeatures, match=r"10 of 300 trained features.*% of the model's weight"
    ):
        z = fitted.embed(cells[:, 10:].copy())
    correlation = np.corrcoef(z.ravel(), fitted.embed(cells).ravel())[0, 1]
    assert correlation > 0.8
    with pytest.raises(ch.DataError, match="weight must be found"):
        fitted.embed(cells[:, :20].copy())
    cells.var_names = [f"ENSG{i:011d}" for i in range(300)]
    with pytest.raises(ch.DataError, match="No feature is shared"):
        fitted.embed(cells)


def test_one_batch_or_none(cls, model, cells, schema):
    cells = cells[:, :100].copy()
    one = cells[cells.obs["batch"] == cells.obs["batch"].iloc[0]].copy()
    if "batch" in cls.needs:
        with pytest.raises(ch.DataError, match="two batches are needed"):
            model.fit(one, schema)
    else:
        assert np.isfinite(model.fit(one, schema).embed(one)).all()
    bare = ch.Schema(counts="layers/counts", **needed(cls))
    assert np.isfinite(model.fit(cells, bare).embed(cells)).all()


def test_rows_outside_the_fit_leave_no_trace(model, cells, schema):
    rows = np.arange(0, 500, 2)
    cells = cells[:, :100].copy()
    poisoned = cells.copy()
    counts = poisoned.layers["counts"].toarray()
    counts[1::2, 0] = 9_999
    poisoned.layers["counts"] = sp.csr_matrix(counts)
    a, b = model.fit(cells, schema, rows=rows), model.fit(poisoned, schema, rows=rows)
    assert same(tensors(a), tensors(b))
    assert a.spec.n_cells == 250


def _other_value(cls, field):
    hint, value = _hints(cls)[field.name], field.default
    if field.name == "solver" and "time" in cls.needs:
        return {"solver": "tsit5"}, {}
    for name in ((cls.__name__.lower(), field.name), field.name):
        if name in OTHERWISE:
            return OTHERWISE[name]
    if typing.get_origin(hint) is typing.Literal:
        return {field.name: next(v for v in typing.get_args(hint) if v != value)}, {}
    if isinstance(value, bool):
        return {field.name: not value}, {}
    if isinstance(value, int):
        return {field.name: 3 * value // 4 if value > 2 else value + 1}, {}
    return {field.name: value / 2 if value else 0.5}, {}


@pytest.fixture(scope="module")
def unchanged():
    """Fits without a change, by model and options: many options are beside the same one."""
    return {}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("cls", "name"),
    [
        pytest.param(
            models.find(k),
            f.name,
            id=f"{k}-{f.name}",
        )
        for k in KEYS
        for f in dataclasses.fields(models.find(k))
        if (k, f.name) not in ELSEWHERE
    ],
)
def test_every_option_changes_something(cls, name, quick, cells, schema, unchanged):
    field = next(f for f in dataclasses.fields(cls) if f.name == name)
    changed, both = _other_value(cls, field)
    both = {k: v for k, v in both.items() if k in {f.name for f in dataclasses.fields(cls)}}
    few = cells[:200, :100].copy()
    if "expression" in cls.tolerates:  # where nothing is missing, EM may have nothing left to do
        few.layers["holed"] = np.log1p(few.layers["counts"].toarray())
        few.layers["holed"][::3, ::3] = np.nan
        schema = ch.Schema(expression="layers/holed", **needed(cls))
    if (cls, str(both)) not in unchanged:
        unchanged[cls, str(both)] = quick(cls, **both).fit(few, schema)
    a = unchanged[cls, str(both)]
    b = quick(cls, **{**both, **changed}).fit(few, schema)
    shapes_differ = {k: v.shape for k, v in tensors(a).items()} != {
        k: v.shape for k, v in tensors(b).items()
    }
    fits_differ = (
        shapes_differ or not same(tensors(a), tensors(b)) or len(a.history) != len(b.history)
    )
    assert fits_differ or (a.generate(20).X != b.generate(20).X).nnz


@pytest.mark.filterwarnings("ignore:.*are held at its end")  # fits of a few steps wander
@pytest.mark.parametrize(
    "verb", ["reconstruct", "predict", "generate", "posterior", "score", "loadings"]
)
def test_each_verb_answers_or_says_what_the_model_can_do(fitted, cells, verb):
    calls = {
        "reconstruct": lambda: fitted.reconstruct(cells),
        "predict": lambda: fitted.predict(cells, to={}),
        "generate": lambda: fitted.generate(50, seed=1),
        "posterior": lambda: fitted.posterior(cells, n_samples=2),
        "score": lambda: fitted.score(cells),
        "loadings": lambda: fitted.loadings(cells),
    }
    if verb not in fitted.verbs:
        with pytest.raises(ch.CapabilityError, match=f"(cannot|has no) {verb}; it offers .*embed"):
            calls[verb]()
        return
    out = calls[verb]()
    if verb in ("reconstruct", "predict", "generate"):
        filled = verb == "predict" and fitted.module.fills  # another modality than was read
        assert out.var_names.tolist() == (
            list(fitted.spec.features["protein"]) if filled else cells.var_names.tolist()
        )
        assert out.n_obs == (50 if verb == "generate" else 500)
        values = out.X.toarray() if sp.issparse(out.X) else out.X
        assert np.isfinite(values).all()
        told = json.loads(out.uns["chreode"][verb])
        assert filled or told["scale"] == fitted.model.scale
        if verb != "reconstruct" and fitted.model.scale == "counts":
            assert values.dtype.kind == "i"
            assert values.min() >= 0
    elif verb == "posterior":
        assert out.shape == (2, 500, 5)
        assert not np.array_equal(out[0], out[1])
    elif verb == "score":
        assert out.shape == (500,)
        assert out.dtype == np.float64
    else:
        assert out.shape == (300, 5)
        np.testing.assert_allclose(cells.varm[f"{fitted.model.key}_loadings"], out, rtol=1e-6)


def test_draws_follow_the_seed(fitted, cells):
    if "generate" in fitted.verbs:
        a, b, c = (fitted.generate(30, seed=s).X for s in (1, 1, 2))
        a, b, c = (x.toarray() if sp.issparse(x) else x for x in (a, b, c))
        assert np.array_equal(a, b)
        assert not np.array_equal(a, c)


def test_results_stream_to_a_file(fitted, cells, tmp_path):
    if "reconstruct" not in fitted.verbs:
        pytest.skip(f"{fitted.model.key} does not reconstruct")
    path = fitted.reconstruct(cells, into=tmp_path / "out.h5ad")
    np.testing.assert_array_equal(ad.read_h5ad(path).X, fitted.reconstruct(cells).X)
    if "generate" in fitted.verbs:
        path = fitted.generate(70, seed=3, into=tmp_path / "new.h5ad")
        a, b = ad.read_h5ad(path), fitted.generate(70, seed=3)
        assert a.obs.equals(b.obs)
        x, y = (v.toarray() if sp.issparse(v) else v for v in (a.X, b.X))
        assert np.array_equal(x, y)


def test_no_network_of_pickles_is_needed(fitted, tmp_path):
    folder = fitted.save(tmp_path / "m")
    for file in folder.iterdir():
        assert b"\x80\x04\x95" not in file.read_bytes()[:64]


def test_real_cells(cls, quick, real):
    if "time" in cls.needs:
        pytest.skip("these cells have no time: see tests/models/test_neuralode.py")
    path = real("midas_pbmc_rna_adt/quickstart_pbmc_mosaic.h5mu")
    with mudata.set_options(pull_on_update=False), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # mudata warns of its own coming defaults
        data = mudata.read_h5mu(path)
    schema = ch.Schema(counts="rna:X", batch="rna:obs/batch", label="rna:obs/celltype")
    schema = schema.with_(batch="obs/batch", label="obs/celltype")
    lacking = data.obsmap["rna"].ravel() == 0
    assert lacking.sum() == 400
    if "protein" in needed(cls):
        schema = schema.with_(protein="adt:X")
        lacking &= data.obsmap["adt"].ravel() == 0
    fitted = quick(cls).fit(data, schema)
    z = fitted.embed(data)
    assert z.shape == (1600, 5)
    assert np.isnan(z[lacking]).all()
    assert np.isfinite(z[~lacking]).all()
