"""What all verbs promise, whichever model is asked."""

from __future__ import annotations

import inspect
import json
import re
from contextlib import nullcontext
from dataclasses import replace
from decimal import Decimal
from fractions import Fraction

import anndata as ad
import mudata
import numpy as np
import pytest
import torch

import chreode as ch
from chreode.data.align import MissingFeatures
from chreode.data.simulate import simulate_multiome
from chreode.verbs import cells as verbs_of_cells


@pytest.fixture(scope="module")
def fitted(_simulated, quick):
    schema = ch.Schema(counts="layers/counts", batch="obs/batch")
    return quick(ch.SCVI).fit(_simulated.copy(), schema, progress=False)


@pytest.mark.parametrize("verb", ["generate", "predict", "reconstruct"])
def test_a_result_that_cannot_be_kept_leaves_torch_as_it_was(fitted, cells, monkeypatch, verb):
    """Notebooks hold on to the last traceback, and with it to whatever was left in the middle."""

    def full(chunks, *_, **__):
        next(iter(chunks))
        raise OSError("no space left on device")

    monkeypatch.setattr(verbs_of_cells, "collect_cells", full)
    ask = {
        "generate": lambda: fitted.generate(20, progress=False),
        "predict": lambda: fitted.predict(cells, to={}, progress=False),
        "reconstruct": lambda: fitted.reconstruct(cells, progress=False),
    }[verb]
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002 (the global one is meant)
    with pytest.raises(OSError, match="no space") as held:
        ask()
    assert held.tb is not None
    assert not torch.is_inference_mode_enabled()
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])  # noqa: NPY002
    fitted.model.fit(cells, fitted.schema, progress=False)  # which an inference mode would refuse


@pytest.mark.parametrize("number", [np.int64(3), np.float32(3), np.array(3), 3])
def test_numbers_of_numpy_are_conditions_as_those_of_python_are(fitted, cells, quick, number):
    """As the largest value of a column is one."""
    cells.obs["rank"] = np.arange(cells.n_obs) % 4
    schema = fitted.schema.with_(continuous=("obs/rank",))
    of_ranks = quick(ch.SCVI).fit(cells, schema, progress=False)
    to, plain = {"rank": number}, {"rank": 3}
    for verb, asked, expected in (
        ("generate", (5,), {"given": plain}),
        ("predict", (cells,), {"to": plain}),
        ("reconstruct", (cells,), {"to": plain}),
    ):
        ask = getattr(of_ranks, verb)
        found = ask(*asked, **dict.fromkeys(expected, to), progress=False)
        same = ask(*asked, **expected, progress=False)
        assert (found.X != same.X).sum() == 0
        assert found.uns["chreode"][verb].replace("3.0", "3") == same.uns["chreode"][verb]


@pytest.fixture(scope="module")
def of_all(_simulated, quick):
    """Return quick fits by key, of cells with covariates, and the schema of each."""
    cells = _simulated[:200, :60].copy()
    cells.obs["size"] = 1.0
    schema = ch.Schema(
        counts="layers/counts", batch="obs/batch", label="obs/cell_type", size_factor="obs/size",
        categorical=("obs/plate",), continuous=("obs/age",),
    )  # fmt: skip
    of_time = ch.Schema(counts="layers/counts", time="obs/day", trajectory="obs/donor")
    models = (
        (quick(ch.SCVI, max_epochs=1), schema),
        (quick(ch.CFGen, max_epochs=1, flow_epochs=1), schema),
        (quick(ch.PCA), schema),
        (quick(ch.NeuralODE), of_time),
    )
    return cells, {m.key: m.fit(cells.copy(), s, progress=False) for m, s in models}


@pytest.mark.filterwarnings("ignore:.*are held at its end")  # fits of a few steps wander
@pytest.mark.parametrize(
    "key", ["scvi", pytest.param("cfgen", marks=pytest.mark.slow), "pca", "neuralode"]
)
def test_a_schema_that_lacks_what_the_model_reads_is_refused_by_every_verb(of_all, key):
    cells, fits = of_all
    fitted = fits[key]
    for role in fitted.schema.as_dict():
        lacking = fitted.schema.with_(**{role: getattr(ch.Schema(), role)})
        for verb in set(fitted.verbs) - {"generate", "loadings", "rank"}:
            more = {"predict": {"to": {}}, "trajectory": {"times": [1.0]}}.get(verb, {})
            reads = role in fitted.model.reads(verb) and role in fitted.spec.roles
            # attributes may be unknown to a model that takes cells without a modality
            refused = reads and (role == "counts" or not fitted.model.partial)
            said = re.escape(f"In the fit it was Schema({role}=")
            with pytest.raises(ch.SchemaError, match=said) if refused else nullcontext():
                getattr(fitted, verb)(cells[:20].copy(), schema=lacking, progress=False, **more)


def test_a_modality_that_is_not_there_cannot_be_filled_in(quick):
    cells = simulate_multiome(60, 30, 40, seed=0)
    roles = ch.Schema(counts="rna:X", accessibility="atac:X", label="obs/cell_type")
    fitted = quick(ch.CFGen, max_epochs=1, flow_epochs=1).fit(cells, roles, progress=False)
    rna = cells["rna"].copy()
    rna.obs["cell_type"] = cells.obs["cell_type"].to_numpy()
    alone = ch.Schema(counts="X", label="obs/cell_type")
    for ask in (
        lambda: fitted.embed(rna, schema=alone),
        lambda: fitted.reconstruct(rna, role="accessibility", schema=alone),
        lambda: fitted.reconstruct(rna, schema=alone),
        lambda: fitted.predict(rna, to={}, schema=alone),
        lambda: fitted.score(rna, schema=alone),
    ):
        with pytest.raises(ch.SchemaError, match="cannot be filled in.*fit a model on that kind"):
            ask()
    with pytest.raises(ch.StoreError, match=r"'x\.h5ad'.* \.h5mu for cells of several modalities"):
        fitted.generate(3, into="x.h5ad")


def test_conditions_are_named_by_role_or_by_column(of_all):
    cells, fits = of_all
    fitted = fits["cfgen"]
    kind = fitted.spec.categories["label"][0]
    a, b = (
        fitted.generate(9, given={name: kind}, guidance={name: 2.0}, seed=1, progress=False)
        for name in ("label", "cell_type")
    )
    assert (a.X != b.X).nnz == 0
    assert set(b.obs["cell_type"]) == {kind}
    a, b = (fitted.embed(cells, to={n: kind}, progress=False) for n in ("label", "cell_type"))
    np.testing.assert_array_equal(a, b)
    told = fitted.predict(cells, to={"cell_type": kind}, progress=False)
    assert set(told.obs["cell_type"]) == {kind}
    assert "label" not in told.obs
    with pytest.raises(ch.SchemaError, match=r"'donor'. Available: .*label \(cell_type\)"):
        fitted.generate(3, given={"donor": kind})
    with pytest.raises(ch.ConfigError, match="two name the same condition"):
        fitted.generate(3, given={"label": kind, "cell_type": kind})


@pytest.mark.filterwarnings("ignore:.*are held at its end")
def test_a_trajectory_says_when_it_started(of_all):
    cells, fits = of_all
    found = fits["neuralode"].trajectory(cells[:3].copy(), [1.0, 2.0], progress=False)
    np.testing.assert_array_equal(found.obs["start_time"], np.repeat(cells.obs["day"][:3], 2))
    start = fits["neuralode"].spec.categories["trajectory"][0]
    found = fits["neuralode"].trajectory(start=start, times=[1.0, 2.0], progress=False)
    first = cells.obs.loc[cells.obs["donor"] == start, "day"].min()
    np.testing.assert_allclose(found.obs["start_time"], first)


@pytest.mark.filterwarnings("ignore:.*are held at its end")
@pytest.mark.parametrize("of_time", ["day", "start", "start_time"])
def test_no_column_of_the_start_is_lost(of_all, of_time):
    """All but time and trajectory are true of the start alone, and their names say so."""
    cells, fits = of_all
    some = cells[:3].copy()
    some.obs = some.obs[["cell_type", "day", "donor"]].rename(columns={"day": of_time})
    for name in {"time", "start", "start_time", "start_x", "x"} - {of_time}:
        some.obs[name] = [f"{name} {i}" for i in range(3)]
    schema, days = (
        fits["neuralode"].schema.with_(time=f"obs/{of_time}"),
        cells.obs["day"][:3].tolist(),
    )
    went = fits["neuralode"].trajectory(some, [2.0], schema=schema, progress=False).obs
    later = fits["neuralode"].predict(some, to={"time": 2.0}, schema=schema, progress=False).obs
    for made in (went, later):
        assert made.columns.is_unique
        assert made[of_time].tolist() == [2.0] * 3
        assert made["donor"].tolist() == some.obs["donor"].tolist()
        assert made["start_cell_type"].tolist() == some.obs["cell_type"].tolist()
        assert "cell_type" not in made
        assert made["start_time_" if of_time == "start_time" else "start_time"].tolist() == days
        columns = [made[name].tolist() for name in made]
        assert all(
            values.tolist() in columns for name, values in some.obs.items() if name != of_time
        )
    assert went["start_" if of_time == "start" else "start"].tolist() == some.obs_names.tolist()


def test_columns_of_a_modality_come_with_its_results(quick):
    """Named as there, unless the whole or another modality has the name for other values."""
    cells = simulate_multiome(60, 20, 30, seed=0)
    rna, atac = cells["rna"].copy(), cells["atac"][:50].copy()
    rna.obs["lane"], atac.obs["peaks"] = ["a", "b"] * 30, np.arange(50)
    for part in (rna, atac):
        part.obs["depth"] = np.arange(part.n_obs) / 2
    with mudata.set_options(pull_on_update=False):
        cells = mudata.MuData({"rna": rna, "atac": atac})
    cells.obs["cell_type"], cells.obs["kept"] = rna.obs["cell_type"], True
    schema = ch.Schema(counts="rna:X", batch="rna:obs/lane", accessibility="atac:X")
    cells.obs["rna:lane"] = rna.obs["lane"]  # as MuData pulls them
    fitted = quick(ch.SCVI).fit(cells, schema, progress=False)
    told = fitted.predict(cells, to={"batch": "a"}, progress=False).obs
    seen = fitted.reconstruct(cells, progress=False).obs
    more = ch.augment(cells, fitted, by="batch", floor=40, progress=False).obs
    for made in (told, seen, more[:60]):
        known = {"cell_type", "kept", "lane", "peaks", "rna:depth", "atac:depth"}
        assert known <= {*made}
        assert "rna:lane" not in made
        assert made["peaks"].dropna().tolist() == atac.obs["peaks"].tolist()
        assert made["peaks"].dtype == "Int64"
        assert made["rna:depth"].tolist() == rna.obs["depth"].tolist()
    assert set(told["lane"]) == {"a"}
    assert seen["lane"].tolist() == rna.obs["lane"].tolist()
    assert more["lane"].value_counts().to_dict() == {"a": 40, "b": 40}


@pytest.mark.parametrize("verb", ["posterior", "trajectory", "loadings", "generate"])
def test_what_a_model_cannot_answer_is_told_in_words(of_all, verb):
    asked = {"generate": (5,), "loadings": ()}.get(verb, (of_all[0],))
    lacks = "cannot generate" if verb == "generate" else f"has no {verb}"
    fitted = of_all[1]["cfgen" if verb in ("trajectory", "posterior", "loadings") else "pca"]
    with pytest.raises(ch.CapabilityError, match=f"{lacks}; it offers embed"):
        getattr(fitted, verb)(*asked)


@pytest.mark.parametrize("cls", [ch.PCA, ch.PPCA, ch.NMF])
def test_what_was_expression_is_not_said_to_be_log_counts(cells, quick, cls):
    """Whatever was named, log10 or z-scores, is what comes back."""
    few = cells[:60, :30].copy()
    few.layers["log10"] = np.log10(1 + few.layers["counts"].toarray())
    fitted = quick(cls).fit(few, ch.Schema(expression="layers/log10"), progress=False)
    of_counts = quick(cls).fit(few, ch.Schema(counts="layers/counts"), progress=False)
    for model, scale in ((fitted, "expression as in layers/log10"), (of_counts, "log1p CP10k")):
        made = model.reconstruct(few, progress=False)
        assert json.loads(made.uns["chreode"]["reconstruct"])["scale"] == scale
        with pytest.raises(ch.ConfigError, match=f"decodes {scale}; it has no library"):
            model.reconstruct(few, library=100.0)


def test_arguments_that_lack_or_are_not_known_are_told_with_a_hint(cells):
    with pytest.raises(
        ch.ArgumentError, match=r"fit needs schema: expected a schema, as ch\.Schema"
    ):
        ch.PCA().fit(cells)
    with pytest.raises(ch.ArgumentError, match="no argument 'sed'. Did you mean 'seed'"):
        ch.PCA().fit(cells, ch.Schema(counts="X"), sed=3)
    with pytest.raises(
        ch.ArgumentError, match=r"fit: too many positional arguments\. .* names: seed=…"
    ):
        ch.PCA().fit(cells, ch.Schema(counts="X"), 3, 4)
    with pytest.raises(ch.ArgumentError, match=r"expected a whole number from 0 to 4294967295\.$"):
        ch.PCA().fit(cells, ch.Schema(counts="X"), seed=-1)
    with pytest.raises(ch.SchemaError, match="no role 'count'. Did you mean 'counts'"):
        ch.Schema(count="X")
    with pytest.raises(ch.SchemaError, match="no role 'mising'. Did you mean 'missing'"):
        ch.Schema(mising=("nan",))
    with pytest.raises(ch.SchemaError, match="counts='layers/NAME'"):
        ch.Schema(counts=3)
    for ask in (ch.PCA.fit, lambda: ch.PCA.fit(cells, ch.Schema(counts="X"))):
        with pytest.raises(ch.ArgumentError, match="fit was called on a class, as PCA.fit"):
            ask()
    with pytest.raises(ch.SchemaError, match="Name the role of every place"):
        ch.Schema("X")
    assert "counts" in inspect.signature(ch.Schema).parameters


@pytest.mark.filterwarnings("ignore:.*are held at its end")
def test_genes_are_knocked_out_and_series_told_where_that_means_something(of_all):
    """Elsewhere cells came back as they were, under a column that said otherwise."""
    cells, fits = of_all
    gene, some = cells.var_names[0], cells[:5].copy()
    for key in ("scvi", "cfgen"):
        for ask in (
            lambda fitted, to: fitted.predict(some, to=to, progress=False),
            lambda fitted, to: fitted.reconstruct(some, to=to, progress=False),
            lambda fitted, to: fitted.generate(3, given=to, progress=False),
        ):
            with pytest.raises(ch.SchemaError, match="condition 'knockout'. Available: batch"):
                ask(fits[key], {"knockout": gene})
    fitted = fits["neuralode"]
    told = fitted.predict(some, to={"knockout": gene}, progress=False)
    assert (told.X[:, 0] == 0).all()
    assert set(told.obs["day"]) == {cells.obs["day"].max()}
    np.testing.assert_array_equal(
        fitted.predict(some, to={}, progress=False).X,
        fitted.trajectory(some, [cells.obs["day"].max()], progress=False).X,
    )
    for ask in (
        lambda: fitted.predict(some, to={"trajectory": "a"}, progress=False),
        lambda: fitted.trajectory(some, [1.0], to={"trajectory": "a"}, progress=False),
    ):
        with pytest.raises(ch.SchemaError, match="condition 'trajectory'"):
            ask()
    with pytest.raises(ch.ConfigError, match="leave time out of to"):
        fitted.trajectory(some, [1.0], to={"time": 2.0}, progress=False)


def test_a_misspelt_condition_has_a_hint(of_all):
    with pytest.raises(ch.SchemaError, match="Did you mean 'label'"):
        of_all[1]["cfgen"].generate(3, given={"labl": "NK"})


@pytest.mark.filterwarnings("ignore:.*are held at its end")
def test_conditions_are_told_in_the_columns_of_the_query(of_all):
    cells, fits = of_all
    other = cells[:9].copy()
    other.obs = other.obs.rename(columns={"batch": "lane", "day": "hour"})
    batch = fits["cfgen"].spec.categories["batch"][1]
    schema = fits["cfgen"].schema.with_(batch="obs/lane")
    to = {"batch": batch, "age": "30"}  # a number, as the command line gives it
    told = fits["cfgen"].predict(other, to=to, schema=schema, progress=False).obs
    assert set(told["lane"]) == {batch}
    assert set(told["age"]) == {30.0}
    assert "batch" not in told
    schema = fits["neuralode"].schema.with_(time="obs/hour")
    told = fits["neuralode"].trajectory(other, [1.0], schema=schema, progress=False).obs
    assert set(told["hour"]) == {1.0}
    assert "day" not in told


def test_augmentation_keeps_numbers_and_what_was_generated_before(cells, quick):
    cells = cells[:120, :40].copy()
    cells.obs["dose"], cells.obs["id"] = 1.0 * (np.arange(120) % 3), 2**60 + 3 * np.arange(120)
    cells.obs["well"] = np.arange(120, dtype=np.uint8)
    schema = ch.Schema(counts="layers/counts", label="obs/cell_type", dose="obs/dose")
    fitted = quick(ch.CFGen, max_epochs=1, flow_epochs=1).fit(cells, schema, progress=False)
    cells.obs = cells.obs.rename(columns={"dose": "conc"})
    schema = schema.with_(dose="obs/conc")
    most = int(cells.obs["cell_type"].value_counts().max())
    once = ch.augment(cells, fitted, schema=schema, progress=False)
    assert once.obs["conc"].notna().all()
    assert set(once.obs["conc"]) <= {0.0, 1.0, 2.0}
    assert once.obs["id"][:120].tolist() == cells.obs["id"].tolist()
    assert once.obs["well"].dtype == "UInt8"
    once.obs["generated"] = once.obs["generated"].where(once.obs["generated"]).astype("boolean")
    twice = ch.augment(
        once, fitted, floor=most + 1, schema=schema.with_(counts="X"), progress=False
    ).obs["generated"]
    assert twice[: once.n_obs].sum() == once.n_obs - 120
    assert twice[once.n_obs :].all()


def test_augmentation_says_which_classes_it_cannot_fill_up(fitted, cells):
    cells.obs["batch"] = np.where(np.arange(cells.n_obs) < 5, "new", cells.obs["batch"])
    floor = int(cells.obs["batch"].value_counts().max()) + 5
    with pytest.warns(UserWarning, match="does not know 'new' and adds no cells there. Fit it on"):
        made = ch.augment(cells, fitted, by="batch", floor=floor, progress=False)
    assert made.obs["batch"].value_counts()[["batch_0", "new"]].tolist() == [floor, 5]
    cells.obs["batch"] = np.where(np.arange(cells.n_obs) < 250, "new", cells.obs["batch"])
    made = ch.augment(cells, fitted, by="batch", progress=False)  # that class is the largest
    assert set(made.obs["batch"].value_counts()) == {250}


def test_cells_of_several_augmentations_have_names_of_their_own(fitted, cells):
    more = cells
    for _ in range(4):
        floor = 5 + int(more.obs["batch"].value_counts().max())
        schema = fitted.schema.with_(counts="layers/counts" if more is cells else "X")
        more = ch.augment(more, fitted, by="batch", floor=floor, schema=schema, progress=False)
        assert more.obs_names.is_unique
        new = more.obs_names[more.obs["generated"]]
        more = more[more.obs_names != new[0]].copy()


def test_columns_need_no_text_for_their_names(fitted, cells):
    cells.obs[7], cells.var[0] = np.arange(cells.n_obs), np.arange(cells.n_vars)
    more = ch.augment(cells, fitted, by="batch", floor=200, progress=False)
    assert more.obs[7][: cells.n_obs].tolist() == cells.obs[7].tolist()
    with pytest.warns(MissingFeatures):
        made = fitted.reconstruct(cells[:, 5:].copy(), progress=False)
    assert made.var[0].dropna().tolist() == cells.var[0][5:].tolist()


@pytest.mark.parametrize("number", [Decimal("30"), Fraction(61, 2)])
def test_numbers_of_any_kind_are_conditions(of_all, number):
    cells, fits = of_all
    found = fits["cfgen"].predict(cells[:5].copy(), to={"age": number}, progress=False)
    assert set(found.obs["age"]) == {float(number)}
    assert (
        fits["cfgen"].generate(3, given={"age": number}).obs["age"].tolist() == [float(number)] * 3
    )


@pytest.mark.parametrize("knockout", [3, None, ["gene_0"], b"gene_0", {"gene_0": 1}])
def test_a_knockout_is_text(of_all, knockout):
    cells, fits = of_all
    for ask in (fits["neuralode"].predict, fits["neuralode"].trajectory):
        with pytest.raises(ch.SchemaError, match="expected a gene, or several as text: 'A\\+B'"):
            ask(cells[:3].copy(), to={"knockout": knockout})


@pytest.mark.parametrize("library", [-5.0, 0, np.nan, np.inf])
def test_a_depth_is_a_finite_number_above_0(fitted, cells, library):
    with pytest.raises(ch.ConfigError, match="library=.*: expected a finite number above 0"):
        fitted.reconstruct(cells, library=library)


@pytest.mark.parametrize(
    ("state", "said"),
    [
        ("rested", "had stopped improving"),
        ("overfitted", "had been better on the validation cells"),
        ("still improving", "longer"),
    ],
)
def test_a_notebook_shows_a_fit_in_words_and_as_text(fitted, state, said):
    notes = ["<script>alert(1)</script>"]
    spec = replace(fitted.spec, categories={**fitted.spec.categories, "<b>dose": ("a",)})
    record = {**fitted.provenance, "state": state, "notes": notes}
    shown = replace(fitted, provenance=record, spec=spec)._repr_html_()
    assert said in shown
    assert "rested" not in shown
    assert "&lt;script&gt;alert(1)" in shown
    assert "&lt;b&gt;dose" in shown
    assert not {*re.findall("<(/?[^ >]+)", shown)} - {
        f"{end}{tag}" for tag in ("table", "thead", "tr", "th", "td") for end in ("", "/")
    }


def test_results_keep_what_the_data_say_of_features_and_cells(fitted, cells, tmp_path):
    cells.var["symbol"] = [f"symbol {i}" for i in range(cells.n_vars)]
    cells.var["variable"] = np.arange(cells.n_vars) % 2 == 0
    shuffled = cells[:, ::-1].copy()
    for into in (None, tmp_path / "out.h5ad"):
        for made in (
            fitted.reconstruct(shuffled, into=into),
            fitted.predict(shuffled, to={"batch": "batch_1"}, into=into),
        ):
            found = made if into is None else ad.read_h5ad(made)
            assert found.var_names.tolist() == cells.var_names.tolist()
            assert found.var["symbol"].tolist() == cells.var["symbol"].tolist()
            assert found.var["variable"].tolist() == cells.var["variable"].tolist()
            assert {"cell_type", "plate", "age"} <= {*found.obs}
    more = ch.augment(cells, fitted, by="batch", floor=200)
    assert more.var["symbol"].tolist() == cells.var["symbol"].tolist()


IDS = [f"ENSG{i:011d}" for i in range(300)]
SYMBOLS = ["mt-Co1", "H2-K1", *(f"Gene{i}" for i in range(298))]


@pytest.mark.parametrize(
    ("own", "theirs", "what", "line"),
    [
        (IDS, [f"{i}.3" for i in IDS], "the version behind Ensembl ids", "str.replace("),
        ([f"{i}.5" for i in IDS], IDS, "the version behind Ensembl ids", None),
        ([f"{i}.5" for i in IDS], [f"{i}.3" for i in IDS], "the version behind Ensembl ids", None),
        (SYMBOLS, [s.upper() for s in SYMBOLS], "upper and lower case", "str.capitalize()"),
        ([s.upper() for s in SYMBOLS], SYMBOLS, "upper and lower case", "str.upper()"),
        ([s.lower() for s in SYMBOLS], SYMBOLS, "upper and lower case", "str.lower()"),
        (
            [f"mt-Co{i}" for i in range(300)],
            [f"MT-CO{i}" for i in range(300)],
            "upper and lower case",
            None,
        ),
    ],
)
@pytest.mark.parametrize("modality", ["", "rna"])
@pytest.mark.filterwarnings("ignore:.*carry:chreode.data.align.MissingFeatures")  # as mt-Co1
def test_names_that_differ_alone_are_made_alike_by_what_is_advised(
    quick, cells, own, theirs, what, line, modality
):
    """Where no line does it, none is advised."""
    cells.var_names = own
    fitted = quick(ch.PCA).fit(cells, ch.Schema(counts="layers/counts"))
    data, schema = cells.copy(), fitted.schema
    data.var_names = theirs
    if modality:
        with mudata.set_options(pull_on_update=False):
            data = mudata.MuData({"rna": data})
        schema = ch.Schema(counts="rna:layers/counts")
    with pytest.raises(ch.DataError, match=f"Most names differ by {what}") as refused:
        fitted.embed(data, schema=schema)
    advised = str(refused.value).partition("as by ")[2].rstrip(".")
    if line is None:
        assert not advised
        assert "by a table, or fit the model on names such as" in str(refused.value)
    else:
        assert line in advised
        exec(advised, {"data": data})
        assert np.isfinite(fitted.embed(data, schema=schema)).all()


def test_predict_keeps_what_each_cell_was_measured_under(of_all):
    cells, fits = of_all
    few = cells[:30].copy()
    few.obs["measured_cell_type"] = "mine"
    fitted, schema = fits["cfgen"], fits["cfgen"].schema
    to = {r: fitted.spec.categories[r][0] for r in ("label", "batch") if getattr(schema, r)}
    new = fitted.predict(few, to=to, progress=False).obs
    assert set(new["measured_cell_type"]) == {"mine"}  # a column of that name is the user's
    column = schema.batch.removeprefix("obs/")
    assert set(new[column]) == {to["batch"]}
    np.testing.assert_array_equal(
        new[f"measured_{column}"].astype(str), few.obs[column].astype(str)
    )
    assert f"measured_{column}" not in fitted.predict(few, to={}, progress=False).obs
