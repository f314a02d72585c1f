"""Coverage of single classes: what simulated positives change of each, whatever the errors."""

from __future__ import annotations

import numpy as np
import pytest

from chreode.identify.coverage import class_shares
from chreode.identify.shares import share_of

CASES = [
    ((0.25,) * 4, (0, 0, 0, 0)),
    ((0.25,) * 4, (0.25,) * 4),
    ((0.25,) * 4, (1, 1, 1, 1)),
    ((0.25,) * 4, (0.5, 0, 0, 0)),
    ((0.25,) * 4, (0.1, 0.3, 0.9, 0)),
    ((0.5, 0.5), (0.5, 0)),
    ((0.5, 0.5), (1, 1)),
    ((0.9, 0.05, 0.05), (0, 0, 0)),
    ((0.9, 0.05, 0.05), (0, 0.5, 0)),
    ((0.9, 0.05, 0.05), (0.5, 0, 0)),
    ((0.6, 0.3, 0.1), (0.25, 0.25, 0.25)),
    ((0.6, 0.3, 0.1), (1, 1, 1)),
]


def simulated(shares, chances, scale=1.0, shift=0.0, alike=0.0, error=0.2, n=5000, seed=0):
    """Return readings of cells and positives, which take a random class by the chance of their cell's.

    Probabilities are wrong in part. Both halves take a share `alike` of the cells, and their positives that
    stay, for half of the next class; positives are read on another scale, and with a shift.
    """
    rng = np.random.default_rng(seed)
    k = len(shares)
    code = rng.choice(k, n, p=shares)
    looks = np.eye(k)[code]
    doubtful = rng.random(n) < alike
    looks[doubtful] = (looks[doubtful] + np.roll(looks[doubtful], 1, axis=1)) / 2
    leaves = rng.random((n, 6)) < np.asarray(chances)[code][:, None]
    of = np.where(leaves, rng.integers(n, size=(n, 6)), np.arange(n)[:, None])

    def read(sure, scale=1.0, shift=0.0):
        sure = (scale * sure + shift)[..., None, None, :] * np.array([0.8, 0.6])[:, None]
        return sure + error * rng.normal(size=(*sure.shape[:-3], 1, 2, k))

    return read(looks), read(looks[of], scale, shift), code.astype(float), rng


def found_of(cells, views, code, rng):
    return np.array(class_shares(cells, views, code, draws=100, generator=rng))


def expected(shares, chances):
    """Return one minus the correlation between memberships of cells and positives, of each class."""
    pi, p = np.array(shares), np.array(chances)
    q = pi * (1 - p) + pi * (pi @ p)
    both = pi * (1 - p) + pi**2 * p
    return 1 - (both - pi * q) / np.sqrt(pi * (1 - pi) * q * (1 - q))


@pytest.mark.parametrize("chance", [0.0, 0.25, 1.0])
def test_if_all_classes_are_left_alike_each_has_the_chance(chance):
    for shares in ((0.25,) * 4, (0.6, 0.3, 0.1)):
        np.testing.assert_allclose(expected(shares, (chance,) * len(shares)), chance, atol=1e-12)


@pytest.mark.parametrize("given", [{}, {"scale": 0.8, "shift": 0.2}], ids=str)
@pytest.mark.parametrize(("shares", "chances"), CASES, ids=str)
def test_each_class_has_one_minus_the_correlation_of_memberships(shares, chances, given):
    """Also where chances differ, and positives are read on another scale."""
    found = found_of(*simulated(shares, chances, n=8000, **given))
    np.testing.assert_allclose(found[:, 0], expected(shares, chances), atol=0.06)
    assert (found[:, 1] <= found[:, 0]).all()
    assert (found[:, 0] <= found[:, 2]).all()


@pytest.mark.parametrize("chance", [0.0, 0.25, 1.0])
def test_cells_that_look_like_two_classes_change_nothing(chance):
    for shares in ((0.25,) * 4, (0.6, 0.3, 0.1)):
        found = found_of(*simulated(shares, (chance,) * len(shares), alike=0.2))
        np.testing.assert_allclose(found[:, 0], chance, atol=0.05)


@pytest.mark.parametrize(("shares", "chances"), CASES, ids=str)
def test_the_whole_is_among_its_classes(shares, chances):
    cells, views, code, rng = simulated(shares, chances)
    whole = share_of(cells, views, classes=True, draws=10, generator=rng).coverage
    of_classes = found_of(cells, views, code, rng)[:, 0]
    assert of_classes.min() - 0.02 <= whole <= of_classes.max() + 0.02


def test_intervals_hold_the_value_as_often_as_they_should():
    shares, chances = (0.3, 0.3, 0.4), (0.4, 0.1, 0.2)
    runs = np.stack([found_of(*simulated(shares, chances, n=300, seed=s)) for s in range(40)])
    truth = expected(shares, chances)
    held = (runs[..., 1] <= truth) & (truth <= runs[..., 2])
    assert held.mean(0).min() >= 0.8
    assert (runs[..., 2] - runs[..., 1]).max() < 0.4


def test_by_one_reading_a_class_that_stays_seems_left():
    cells, views, code, rng = simulated((0.25,) * 4, (0,) * 4)
    views = views + 0.5 * rng.normal(size=views.shape)  # positives are read worse than cells
    assert found_of(cells, views, code, rng)[:, 0].max() < 0.05
    twice = (x[..., [0, 0], :] for x in (cells, views))
    assert found_of(*twice, code, rng)[:, 0].min() > 0.15


def test_a_class_that_readers_cannot_tell_has_no_coverage():
    cells, views, code, rng = simulated((0.4, 0.3, 0.3), (0.2, 0.2, 0.2))
    for x in (cells, views):
        x[..., 2] = -1  # never the most probable
    found = found_of(cells, views, code, rng)
    assert np.isnan(found[2]).all()
    np.testing.assert_allclose(found[:2, 0], 0.2, atol=0.05)


def test_positives_that_say_nothing_of_a_class_have_no_coverage():
    cells, views, code, rng = simulated((0.4, 0.3, 0.3), (0.2, 0.2, 0.2))
    views[..., 1] = rng.normal(size=views.shape[:-1])
    found = found_of(cells, views, code, rng)
    assert np.isnan(found[1]).all()
