"""Shares of a factor, from readings that are drawn: closed forms, and controls without a second reading."""

from __future__ import annotations

import numpy as np
import pytest

from chreode.identify.shares import share_of

SHARES = (0, 0.25, 0.5, 1)


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


def test_intervals_are_those_of_95_percent():
    """They are as wide as the shares of new cells are spread: 1.96 standard deviations to either side."""
    found = []
    for seed in range(40):
        cells, views, rng = readings(0.5, n=150, seed=seed)
        found.append(share_of(cells, views, classes=False, draws=200, generator=rng))
    width = np.mean([share.high - share.low for share in found])
    assert width == pytest.approx(2 * 1.96 * np.std([share.coverage for share in found]), rel=0.3)


@pytest.mark.parametrize("classes", [False, True])
def test_it_is_the_same_whichever_half_comes_first(classes):
    cells, views, _ = class_readings(0.25, (0.25,) * 4) if classes else readings(0.25)
    views = views * np.array([1.0, 0.7])[:, None]  # one half reads positives worse
    one, two = (
        share_of(*given, classes=classes, draws=5, generator=np.random.default_rng(0)).coverage
        for given in ((cells, views), (cells[..., ::-1, :], views[..., ::-1, :]))
    )
    assert one == pytest.approx(two, rel=1e-9)


@pytest.mark.parametrize("agreed", [0.08, 0.12])
def test_positives_are_read_if_both_readings_agree_by_a_tenth(agreed):
    """Readings correlate by the share of their variance that is the factor's."""
    cells, views, rng = readings(0.25, error=np.sqrt((1 / agreed - 1) / 12))
    found = share_of(cells, views, classes=False, draws=10, generator=rng)
    assert found.agreed == pytest.approx(agreed, abs=0.015)
    assert np.isnan(found.coverage) == (agreed < 0.1)
