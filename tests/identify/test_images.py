"""Encoders and SimCLR of the image experiment, and the grid that they make."""

from __future__ import annotations

import importlib

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

import chreode as ch
from chreode.compute.rng import Rng
from chreode.identify.imaging import probe as probing
from chreode.identify.imaging.augment import ERASE, SIDE
from chreode.identify.imaging.data import check, parts
from chreode.identify.imaging.networks import ENCODERS, MLP, SIZES, ResNet, ViT
from chreode.identify.imaging.simclr import Training, embed, train
from chreode.losses.ntxent import nt_xent

grid = importlib.import_module("chreode.identify.images")  # the function has the same name


@pytest.fixture(scope="module")
def digits():
    return ch.identify.digits()


def made(name, size="small"):
    with Rng(0).scope("weights"):
        return ENCODERS[name](**SIZES[size][name])


# encoders


def counted(network):
    return sum(p.numel() for p in network.parameters())


def test_encoders_have_as_many_parameters_as_the_papers():
    # ResNet-18 for 32 x 32 pixels is known to have 11,173,962 with a last layer of ten classes
    assert counted(ResNet()) == 11_173_962 - (512 * 10 + 10)
    width, mlp = 384, 1536
    layer = 4 * width**2 + 4 * width + 2 * width * mlp + width + mlp + 4 * width
    ends = 48 * width + width + 64 * width + 2 * width + 512 * width + 512
    assert counted(ViT()) == 6 * layer + ends
    hidden = 3 * 3 * 2048  # biases, and scales and shifts of batch norm
    assert counted(MLP()) == 3072 * 2048 + 2 * 2048**2 + hidden + 2048 * 512 + 512
    assert round(counted(MLP()) / 1e6, 1) == 15.7


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", ENCODERS)
def test_an_image_alone_is_embedded_as_among_others(name, size, digits):
    x = torch.tensor(digits[0][:3])
    network = made(name, size)
    z = embed(network, x)
    assert z.shape == (3, {"paper": 512, "small": 64}[size])
    assert z.isfinite().all()
    torch.testing.assert_close(embed(network, x[:1]), z[:1], atol=1e-5, rtol=1e-4)
    assert (z[0] - z[1]).norm() > 1e-3


def test_the_transformer_knows_where_a_patch_is(digits):
    x = torch.tensor(digits[0][:1])
    moved = x.roll(8, 3)
    network = made("vit")
    far = (embed(network, x) - embed(network, moved)).norm()
    with torch.no_grad():
        network.places.zero_()
    assert far > 20 * (embed(network, x) - embed(network, moved)).norm()


# SimCLR


class Seen:
    """An augmentation that keeps what it is given, and erases."""

    def __init__(self):
        self.given, self.made = [], []

    def __call__(self, x):
        self.given.append(x)
        self.made.append(ERASE(x))
        return self.made[-1]


def test_the_encoder_sees_two_augmented_views_of_every_image(digits):
    x, seen, into = torch.tensor(digits[0][:50]), Seen(), []
    network = made("mlp")
    network.register_forward_pre_hook(lambda _, given: into.append(given[0].clone()))
    train(network, x, [seen], Training(2, batch_size=20, lr=1e-3), seed=0)
    assert len(into) == 4  # two epochs of two minibatches
    for given, augmented, views in zip(seen.given, seen.made, into, strict=True):
        assert torch.equal(augmented, views)
        assert torch.equal(*given.chunk(2))
        assert (views != given).flatten(1).any(1).all()
    for epoch in (into[:2], into[2:]):
        assert sum(map(len, epoch)) == 2 * len(x)
    each = torch.cat([given.chunk(2)[0] for given in seen.given[:2]])
    assert len(each.flatten(1).unique(dim=0)) == len(x.flatten(1).unique(dim=0))


def test_the_loss_is_nt_xent_of_the_embedding_itself(digits):
    x = torch.tensor(digits[0][:30])
    network = nn.Sequential(nn.Flatten(), nn.Linear(3 * SIDE**2, 8))
    with torch.no_grad():
        z = network(x)
        wanted = nt_xent(z, z, 0.3).item()
    (found,) = train(network, x, (), Training(1, batch_size=99, lr=1e-3, temperature=0.3), seed=0)
    assert found == pytest.approx(wanted, rel=1e-5)


def test_a_loss_that_leaves_the_numbers_is_refused(digits):
    network = nn.Sequential(nn.Flatten(), nn.Linear(3 * SIDE**2, 8))
    with torch.no_grad():
        network[1].weight.fill_(torch.inf)
    with pytest.raises(ch.FitError, match="epoch 1: lower the learning rate"):
        train(network, torch.tensor(digits[0][:30]), (), Training(1, 99), seed=0)


# parts and images


@pytest.mark.parametrize("sizes", [(4, 4), (5, 30), (180, 7, 61)])
def test_every_part_has_every_class_and_no_image_is_in_two(sizes):
    y = np.random.default_rng(0).permutation(np.repeat(np.arange(len(sizes)), sizes))
    found = parts(y, 3)
    assert sorted(np.concatenate(found)) == list(range(len(y)))
    for rows, share in zip(found, (0.6, 0.2, 0.2), strict=True):
        counts = np.bincount(y[rows], minlength=len(sizes))
        assert (counts >= 1).all()
        assert (np.abs(counts - share * np.array(sizes)) <= 1).all()
    assert all(np.array_equal(a, b) for a, b in zip(found, parts(y, 3), strict=True))
    assert (
        any(not np.array_equal(a, b) for a, b in zip(found, parts(y, 4), strict=True))
        or max(sizes) < 5
    )


def test_digits_are_scikit_learns(digits):
    from sklearn.datasets import load_digits

    x, y = digits
    small = load_digits()
    assert x.dtype == np.float32
    assert np.array_equal(x[:, 0], x[:, 1])
    assert np.array_equal(x[:, 0], x[:, 2])
    assert np.array_equal(y, small.target)
    # inside, four by four pixels around a corner of four old ones have their mean
    old = small.images[:, 3:5, 3:5].mean((1, 2)) / 16
    np.testing.assert_allclose(x[:, 0, 14:18, 14:18].mean((1, 2)), old, atol=1e-6)


# the grid

FEW = {"encoders": ["mlp"], "regimes": ["crop"], "seeds": [0], "epochs": 1, "batch_size": 64,
       "progress": False}  # fmt: skip


@pytest.fixture
def some(digits, monkeypatch):
    monkeypatch.setattr(probing, "EPOCHS", 20)  # enough for what is asked of these rows
    return digits[0][:150], digits[1][:150]


@pytest.mark.slow
def test_an_encoder_learns_and_its_embedding_tells_classes(digits):
    x, y = digits[0][:400], digits[1][:400]
    found = ch.identify.images(
        x, y, encoders=["mlp"], regimes=["crop"], seeds=[0, 1], epochs=8, batch_size=64, lr=1e-3,
        progress=False,
    )  # fmt: skip
    table = found.table()["accuracy"]
    assert table["chance", "-"] < 0.2
    assert table["mlp", "crop"] > 0.7
    rows = found.rows[found.rows["regime"] == "crop"]
    assert (rows["last_loss"] < rows["first_loss"] - 0.3).all()


def test_rows_and_the_table_of_their_means(some):
    found = ch.identify.images(*some, **{**FEW, "encoders": ["mlp", "resnet"], "seeds": [0, 3]})
    rows = found.rows
    names = ["chance", "raw pixels", "PCA", "mlp", "mlp", "resnet", "resnet"]
    assert list(rows["encoder"]) == list(np.repeat(names, 2))
    assert list(rows["seed"]) == [0, 3] * 7
    trained = rows[rows["regime"] == "crop"]
    assert trained[["seconds", "epochs", "first_loss", "last_loss"]].notna().all(axis=None)
    assert trained["state"].isin(["still improving", "rested"]).all()
    assert found.table()["still improving"].sum() == (rows["state"] == "still improving").sum()
    assert rows.loc[rows["encoder"] == "PCA", "epochs"].isna().all()
    assert set(rows["worst_class"]) <= set("0123456789")
    assert (rows["worst"] <= rows["accuracy"]).all()
    table = found.table()
    assert list(table.columns[:4]) == ["accuracy", "lowest", "highest", "worst class"]
    one = rows[(rows["encoder"] == "resnet") & (rows["regime"] == "crop")]["accuracy"]
    told = table.loc[("resnet", "crop")]
    assert told["accuracy"] == pytest.approx(one.mean())
    assert (told["lowest"], told["highest"], told["seeds"]) == (one.min(), one.max(), 2)


def test_nothing_learns_from_images_of_validation_or_test(some, monkeypatch):
    given = {}

    class Spied(grid.PCA):
        def fit(self, x):
            given["PCA"] = x
            return super().fit(x)

    def spied(network, x, *args):
        given["encoder"] = x
        return train(network, x, *args)

    monkeypatch.setattr(grid, "PCA", Spied)
    monkeypatch.setattr(grid, "train", spied)
    x, y = some
    ch.identify.images(x, y, **{**FEW, "seeds": [1]})
    wanted = x[parts(y, 1).train]
    for name in ("encoder", "PCA"):
        np.testing.assert_array_equal(np.asarray(given[name]).reshape(wanted.shape), wanted)


def test_chance_is_the_commonest_class(some):
    x, y = some
    y = np.where(y < 7, "many", "few")
    found = ch.identify.images(x, y, **FEW).rows
    chance = found[found["encoder"] == "chance"].iloc[0]
    assert chance["accuracy"] == pytest.approx((y == "many").mean(), abs=0.02)
    assert (chance["worst"], chance["worst_class"]) == (0.0, "few")


def test_same_seed_same_numbers(some):
    one, two = (ch.identify.images(*some, **FEW).rows.drop(columns="seconds") for _ in range(2))
    pd.testing.assert_frame_equal(one, two)


def test_the_same_call_goes_on_and_other_settings_are_refused(some, tmp_path, monkeypatch):
    begun = []
    real = grid.train
    monkeypatch.setattr(grid, "train", lambda *args: begun.append(args[-1]) or real(*args))
    first = ch.identify.images(*some, **FEW, into=tmp_path / "rows")
    assert begun == [0]
    second = ch.identify.images(*some, **{**FEW, "seeds": [0, 1]}, into=tmp_path / "rows")
    assert begun == [0, 1]
    kept = second.rows[second.rows["seed"] == 0].reset_index(drop=True)
    pd.testing.assert_frame_equal(kept, first.rows)
    with pytest.raises(ch.StoreError, match="epochs: 1 there, 2 here"):
        ch.identify.images(*some, **{**FEW, "epochs": 2}, into=tmp_path / "rows")


def test_a_row_that_fails_is_told_and_the_others_stand(some, monkeypatch):
    def fails(*_):
        raise ch.FitError("The loss is nan.")

    monkeypatch.setattr(grid, "train", fails)
    found = ch.identify.images(*some, **FEW)
    last = found.rows.iloc[-1]
    assert last["note"] == "failed: The loss is nan"
    assert np.isnan(last["accuracy"])
    table = found.table()
    assert np.isnan(table.loc[("mlp", "crop"), "accuracy"])
    assert table.loc[("mlp", "crop"), "seeds"] == 0
    assert table.loc[("mlp", "crop"), "note"]
    assert table.loc[("mlp", "untrained"), ["seeds", "note"]].tolist() == [
        len(set(found.rows["seed"])),
        "",
    ]


def test_tensors_and_whole_numbers_are_taken(some):
    x, y, _ = check(torch.tensor(some[0]).round().int(), torch.tensor(some[1]))
    assert x.dtype == np.float32
    assert np.array_equal(y, some[1])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda x, y: (x[:, :1], y), "expected images x 3 channels x 32 x 32 pixels"),
        (lambda x, y: (x.transpose(0, 2, 3, 1), y), r"x\.transpose\(0, 3, 1, 2\)"),
        (lambda x, y: (x[:, :, :28, :28], y), "expected images x 3"),
        (lambda x, y: (x[0], y), "expected images x 3"),
        (lambda x, y: (x.astype(str), y), "expected numbers"),
        (lambda x, y: (255 * x, y), "from 0 to 255: expected 0 to 1. Divide bytes by 255"),
        (lambda x, y: (x - 0.5, y), "from -0.5 to 0.5: expected 0 to 1"),
        (lambda x, y: (np.where(x > 0.9, np.nan, x), y), "not finite"),
        (lambda x, y: (x, y[:-1]), r"\(149,\) beside 150 images"),
        (lambda x, y: (x, np.eye(10)[y]), r"\(150, 10\) beside 150 images"),
        (lambda x, y: (x, 0 * y), "1 class: a probe needs two"),
        (lambda x, y: (x, np.where(np.arange(150) < 3, "rare", "other")), "fewer than 4 images: rare"),
        (lambda x, y: (x, np.where(y == 1, np.nan, y)), "no label"),
        (lambda x, y: (x[:0], y[:0]), "no images"),
    ],
)  # fmt: skip
def test_bad_images_are_refused(some, change, said):
    with pytest.raises(ch.DataError, match=said):
        ch.identify.images(*change(*some), **FEW)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"encoders": ["resnets"]}, "no encoder 'resnets'. Did you mean 'resnet'"),
        ({"regimes": ["colour"]}, "no regime 'colour'. Available: all, crop, no crop, no flip"),
        ({"encoders": []}, "no encoder"),
        ({"regimes": ["crops"]}, "Did you mean 'crop'"),
        ({"encoders": "mlp"}, "expected a list of text"),
        ({"size": "large"}, "size='large'"),
        ({"epochs": 0}, "epochs=0: expected at least 1"),
        ({"batch_size": 1}, "batch_size=1: expected at least 2"),
        ({"lr": 0.0}, "lr=0.0: expected a number above 0"),
        ({"lr": float("nan")}, "lr=nan: expected a number above 0"),
        ({"seeds": []}, "There are no seeds"),
        ({"seeds": [-1]}, "-1: expected whole numbers"),
        ({"epoch": 2}, "Did you mean 'epochs'"),
        ({"device": "gpu"}, "device='gpu'"),
    ],
)  # fmt: skip
def test_bad_settings_are_refused(some, settings, said):
    with pytest.raises(ch.ConfigError, match=said):
        ch.identify.images(*some, **{**FEW, **settings})
