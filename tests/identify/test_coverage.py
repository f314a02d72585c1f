"""Coverage: simulated positives that resample a known share of a factor's range read so."""

from __future__ import annotations

import importlib
import json

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch

import chreode as ch
from chreode.commands import app as cli
from chreode.compute.rng import Rng
from chreode.data.batch import SparseRows
from chreode.data.cells import Cells
from chreode.identify.factors import Factor
from chreode.identify.positives import open_positives
from chreode.identify.readers import Readers, _Reader, as_rows, folds, halvings
from chreode.identify.shares import share_of

COUNTS, VALUES = ch.Schema(counts="X"), ch.Schema(expression="X")
SHARES = (0, 0.25, 0.5, 1)


class World:
    """Cells of two continuous programmes and a class, with positives of any kind.

    `kind` says what is measured: Poisson "counts", or values with "fresh" noise, or with the "own" noise of
    each cell in its positives too.
    """

    def __init__(self, n=600, g=200, shares=(0.25,) * 4, kind="counts", seed=0):
        rng = np.random.default_rng(seed)
        self.loadings, self.kind = rng.normal(0, 0.6, (2, g)), kind
        self.base, self.classes = rng.normal(0, 0.7, g), rng.normal(0, 0.7, (len(shares), g))
        self.one, self.two = rng.random((2, n))
        self.code = rng.choice(len(shares), n, p=shares)
        self.noise = rng.normal(0, 0.5, (n, g))
        self.data = self.cells(self.one, self.code, rng, self.noise)

    def cells(self, one, code, rng, noise):
        rate = self.base + 2 * np.c_[one, self.two] @ self.loadings + self.classes[code]
        if self.kind == "counts":
            share = np.exp(rate) / np.exp(rate).sum(1, keepdims=True)
            values = sp.csr_matrix(rng.poisson(600 * share).astype("f4"))
        else:
            values = (rate + noise).astype("f4")
        types = pd.Categorical([f"type {i}" for i in code])
        names = [f"cell {i}" for i in range(len(one))]
        obs = pd.DataFrame({"one": one, "two": self.two, "type": types}, index=names)
        return ad.AnnData(values, obs=obs)

    def positives(self, share, chance):
        """Return positives uniform in a window of the first programme, and of another class by chance."""

        def draw(cells, seed):
            rng = np.random.default_rng(seed)
            n = len(self.one)
            one = share * (np.floor(self.one / share) + rng.random(n)) if share else self.one
            code = np.where(rng.random(n) < chance, rng.permutation(self.code), self.code)
            fresh = rng.normal(0, 0.5, self.noise.shape)
            return self.cells(one, code, rng, self.noise if self.kind == "own" else fresh)

        return draw


@pytest.fixture(scope="module")
def world():
    return World()


@pytest.fixture
def fewer(monkeypatch):
    """Two halvings and few resamples, where numbers are not looked at closely."""
    module = importlib.import_module("chreode.identify.coverage")  # the function has the same name
    monkeypatch.setattr(module, "HALVINGS", 2)
    monkeypatch.setattr(module, "DRAWS", 50)


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


# readings that are drawn


def readings(share, error=0.1, n=4000, blurred=1.0, seed=0):
    """Return readings of a uniform factor, and of positives in a window, of both halves."""
    rng = np.random.default_rng(seed)
    value = rng.random(n)
    near = (
        share * (np.floor(value / share)[:, None] + rng.random((n, 6))) if share else value[:, None]
    )
    near = np.broadcast_to(near, (n, 6))

    def read(x):
        return (blurred if x.ndim > 1 else 1) * x[..., None, None, None] + error * rng.normal(
            size=(*x.shape, 1, 2, 1)
        )

    return read(value), read(near), rng


@pytest.mark.parametrize("share", SHARES)
def test_a_window_of_a_uniform_factor_has_its_share_of_the_range(share):
    cells, views, rng = readings(share)
    found = share_of(cells, views, classes=False, draws=100, generator=rng)
    assert found.coverage == pytest.approx(share, abs=0.05)
    assert found.low <= found.coverage <= found.high
    # variance of the error over that of error and window
    assert found.blur == pytest.approx(0.01 / (0.01 + share**2 / 12), abs=0.05)


@pytest.mark.parametrize(("views", "share"), [("scaled", 0), ("anywhere", 1)])
def test_positives_are_compared_with_positives(views, share):
    """Another scale of all positives is no change; positives that do not know their cell are all of it."""
    cells, _, rng = readings(0)
    value = cells.mean((1, 2, 3))[:, None]
    drawn = {"scaled": 0.4 + 0.2 * value + np.zeros((len(cells), 6)),
             "anywhere": rng.uniform(0.3, 0.7, (len(cells), 6))}[views]  # fmt: skip
    near = drawn[..., None, None, None] + 0.05 * rng.normal(size=(*drawn.shape, 1, 2, 1))
    found = share_of(cells, near, classes=False, draws=100, generator=rng)
    assert found.coverage == pytest.approx(share, abs=0.06)


def test_a_rare_class_may_be_among_the_cells_that_nobody_learns_from():
    reader = _Reader.of_classes(np.random.default_rng(0).normal(size=(20, 3)), np.zeros(20), 2)
    np.testing.assert_array_equal(reader.finish(np.zeros((4, 2)) + reader.bias), [[1, 0]] * 4)


def test_without_a_second_reading_errors_are_taken_for_change():
    cells, views, rng = readings(0)
    twice = (x[..., [0, 0], :] for x in (cells, views))
    assert share_of(*twice, classes=False, draws=10, generator=rng).coverage > 0.25


def class_readings(chance, shares, left=1.0, n=3000, seed=0):
    """Return probabilities that are wrong in part, of cells and of positives that are blurred."""
    rng = np.random.default_rng(seed)
    code = rng.choice(len(shares), n, p=shares)
    other = np.where(
        rng.random((n, 6)) < chance, rng.choice(len(shares), (n, 6), p=shares), code[:, None]
    )

    def read(codes, left):
        sure = np.eye(len(shares))[codes][..., None, None, :] * left * np.array([0.8, 0.6])[:, None]
        return sure + 0.2 * rng.normal(size=(*codes.shape, 1, 2, len(shares)))

    return read(code, 1.0), read(other, left), rng


@pytest.mark.parametrize("left", [1.0, 0.5])
@pytest.mark.parametrize("shares", [(0.25,) * 4, (0.9, 0.05, 0.05)])
@pytest.mark.parametrize("chance", SHARES)
def test_the_chance_of_a_random_class_is_read(chance, shares, left):
    """Also where positives are read with half the sureness, which is no change of class."""
    cells, views, rng = class_readings(chance, shares, left)
    found = share_of(cells, views, classes=True, draws=100, generator=rng)
    assert found.coverage == pytest.approx(chance, abs=0.05)
    assert found.low - 1e-9 <= found.coverage <= found.high + 1e-9


def test_by_one_reading_a_class_that_stays_seems_to_change():
    """Errors of reading one half twice are in the covariance of cells, and not in that with positives."""
    cells, views, rng = class_readings(0, (0.9, 0.05, 0.05))
    twice = (x[..., [0, 0], :] for x in (cells, views))
    assert share_of(*twice, classes=True, draws=10, generator=rng).coverage > 0.2


def test_positives_that_cannot_be_read_have_no_coverage():
    cells, views, rng = readings(0.5, blurred=0.05)
    found = share_of(cells, views, classes=False, draws=10, generator=rng)
    assert np.isnan([found.coverage, found.low, found.high]).all()


# what readers can tell


def test_a_factor_that_cannot_be_read_is_not_told(fewer, world):
    data = world.data.copy()
    data.obs["noise"] = np.random.default_rng(0).random(data.n_obs)
    data.obs["coin"] = np.random.default_rng(1).permutation(["heads", "tails"] * (data.n_obs // 2))
    draw = world.positives(1, 1)
    found = ch.identify.coverage(draw, data, ["noise", "coin"], schema=COUNTS, n_views=2)
    table = found.table()
    assert table[["coverage", "low", "high", "blur"]].isna().all(axis=None)
    assert table["note"].str.startswith("not told: readers cannot tell this factor").all()
    assert "Not known: noise, coin." in repr(found)


def test_readers_do_not_see_the_cells_that_they_read(world):
    """Where they do, they tell a coin: the number that a factor is judged readable by would be worthless."""
    rng = np.random.default_rng(0)
    x = sp.csr_matrix(np.log1p(world.data.X.toarray()))
    n = len(world.one)
    coin = Factor("coin", rng.integers(2, size=n).astype(float), ("heads", "tails"))
    halves, fold = halvings(1, x.shape[1], rng), folds(np.arange(n), rng)
    unseen, seen = np.flatnonzero(fold == 0), np.flatnonzero(fold != 0)
    reader = Readers.learn(x, [coin], halves, seen, Rng(0))

    def accuracy(cells):
        told = reader.read(as_rows(x[cells])).mean((1, 2)).argmax(1)
        return (told == coin.values[cells]).mean()

    assert accuracy(unseen) < 0.6
    assert accuracy(seen) > accuracy(unseen) + 0.1


def test_sparse_cells_are_read_as_dense_ones_are(world):
    x = sp.csr_matrix(np.log1p(world.data.X.toarray()))
    types = Factor("type", world.code.astype(float), ("a", "b", "c", "d"))
    halves = halvings(2, x.shape[1], np.random.default_rng(0))
    factors = [Factor("one", world.one), Factor("square", (world.one - 0.5) ** 2), types]
    readers = Readers.learn(x, factors, halves, np.arange(400), Rng(0))
    found = readers.read(as_rows(x[400:]))
    assert found.shape == (200, *readers.shape) == (200, 2, 2, 6)
    np.testing.assert_allclose(readers.read(torch.from_numpy(x[400:].toarray())), found, atol=1e-4)
    np.testing.assert_allclose(found[..., 2:].sum(-1), 1, rtol=1e-9)
    # each half reads its own genes alone
    other = x.toarray()[400:]
    other[:, halves[0]] = 0
    blind = readers.read(torch.from_numpy(other))
    np.testing.assert_allclose(blind[:, 0, 1], found[:, 0, 1], atol=1e-4)
    assert np.abs(blind[:, 0, 0] - found[:, 0, 0]).max() > 0.1


# positives of models


@pytest.mark.parametrize("augment", [(), ("mnn",), ("bbknn",)])
def test_views_stand_at_their_cells(cells, schema, augment):
    """With nothing changed, or mixed with a weight of 1, they are the cells themselves."""
    model = ch.SimCLR(augment=augment, mix=1.0, batch_size=64)
    opened = open_positives(model, Cells.of(cells, schema), 0)
    counts = cells.layers["counts"].toarray()
    logs = np.log1p(1e4 * counts / counts.sum(1, keepdims=True))
    times = np.zeros((3, cells.n_obs), int)
    for view, rows, x in opened.draw(3):
        np.testing.assert_allclose(
            x.dense() if isinstance(x, SparseRows) else x, logs[rows], atol=1e-4
        )
        times[view, rows] += 1
    assert (times == 1).all()


@pytest.mark.parametrize("key", ["clear", "claire", "maskedautoencoder", "nnclr", "concerto"])
def test_every_model_of_views_says_what_they_are(cells, schema, key):
    model = ch.models.find(key)()
    opened = open_positives(model, Cells.of(cells, schema), 0)
    views = {view for view, _, _ in opened.draw(2)}
    assert views == {0, 1}
    share = [float((x.dense() if isinstance(x, SparseRows) else x).gt(0).float().mean())
             for _, _, x in opened.draw(1)]  # fmt: skip
    plain = float((cells.layers["counts"] > 0).mean())
    if key == "maskedautoencoder":  # half of all genes is hidden, and always
        assert np.mean(share) == pytest.approx(plain / 2, rel=0.1)


def test_crossover_changes_types_and_masks_do_not(fewer, world):
    def of(**options):
        model = ch.SimCLR(chance=1.0, **options)
        return ch.identify.coverage(model, world.data, "type", schema=COUNTS).table()["coverage"][
            "type"
        ]

    assert of(augment=("crossover",), crossover=0.5) > 0.15
    assert of(augment=("mask",), mask=0.3) < 0.05


def test_thinning_changes_depth_more_than_masks_do(fewer):
    rng = np.random.default_rng(0)
    rate, depth = rng.lognormal(0, 1, 300), np.exp(rng.uniform(5, 8, 400))
    data = ad.AnnData(sp.csr_matrix(rng.poisson(depth[:, None] * rate / rate.sum()).astype("f4")))
    data.obs["depth"] = np.log(depth)
    thin, mask = (
        ch.identify.coverage(name, data, "depth", schema=COUNTS).table()["coverage"]["depth"]
        for name in ("thin", "mask")
    )
    assert thin > mask + 0.1


def test_a_fit_knows_its_schema_and_draws_as_its_model(fewer, world, quick):
    model = quick(ch.SimCLR, augment=("programmes",))
    fitted = model.fit(world.data, COUNTS)
    found = ch.identify.coverage(fitted, world.data, "one", n_views=2)
    assert found.about["positives"]["augment"] == ["programmes"]
    assert 0 < found.table()["coverage"]["one"] < 0.9


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


def test_readers_learn_nothing_from_the_group_of_a_cell(fewer, world):
    """Replicates have a value of noise in common: only a reader that saw the other one knows it."""
    twice = ad.concat([world.data, world.data], index_unique="-")
    twice.obs["well"] = np.tile(np.arange(world.data.n_obs), 2).astype(str)
    noise = np.random.default_rng(0).normal(size=40)
    twice.obs["noise"] = np.tile(noise, 30)
    few = twice[np.r_[:40, 600:640]].copy()
    how = {"schema": COUNTS, "n_views": 2}
    seen, unseen = (
        ch.identify.coverage(lambda a, _: a, few, ["noise"], groups=groups, **how).table()[
            "readable"
        ]["noise"]
        for groups in (None, "well")
    )
    assert unseen < 0.1 < seen
    assert len(np.unique(folds(np.repeat(np.arange(7), 3), np.random.default_rng(0)))) == 5


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
