"""Time itself and the analog are what they say, and only held-out parts of the training series choose."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from chreode.bench.forecasters import BASELINES, _regression
from chreode.data.series import SeriesBatch
from chreode.learn import analogs


def fans(n, seed, *, apart=1.0, noise=0.05, times=30):
    """Return series of which every other one rises and the others fall, from starts that tell which."""
    rng, t = np.random.default_rng(seed), np.linspace(0, 2, times)
    way = np.where(np.arange(n) % 2, 1.0, -1.0)[:, None]
    x = np.stack([way * (apart + t), way * t**2, np.sin(3 * t) + 0 * way], 2)
    x = torch.tensor(x + noise * rng.normal(size=x.shape), dtype=torch.float32)
    grid = torch.tensor(t, dtype=torch.float32).expand(n, -1)
    names = tuple(f"s{i}" for i in range(n))
    return SeriesBatch(names, grid, x, torch.ones_like(x), grid[:, 0], x[:, 0])


def error(name, train, new):
    forecast = BASELINES[name](train, 0.1).forecast(new, ())
    return float((forecast - new.values).square().mean())


@pytest.mark.slow
@pytest.mark.parametrize("n", [2, 3, 12])
def test_the_analog_follows_those_that_begin_alike(n):
    train, new = fans(n, 0), fans(4, 1)
    assert error("analog", train, new) < 0.05 * error("time itself", train, new)


@pytest.mark.slow
def test_starts_that_tell_nothing_are_not_followed():
    # what rises and what falls begins at one place: nothing is lost by asking where
    train, new = fans(14, 0, apart=0.0, noise=0.3), fans(4, 1, apart=0.0, noise=0.3)
    assert error("analog", train, new) < 1.3 * error("time itself", train, new)


def test_series_have_the_same_say_over_time():
    train, new = fans(3, 0), fans(2, 1)
    heavy = replace(train, weight=train.weight * torch.tensor([50.0, 1.0, 1.0])[:, None, None])
    torch.testing.assert_close(
        analogs.over_time(heavy, new, 0.2), analogs.over_time(train, new, 0.2), atol=1e-4, rtol=1e-4
    )
    # beyond the training times the last ones are told
    late = replace(new, times=new.times + 5.0)
    last = analogs.over_time(train, new, 0.2)[:, -1]
    torch.testing.assert_close(analogs.over_time(train, late, 0.2)[:, -1], last)


def test_nearness_is_a_gaussian_of_how_far_starts_are_apart():
    train = fans(4, 0, noise=0.0)
    found = analogs.nearness(train, train, 0.7, 1, 0.1)
    # the starts, -1 and 1, spread by 1 and are 2 apart
    expected = np.exp(-0.5 * (2 / 0.7) ** 2)
    np.testing.assert_allclose(
        found, np.where(np.eye(2)[[0, 1, 0, 1]][:, [0, 1, 0, 1]], 1, expected), rtol=0.1
    )


def test_nearness_is_the_same_far_from_the_origin():
    train = fans(30, 0)
    far = replace(train, values=train.values + 5e3, start=train.start + 5e3)
    near = analogs.nearness(train, train, 0.7, 1, 0.1)
    assert float((analogs.nearness(far, far, 0.7, 1, 0.1) - near).abs().max()) < 0.02


@pytest.mark.parametrize("n", [1, 3, 12])
def test_held_out_parts_are_no_part_of_what_is_learned_from(n):
    train = fans(n, 0)
    pairs = list(analogs.parts(train, 0.1))
    for learned, held_out in pairs:
        if n >= analogs.MANY:
            assert not set(learned.names) & set(held_out.names)
            assert {*learned.names, *held_out.names} == set(train.names)
        else:
            assert ((learned.weight > 0) ^ (held_out.weight > 0)).all()
    # what is held out says nothing of where the others start
    moved = (
        replace(train, values=train.values + 9.0 * (pairs[0][1].weight > 0)) if n < 10 else train
    )
    again = next(iter(analogs.parts(moved, 0.1)))[0]
    torch.testing.assert_close(again.start, pairs[0][0].start)


@pytest.mark.parametrize("n", [1, 3, 7])
def test_a_fold_of_a_regression_is_of_whole_series(n):
    train = fans(n, 0)
    x, _, folds = _regression(train, 0.1)
    of = np.repeat(np.arange(n), len(x) // n)
    assert len(folds) == (5 if n == 1 else min(5, n))
    for learned, held_out in folds:
        assert not set(learned) & set(held_out)
        if n > 1:
            assert not set(of[learned]) & set(of[held_out])
        else:  # spans of time
            assert (np.diff(held_out) == 1).all()


def test_settings_that_were_chosen_are_told():
    assert BASELINES["time itself"](fans(12, 0), 0.1).note.startswith("bandwidth 0.")
    assert "components" in BASELINES["analog"](fans(12, 0), 0.1).note


@pytest.mark.parametrize("n", [3, 12])
def test_the_plainest_of_settings_that_are_as_good_is_taken(n):
    def forecast(_, held_out, wrong):
        return held_out.values + wrong

    settings = [1.0, 0.1, -0.1, 0.5]
    assert analogs.chosen(fans(n, 0), 0.1, settings, forecast) == -0.1
