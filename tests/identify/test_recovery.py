"""One run of the laboratory: what a minibatch holds, what the final loss is, and what is recovered."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch

from chreode.compute.rng import Rng
from chreode.errors import ConfigError, FitError
from chreode.identify import recovery
from chreode.identify.encoders import Network
from chreode.identify.recovery import (
    Minibatch,
    Setting,
    encoded,
    final_losses,
    minibatches,
    minimise,
    recover,
)
from chreode.losses.optima import full_support, rescaled

#: A run that takes a second.


def draw(setting):
    return next(minibatches(setting, at_once=1))


SHORT = Setting(
    n_fixed=1, ratio=0.5, n_negatives=15, batch_size=128, n_steps=12, hidden=(16,), lr=1e-3
)


@pytest.fixture
def _brief(monkeypatch):
    """Measure final losses and R² on less."""
    monkeypatch.setattr(recovery, "N_SETS", 2)
    monkeypatch.setattr(recovery, "_TEST", 600)


@pytest.mark.parametrize("batch_size", [64, 100, 513])
@pytest.mark.parametrize(
    ("n_negatives", "ratio"),
    [(1, 0.0), (1, 1.0), *product((7, 31), (0.0, 0.1, 0.5, 0.9, 1.0))],
)
@pytest.mark.parametrize(("n_latent", "n_fixed"), [(3, 1), (5, 3)])
def test_negatives_are_what_they_are_said_to_be(n_latent, n_fixed, ratio, n_negatives, batch_size):
    setting = Setting(
        n_latent=n_latent,
        n_fixed=n_fixed,
        ratio=ratio,
        n_negatives=n_negatives,
        batch_size=batch_size,
    )
    with Rng(0).scope("draw"):
        anchors, positives, negatives = draw(setting)
    n = len(anchors)
    assert batch_size - n_negatives - 1 <= n <= batch_size
    assert negatives.shape == (n, n_negatives)
    assert negatives.min() >= 0
    assert negatives.max() < n
    assert not (negatives == torch.arange(n)[:, None]).any()
    assert all(len(set(row)) == n_negatives for row in negatives.tolist())
    u = anchors[:, :n_fixed]
    assert torch.equal(positives[:, :n_fixed], u)
    assert not torch.equal(positives, anchors)
    own = (u[negatives] == u[:, None]).all(2).sum(1)
    assert (own == own[0]).all()
    assert abs(own[0] - ratio * n_negatives) <= 0.5
    v = anchors[:, n_fixed:]
    assert not (v[negatives] == v[:, None]).all(2).any()
    # each anchor is as often a negative as any other
    assert set(Counter(negatives.flatten().tolist()).values()) == {n_negatives}


@pytest.mark.parametrize("ratio", [0.0, 0.4, 1.0])
def test_anchors_are_even_on_the_sphere_and_positives_about_them(ratio):
    setting = Setting(n_fixed=1, ratio=ratio, n_negatives=4, batch_size=100_000)
    with Rng(0).scope("draw"):
        anchors, positives, _ = draw(setting)
    n = len(anchors)
    for z in (anchors, positives):
        z = z.double()
        torch.testing.assert_close(z.T @ z / n, torch.eye(3).double() / 3, atol=0.012, rtol=0)
        torch.testing.assert_close(z.mean(0), torch.zeros(3).double(), atol=0.012, rtol=0)
    # E u² + E v·ṽ in closed form: on S², E r² A(κr²)
    r = torch.linspace(-1, 1, 20_001).double().square().neg().add(1).sqrt()
    at = r**2 / 0.3
    met = 1 / 3 + (r**2 * torch.special.i1e(at) / torch.special.i0e(at)).mean()
    assert (anchors * positives).sum(1).mean().item() == pytest.approx(met.item(), abs=0.01)


def test_anchors_of_other_groups_have_nothing_in_common():
    setting = Setting(n_fixed=1, ratio=0.5, n_negatives=8, batch_size=50_000)
    with Rng(1).scope("draw"):
        anchors, _, negatives = draw(setting)
    for i in range(8):
        products = (anchors * anchors[negatives[:, i]]).sum(1)
        expected = 1 / 3 if i < 4 else 0.0  # E u² where u is shared
        assert products.mean().item() == pytest.approx(expected, abs=0.02)


@pytest.mark.parametrize(
    ("n_fixed", "sampler", "ratio", "within"),
    [(0, "theorem", 0.0, 0.02), (1, "theorem", 0.0, 0.02), (1, "published", 0.0, 0.02),
     (1, "theorem", 1.0, 0.1), (1, "published", 1.0, 0.1), (0, "theorem", 1.0, 0.02)],
)  # fmt: skip
def test_the_final_loss_of_the_identity_is_the_closed_form(n_fixed, sampler, ratio, within):
    setting = Setting(n_fixed=n_fixed, sampler=sampler, ratio=ratio)
    closed = (
        full_support(1 / 0.3, 3, 2000)
        if n_fixed == 0
        else rescaled(1.0, 1 / 0.3, 3, 1, 2000, sampler=sampler, corrected=ratio == 1)
    )
    assert setting.least() == pytest.approx(closed)
    with Rng(0).scope("loss"):
        identity, mirror = final_losses(setting, [lambda z: z, lambda z: z.flip(1)])
    assert identity == pytest.approx(closed, abs=within)
    assert mirror == pytest.approx(identity, abs=1e-4)  # any orthogonal map, on the same draws


def test_between_the_two_losses_negatives_are_of_both_kinds(monkeypatch):
    """The partition is that of a thousand negatives from the support, and of a thousand from everywhere."""
    monkeypatch.setattr(recovery, "N_SETS", 20)
    setting, kappa = Setting(n_fixed=1, ratio=0.5), 1 / 0.3
    with Rng(0).scope("loss"):
        (identity,) = final_losses(setting, [lambda z: z])
    u = torch.linspace(-1, 1, 20_001).double()  # a coordinate of an even sphere is even
    at = kappa * (1 - u**2)
    met = u**2 + (1 - u**2) * torch.special.i1e(at) / torch.special.i0e(at)
    support = torch.exp(kappa * u**2) * torch.special.i0(at)
    everywhere = math.sinh(kappa) / kappa
    closed = (1000 * (support + everywhere)).log().mean() - kappa * met.mean()
    assert identity == pytest.approx(closed.item(), abs=0.04)


def test_there_is_no_closed_form_between_the_two_losses():
    assert math.isnan(Setting(n_fixed=1, ratio=0.5).least())
    assert math.isnan(Setting(n_fixed=3).least())


@pytest.mark.usefixtures("_brief")
def test_the_same_seed_gives_the_same_bits():
    (one, arrays), (two, again) = recover(SHORT, 3), recover(SHORT, 3)
    assert {**one, "seconds": 0, "closed": 0} == {**two, "seconds": 0, "closed": 0}
    for name, array in arrays.items():
        np.testing.assert_array_equal(array, again[name])
    other, elsewhere = recover(SHORT, 4)
    assert other["loss"] != one["loss"]
    assert not np.array_equal(elsewhere["latents"], arrays["latents"])


@pytest.mark.usefixtures("_brief")
def test_every_option_changes_something():
    others = {
        "mixing": "linear", "n_latent": 4, "n_fixed": 2, "sampler": "published", "kappa": 5.0,
        "ratio": 1.0, "encoder": "inverse", "hidden": (17,), "n_negatives": 14, "batch_size": 130 + 16,
        "n_steps": 11, "lr": 2e-3,
    }  # fmt: skip
    assert set(others) == set(Setting.__annotations__)
    plain, arrays = recover(SHORT)
    for name, value in others.items():
        row, changed = recover(replace(SHORT, **{name: value}))
        assert not np.array_equal(changed["history"], arrays["history"]), name
        assert row["loss"] != plain["loss"], name


@pytest.mark.usefixtures("_brief")
def test_what_a_run_returns_has_its_shape():
    row, arrays = recover(replace(SHORT, n_steps=101))
    assert arrays["history"].shape == (3,)
    assert arrays["latents"].shape == arrays["recovered"].shape == (600, 3)
    np.testing.assert_allclose(np.linalg.norm(arrays["recovered"], axis=1), 1, atol=1e-5)
    assert row["r2"] == pytest.approx(np.mean(row["r2_axis"]))
    assert len(row["r2_axis"]) == 3


def folded(z):
    return torch.cat([z[:, :1].abs(), z[:, 1:]], 1)


def twisted(z):
    """Turn the last two coordinates by an angle that depends on the first."""
    (u, x, y), angle = z.T, 3 * z[:, 0]
    return torch.stack([u, x * angle.cos() - y * angle.sin(), x * angle.sin() + y * angle.cos()], 1)


@pytest.fixture
def run_of(monkeypatch, _brief):
    """Return the row of a run whose encoder is a given map of the latents, and learns nothing."""

    class Known(torch.nn.Module):
        def __init__(self, found):
            super().__init__()
            self.found = found

        def forward(self, x):
            return self.found(x)

    def run(found):
        monkeypatch.setattr(recovery, "Network", lambda *_: Known(found))
        monkeypatch.setattr(recovery, "minimise", lambda *_: [0.0])
        row, _ = recover(Setting())
        for of in ("r2", "r2_kernel"):
            assert row[of] == pytest.approx(np.mean(row[f"{of}_axis"]))
        assert row["r2_untrained"] == pytest.approx(row["r2"], abs=1e-5)
        return row

    return run


#: E|z - z̃|² of positive pairs on S²: 2 - 2 (coth κ - 1/κ).
APART = 2 - 2 * (1 / math.tanh(1 / 0.3) - 0.3)


@pytest.mark.parametrize("found", [lambda z: z, lambda z: -z[:, [1, 2, 0]]])
def test_of_the_latents_in_another_order_and_mirrored_nothing_is_lost(found, run_of):
    row = run_of(found)
    np.testing.assert_allclose(row["r2_axis"], 1, atol=1e-6)
    assert min(row["r2_kernel_axis"]) > 0.95
    assert row["mcc"] == pytest.approx(1)
    assert max(row["angle"], row["orthogonal"]) < 1e-3
    assert row["alignment"] == pytest.approx(APART, abs=0.06)
    assert row["uniformity"] == pytest.approx(-4 + math.log(math.sinh(4) / 4), abs=0.06)
    assert row["loss"] == pytest.approx(row["identity"], abs=1e-4)


def test_a_fold_loses_its_axis_and_a_twist_loses_nothing_that_a_kernel_does_not_read(run_of):
    fold, twist = run_of(folded), run_of(twisted)
    for of in ("r2_axis", "r2_kernel_axis"):
        assert fold[of][0] < 0.1 < 0.95 < min(fold[of][1:])
    assert 0.1 < fold["alignment"] < APART  # no pair is farther apart
    assert max(twist["r2_axis"][1:]) < 0.6 < 0.95 < min(twist["r2_kernel_axis"])


def test_points_are_encoded_each_for_itself():
    """Batch normalisation has the statistics of training, and not those of what else is encoded."""
    with Rng(0).scope("encoder"):
        network, x = Network(3, 3, (8,)), torch.randn(40, 3)
    network.train()(x)
    torch.testing.assert_close(encoded(network, x[:2]), encoded(network, x)[:2])


def test_the_rate_falls_along_a_cosine():
    """Of a loss with a gradient of 1, each step of Adam is as long as the rate."""

    class Place(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.at = torch.nn.Parameter(torch.zeros(()))

    place, went = Place().eval(), []

    def loss():
        assert place.training
        went.append(place.at.item())
        return place.at

    minimise(loss, place, 10, 0.1)
    steps = -np.diff([*went, place.at.item()])
    rates = 0.1 * (1 + np.cos(np.pi * np.arange(10) / 10)) / 2
    np.testing.assert_allclose(steps, rates, atol=1e-6)


QUICK = Setting(n_negatives=31, batch_size=256, n_steps=400, hidden=(64, 64), lr=3e-3)


def test_a_sphere_is_recovered_where_positives_reach_all_of_it(monkeypatch):
    monkeypatch.setattr(recovery, "N_SETS", 20)
    row, _ = recover(replace(QUICK, mixing="linear"))
    assert row["r2"] > 0.98
    assert row["loss"] - row["identity"] < 0.05
    assert row["angle"] < 0.12
    assert row["orthogonal"] < 0.15
    assert row["uniformity"] < -2.0


def test_what_varies_is_lost_where_positives_keep_a_coordinate(monkeypatch):
    monkeypatch.setattr(recovery, "N_SETS", 20)
    row, _ = recover(replace(QUICK, n_fixed=1, n_steps=600))
    assert max(row["r2_axis"][1:]) < 0.1 < row["r2_untrained"]
    assert row["loss"] < row["identity"] - 0.3
    assert row["alignment"] < 0.05


@pytest.mark.usefixtures("_brief")
def test_nothing_is_learned_from_positives_of_other_anchors(monkeypatch):
    """A control: the same minibatches with positives that were moved on by one."""

    def shuffled(setting):
        for anchors, positives, negatives in minibatches(setting):
            yield Minibatch(anchors, positives.roll(1, 0), negatives)

    monkeypatch.setattr(recovery, "minibatches", shuffled)
    row, arrays = recover(replace(QUICK, mixing="linear"))
    # a query that knows nothing of its key takes each of 32 to be as probable
    assert arrays["history"][-1] > math.log(32) - 0.02
    assert row["loss"] > row["identity"] + 0.4
    assert row["angle"] > 0.3


def test_a_loss_that_is_not_finite_stops_the_run():
    layer = torch.nn.Linear(1, 1)

    def loss():
        return layer(torch.ones(1, 1)).sum() * (math.nan if len(steps) == 60 else 1.0)

    steps = []
    with pytest.raises(FitError, match=r"The loss is nan after 100 steps: lower lr"):
        recovery.minimise(lambda: steps.append(0) or loss(), layer, 500, 1e-3)
    assert len(steps) == 100


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kappa": 0.0}, r"kappa=0\.0: expected a number above 0"),
        ({"kappa": -2.0}, r"kappa=-2\.0: expected a number above 0"),
        ({"kappa": 1e9}, r"kappa=1000000000\.0: expected .* up to 100,000"),
        ({"kappa": math.nan}, "kappa"),
        ({"ratio": -0.1}, "ratio"),
        ({"ratio": 1.1}, "ratio"),
        ({"ratio": 0.07, "n_negatives": 7}, r"is 0 of them, .* Raise n_negatives to 9"),
        ({"ratio": 0.98, "n_negatives": 20}, r"is 20 of them, .* Raise n_negatives to 26"),
        ({"ratio": math.nan}, "ratio"),
        ({"n_fixed": 4}, r"n_fixed=4: latents have 3 coordinates, so at most 3 can be fixed"),
        ({"n_fixed": -1}, "n_fixed"),
        ({"n_negatives": 512}, r"n_negatives=512 of batch_size=512: at most 511 other anchors"),
        ({"n_negatives": 600, "ratio": 1.0}, r"an anchor and its 600 negatives of its own support"),
        ({"n_latent": 201}, "n_latent"),
        ({"n_negatives": 0}, "n_negatives"),
        ({"sampler": "theorm"}, "theorem"),
        ({"encoder": "invers"}, "inverse"),
        ({"mixing": "spirl"}, "spiral"),
        ({"mixing": "spiral", "n_latent": 4}, "n_latent=3"),
        ({"mixing": "mlp", "encoder": "inverse"}, "there is none for mixing='mlp'"),
        ({"n_fixd": 1}, "n_fixed"),
        ({"n_latent": 1}, "n_latent"),
        ({"lr": math.nan}, "lr"),
    ],
)
def test_bad_settings_are_refused_at_once(options, message):
    with pytest.raises(ConfigError, match=message):
        Setting(**options)


def test_as_many_negatives_as_there_are_anchors_are_allowed():
    for options in ({"n_negatives": 511}, {"n_negatives": 511, "ratio": 1.0}):
        assert draw(Setting(**options)).negatives.shape == (512, 511)


@pytest.mark.parametrize("kappa", [1.0, 8.0])
def test_the_loss_in_training_has_the_temperature_of_the_positives(kappa):
    setting = Setting(kappa=kappa, n_negatives=1000, batch_size=2000)
    identity = torch.nn.Identity()
    with Rng(0).scope("train"):
        loss = recovery._loss(draw(setting), setting, identity, identity).item()
    assert loss == pytest.approx(full_support(kappa, 3, 1000), abs=0.06)
