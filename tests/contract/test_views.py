"""Several views, cells that lack some of them, and entries that were not measured, on real patients."""

from __future__ import annotations

import anndata as ad
import mudata
import numpy as np
import pandas as pd
import pytest
import torch
from contract.factors import Factors, elbo, simulated

import chreode as ch
from chreode.data.align import learn_spec, open_source
from chreode.data.batch import CellBatch
from chreode.data.cells import Cells

CLL = ch.Schema(views=("Drugs:X", "Methylation:X", "mRNA:X", "Mutations:X"))


def parts_of(file):
    """The views of all patients as tables, features scaled and the 300 most variable of each."""
    found = {}
    for name in (
        "Drugs",
        "Methylation",
        "Mutations",
        "mRNA",
    ):  # names of the indices keep the whole from being read
        view = mudata.read_h5ad(file, name)
        table = view.to_df().astype("f8").rename_axis(None).rename_axis(None, axis=1)
        kept = table.columns[np.sort(np.argsort(table.var())[-300:])]
        found[name] = table[kept] / np.sqrt(table[kept].var().mean())
    return found


def joined(tables):
    with mudata.set_options(pull_on_update=False):
        return mudata.MuData({name: ad.AnnData(t.astype("f4")) for name, t in tables.items()})


@pytest.fixture(scope="module")
def patients(real):
    """CLL: 200 patients, of whom 16 to 64 lack drugs, methylation or mRNA; a third of mutations is NaN."""
    return parts_of(real("cll_multiomics/cll.h5mu"))


@pytest.mark.slow
def test_the_elbo_of_patients_who_lack_views_rises(patients):
    data = joined(patients)
    fitted = Factors(n_factors=8, max_epochs=60).fit(data, CLL)
    values = elbo(fitted)
    assert fitted.provenance["cells"] == 200
    assert (np.diff(values) >= -1e-8 * np.abs(values[1:])).all()
    assert values[-1] > values[0] + 10
    z = fitted.embed(data)
    assert z.shape == (200, 8)
    assert np.isfinite(z).all()


@pytest.mark.slow
def test_a_view_that_lacks_is_one_that_is_all_nan(patients):
    """Both say that nothing was measured; reading zeros for a patient who lacks a view would not."""
    names = joined(patients).obs_names
    full = {name: table.reindex(names) for name, table in patients.items()}
    lacking, filled = (
        Factors(max_epochs=10, tol=0.0).fit(joined(t), CLL) for t in (patients, full)
    )
    assert full["mRNA"].isna().all(axis=1).sum() == 64
    np.testing.assert_allclose(elbo(lacking), elbo(filled), rtol=1e-9)
    zeros = Factors(max_epochs=10, tol=0.0).fit(
        joined({k: t.fillna(0.0) if k == "mRNA" else t for k, t in full.items()}), CLL
    )
    assert np.abs(elbo(zeros) / elbo(lacking) - 1).max() > 1e-2


def imputed(fitted, data, role):
    """Return the expected values of a view of every patient."""
    module = fitted.module
    view = module.views[list(module.widths).index(role)]
    return fitted.embed(data) @ view.w.numpy().T + view.centre.numpy()


@pytest.mark.slow
def test_the_other_views_tell_of_the_one_that_lacks(patients):
    """Without them the best guess is the mean of the feature, and a wrong patient's is worse than that."""
    rng, mrna = np.random.default_rng(0), patients["mRNA"]
    away = np.sort(rng.permutation(len(mrna))[:30])
    less = {**patients, "mRNA": mrna.drop(mrna.index[away])}
    data = joined(less)
    fitted = Factors(n_factors=8, max_epochs=150).fit(data, CLL)
    guess = pd.DataFrame(imputed(fitted, data, "views/mRNA:X"), index=data.obs_names)
    true, mean = mrna.iloc[away], less["mRNA"].mean().to_numpy()

    def left(rows):
        return float(((true.to_numpy() - guess.loc[rows].to_numpy()) ** 2).sum())

    alone = float(((true.to_numpy() - mean) ** 2).sum())
    assert left(true.index) < 0.9 * alone
    assert left(np.roll(true.index, 7)) > alone


@pytest.mark.slow
def test_entries_within_a_view_are_imputed(patients):
    """A fifth of what drugs do is taken away; factors guess it better than the mean of the drug does."""
    rng, drugs = np.random.default_rng(1), patients["Drugs"]
    away = rng.random(drugs.shape) < 0.2
    data = joined({**patients, "Drugs": drugs.mask(away)})
    fitted = Factors(n_factors=8, max_epochs=60).fit(data, CLL)
    guess = pd.DataFrame(imputed(fitted, data, "views/Drugs:X"), index=data.obs_names)
    error = (drugs.to_numpy() - guess.loc[drugs.index].to_numpy())[away]
    alone = (drugs - drugs.mask(away).mean()).to_numpy()[away]
    assert np.square(error).sum() < 0.6 * np.square(alone).sum()


def test_views_of_one_object_stand_in_its_slots():
    """X and obsm of an AnnData are views as modalities of a MuData are, to the bit."""
    cells, _ = simulated(120, 30)
    cells.obsm["more"] = cells.X[:, 20:].copy()
    cells = cells[:, :20].copy()
    one = Factors(max_epochs=5).fit(cells, ch.Schema(views=("X", "obsm/more")))
    assert {r: len(f) for r, f in one.spec.features.items()} == {
        "views/X": 20,
        "views/obsm/more": 10,
    }
    tables = {
        "a": pd.DataFrame(cells.X, index=cells.obs_names),
        "b": pd.DataFrame(cells.obsm["more"], index=cells.obs_names),
    }
    tables = {k: t.rename(columns=lambda c, k=k: f"{k}{c}") for k, t in tables.items()}
    both = Factors(max_epochs=5).fit(joined(tables), ch.Schema(views=("a:X", "b:X")))
    np.testing.assert_array_equal(elbo(one), elbo(both))


def test_what_was_measured_is_told_of_each_entry():
    nan = float("nan")
    x = torch.tensor([[1.0, nan, 3.0], [0.0, 0.0, 0.0], [4.0, 5.0, 0.0]])
    plain = CellBatch(torch.arange(3), {"views/a": x.nan_to_num()})
    assert plain.measured("views/a")[1].shape == (1, 1)
    batch = CellBatch(
        torch.arange(3),
        {"views/a": x},
        present={"views/a": torch.tensor([True, False, True])},
        observed={"views/a": torch.tensor([True, True, False])},
    )
    values, there = batch.measured("views/a")
    assert there.tolist() == [[1, 0, 0], [0, 0, 0], [1, 1, 0]]
    assert not values.isnan().any()


@pytest.mark.slow
def test_a_query_may_lack_features_of_a_view(patients):
    data = joined(patients)
    fitted = Factors(n_factors=4, max_epochs=20).fit(data, CLL)
    few = joined({**patients, "mRNA": patients["mRNA"].iloc[:, :200]})
    with pytest.warns(ch.data.align.MissingFeatures):
        found = fitted.embed(few)
    masked = patients["mRNA"].copy()
    masked.iloc[:, 200:] = np.nan
    np.testing.assert_allclose(
        found, fitted.embed(joined({**patients, "mRNA": masked})), rtol=1e-5, atol=1e-6
    )
    spec = learn_spec(Cells(data, CLL), ["views"], np.arange(200))
    batch = open_source(Cells(data, CLL), spec, ["views"], {}).batch(np.arange(200))
    lacking = {role: int((~there).sum()) for role, there in batch.present.items()}
    names = ("Drugs", "Methylation", "mRNA", "Mutations")
    assert list(lacking.values()) == [16, 4, 64, 0]
    assert list(lacking) == [f"views/{name}:X" for name in names]
