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
from chreode.identify.recovery import Minibatch, Setting, final_losses, minibatches, recover
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
        ({"n_negatives": 600, "ratio": 1.0}, r"n_negatives=600 of batch_size=512"),
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
