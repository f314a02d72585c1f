"""Coverage: simulated positives that resample a known share of a factor's range read so."""

from __future__ import annotations

import json

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from identify.worlds import COUNTS, VALUES, World

import chreode as ch
from chreode.commands import app as cli


def coverage_of(world, share, **options):
    schema = COUNTS if world.kind == "counts" else VALUES
    factors = ["one", "two", "type"]
    return ch.identify.coverage(
        world.positives(share, share), world.data, factors, schema=schema, n_views=8, **options
    ).table()


@pytest.mark.parametrize(
    "share", [0.25, *(pytest.param(s, marks=pytest.mark.slow) for s in (0, 0.5, 1))]
)
@pytest.mark.parametrize(
    "given",
    [
        {"kind": "counts"},
        pytest.param({"kind": "counts", "shares": (0.75, 0.15, 0.1)}, marks=pytest.mark.slow),
        pytest.param({"kind": "fresh"}, marks=pytest.mark.slow),
        pytest.param({"kind": "own"}, marks=pytest.mark.slow),
    ],
    ids=["counts", "few of a class", "fresh noise", "own noise"],
)
def test_the_share_that_positives_resample_is_read(given, share):
    table = coverage_of(World(**given), share)
    found = table["coverage"]
    assert found["one"] == pytest.approx(share, abs=0.05)
    assert found["type"] == pytest.approx(share, abs=0.05)
    assert found["two"] == pytest.approx(0, abs=0.05)
    assert (table["low"] <= found).all()
    assert (found <= table["high"]).all()
    assert (table["readable"] > 0.9).all()


# bits, order, routes


def test_the_same_seed_gives_the_same_bits_and_another_order_the_same_answer(fewer, world):
    one, again = (
        ch.identify.coverage("crossover", world.data, ["one", "type"], schema=COUNTS) for _ in "12"
    )
    pd.testing.assert_frame_equal(one.table(), again.table())
    order = np.random.default_rng(0).permutation(world.data.n_obs)
    other = ch.identify.coverage("crossover", world.data[order], ["one", "type"], schema=COUNTS)
    assert (one.table()["coverage"] - other.table()["coverage"]).abs().max() < 0.05


def test_several_positives_are_compared_on_the_same_readers(fewer, world):
    still, moved = world.positives(0, 0), world.positives(0.5, 0.5)
    how = {"schema": COUNTS, "n_views": 2}
    found = ch.identify.coverage({"still": still, "moved": moved}, world.data, ["one"], **how)
    for name, each in (("still", still), ("moved", moved)):
        alone = ch.identify.coverage(each, world.data, ["one"], **how).table()
        pd.testing.assert_frame_equal(found.table().loc[name], alone)
    assert [line.partition(":")[0] for line in found.verdict().splitlines()] == [
        "- still",
        "- moved",
    ]


def test_every_route_gives_the_same(fewer, world, tmp_path, capsys):
    world.data.write_h5ad(tmp_path / "cells.h5ad")
    names = ("mask", "swap")
    held, read = (
        ch.identify.coverage(names, data, ["one", "obs/type"], schema=COUNTS, n_views=4)
        for data in (world.data, tmp_path / "cells.h5ad")
    )
    pd.testing.assert_frame_equal(held.table(), read.table())
    page, table = tmp_path / "page.html", tmp_path / "table.csv"
    words = (
        f"identify coverage {tmp_path}/cells.h5ad --augment mask+swap --factors obs/one obs/type"
    )
    more = f"--counts X --n-views 4 --report {page} -o {table} --json"
    assert cli.main([*words.split(), *more.split()]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [row["coverage"] for row in told["table"]] == pytest.approx([*held.table()["coverage"]])
    written = pd.read_csv(table, index_col="factor")
    np.testing.assert_allclose(written["coverage"], held.table()["coverage"])
    assert "Changed in part" in page.read_text(encoding="utf-8")
    assert cli.main([*words.split(), *more.split()]) == 0  # it replaces what it wrote


def test_a_function_gets_cells_of_a_file(fewer, world, tmp_path):
    world.data.write_h5ad(tmp_path / "cells.h5ad")
    seen = []

    def draw(cells, seed):
        seen.append((type(cells), cells.shape, seed))
        return cells.copy()

    found = ch.identify.coverage(draw, tmp_path / "cells.h5ad", "one", schema=COUNTS, n_views=2)
    assert [s[:2] for s in seen] == [(ad.AnnData, (600, 200))] * 2
    assert seen[0][2] != seen[1][2]
    assert found.table()["coverage"]["one"] == 0


def test_cells_without_a_value_are_left_out_and_counted(fewer, world):
    data = world.data.copy()
    data.obs.loc[data.obs_names[:30], "one"] = np.nan
    found = ch.identify.coverage(
        world.positives(1, 0), data, "one", schema=COUNTS, n_views=2
    ).table()
    assert found.loc["one", "cells"] == 570
    assert found.loc["one", "note"] == "30 cells without a value left out"
    assert found.loc["one", "coverage"] > 0.9


# bad input


def keep(cells, seed):
    return cells


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        ({"factors": "onee"}, ch.SchemaError, "there is no column 'onee' in obs. Did you mean 'one'?"),
        ({"factors": []}, ch.ConfigError, "factors is empty"),
        ({"factors": ["one", "obs/one"]}, ch.ConfigError, "names 'one' twice"),
        ({"factors": "same"}, ch.DataError, "same is constant"),
        ({"factors": "empty"}, ch.DataError, "empty is missing in all cells"),
        ({"factors": "few"}, ch.DataError, "few is known of 20 cells that can be read, and readers need 50"),
        ({"factors": "rare"}, ch.DataError, "classes of rare have too few cells: b (3)"),
        ({"n_views": 1}, ch.ConfigError, "n_views=1"),
        ({"schema": None}, ch.SchemaError, "coverage needs the place of counts or expression"),
        ({"schema": ch.Schema()}, ch.SchemaError, "coverage needs counts or expression"),
        ({"positives": "maks"}, ch.ConfigError, "There is no augmentation 'maks'. Did you mean 'mask'?"),
        ({"positives": ch.PCA()}, ch.CapabilityError, "PCA compares no views of cells"),
        ({"positives": lambda c, s: c[:-1]}, ch.DataError, "positives returned 599 cells for 600"),
        ({"positives": lambda c, s: c[:, :-1]}, ch.DataError, "positives returned other genes"),
        ({"positives": lambda c, s: c[::-1]}, ch.DataError, "positives returned the cells in another order"),
        ({"positives": lambda c, s: c.X}, ch.DataError, "positives returned csr_matrix; expected an AnnData"),
        ({"positives": lambda c, s: ad.AnnData(c.X * np.nan, c.obs, c.var)}, ch.DataError,
         "positives returned cells that cannot be read"),
        ({"positives": 3}, ch.ArgumentError, "positives"),
    ],
)  # fmt: skip
def test_bad_input_is_refused_in_a_sentence(world, call, error, text):
    data = world.data.copy()
    data.obs["same"], data.obs["empty"] = 1.0, np.nan
    data.obs["few"] = np.where(np.arange(600) < 20, np.arange(600.0), np.nan)
    data.obs["rare"] = np.where(np.arange(600) < 3, "b", "a")
    given = {"positives": keep, "factors": "one", "schema": COUNTS, **call}
    with pytest.raises(error) as raised:
        ch.identify.coverage(given.pop("positives"), data, given.pop("factors"), **given)
    assert text in str(raised.value)
    assert str(raised.value).endswith((".", "?"))


def test_a_fitted_model_without_views_is_refused(world):
    fitted = ch.PCA(n_latent=5).fit(world.data, COUNTS)
    with pytest.raises(ch.CapabilityError, match="PCA compares no views of cells"):
        ch.identify.coverage(fitted, world.data, "one")
