"""Depth by attributes: what is seen often is itself, what is seen seldom is the sum of its parts."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import ks_2samp
from sklearn.linear_model import Ridge

from chreode.models.parts.depth import SHRINKAGE, Depth
from chreode.schema import Spec

SPEC = Spec(
    ("counts", "label", "batch"),
    {"counts": ("a",)},
    {"label": ("B", "T"), "batch": ("p1", "p2")},
    {"label": (2,), "batch": (2,)},
)


def drawn(counts, seed=0):
    """Return codes, log depths and no numbers: means 7 + label + batch / 2, and 1 more for T of p1."""
    rng = np.random.default_rng(seed)
    codes = np.concatenate(
        [np.tile([label, batch], (n, 1)) for (label, batch), n in counts.items()]
    )
    y = 7 + codes[:, 0] + codes[:, 1] / 2 + rng.normal(scale=0.3, size=len(codes))
    y += (codes[:, 0] == 1) & (codes[:, 1] == 0)
    return torch.from_numpy(y[:, None]).float(), torch.from_numpy(codes), torch.zeros(len(codes), 0)


def filled(counts):
    depth, data = Depth(SPEC, 1), drawn(counts)
    depth.fill(*data)
    return depth, data


def at(depth, label, batch):
    mean, scale = depth.parameters_of(torch.tensor([[label, batch]]), torch.zeros(1, 0))
    return float(mean), float(scale)


def test_a_combination_of_many_cells_has_its_own_mean_and_spread():
    depth, (y, codes, _) = filled({(0, 0): 500, (0, 1): 500, (1, 0): 500, (1, 1): 500})
    for label in range(2):
        for batch in range(2):
            mine = y[(codes == torch.tensor([label, batch])).all(1)]
            mean, scale = at(depth, label, batch)
            assert mean == pytest.approx(float(mine.mean()), abs=0.02)
            assert scale == pytest.approx(float(mine.std()), abs=0.02)


def test_a_combination_never_seen_is_the_sum_of_effects():
    depth, (y, codes, _) = filled({(0, 0): 300, (0, 1): 300, (1, 1): 300})
    mean, scale = at(depth, 1, 0)
    assert mean == pytest.approx(8.0, abs=0.06)
    assert scale == pytest.approx(0.3, abs=0.03)
    hot = torch.nn.functional.one_hot(codes[:, 0], 2), torch.nn.functional.one_hot(codes[:, 1], 2)
    ridge = Ridge(alpha=1.0).fit(torch.cat(hot, 1).numpy(), y.numpy()[:, 0])
    assert mean == pytest.approx(float(ridge.predict([[0, 1, 1, 0]])[0]), abs=0.01)


def test_few_cells_are_shrunk_by_the_formula():
    depth, (y, codes, _) = filled({(0, 0): 400, (0, 1): 400, (1, 1): 400, (1, 0): 5})
    own = float(y[(codes == torch.tensor([1, 0])).all(1)].mean())
    additive = float(depth._design(torch.tensor([[1, 0]]), torch.zeros(1, 0)) @ depth.effects)
    expected = (5 * own + SHRINKAGE * additive) / (5 + SHRINKAGE)
    assert at(depth, 1, 0)[0] == pytest.approx(expected, abs=1e-3)
    assert additive + 0.1 < expected < own


def test_draws_have_the_stated_moments_and_correlate_as_the_cells_do():
    spec = Spec(("counts", "protein"), {"counts": ("a",), "protein": ("b",)})
    rng = np.random.default_rng(0)
    y = rng.multivariate_normal([8, 5], [[0.25, 0.2], [0.2, 0.36]], 4000)
    y[:500, 1] = np.nan  # cells without proteins
    depth = Depth(spec, 2)
    nothing = torch.zeros(4000, 0, dtype=torch.long), torch.zeros(4000, 0)
    depth.fill(torch.from_numpy(y).float(), *nothing)
    torch.manual_seed(0)
    found = np.concatenate([depth.sample(*nothing).numpy() for _ in range(5)])
    np.testing.assert_allclose(found.mean(0), [8, 5], atol=0.03)
    np.testing.assert_allclose(np.cov(found.T), [[0.25, 0.2], [0.2, 0.36]], atol=0.03)
    scaled = depth.standardised(torch.tensor([[8.0, np.nan]]))
    assert abs(float(scaled[0, 0])) < 0.05
    assert bool(scaled[0, 1].isnan())


def test_draws_have_the_shape_of_the_cells():
    """Depths of two kinds of cells in one type: no normal has two peaks."""
    rng = np.random.default_rng(0)
    y = np.where(rng.random(6000) < 0.4, 6.0, 8.0) + 0.2 * rng.normal(size=6000)
    codes, numbers = torch.zeros(6000, 2, dtype=torch.long), torch.zeros(6000, 0)
    apart = {}
    for observed in (True, False):
        depth = Depth(SPEC, 1, observed=observed)
        depth.fill(torch.from_numpy(y[:, None]).float(), codes, numbers)
        torch.manual_seed(0)
        apart[observed] = ks_2samp(y, depth.sample(codes, numbers)[:, 0].numpy()).statistic
    assert apart[True] < 0.03
    assert apart[False] > 0.15


def test_the_noise_of_counting_is_not_counted_twice():
    """Log totals of spread 0.5 whose counts add a variance of 0.09: ℓ has the rest."""
    rng = np.random.default_rng(0)
    log_l = rng.normal(8, 0.4, 20_000)
    y = log_l + rng.normal(-0.045, 0.3, 20_000)
    codes, numbers = torch.zeros(20_000, 2, dtype=torch.long), torch.zeros(20_000, 0)
    depth = Depth(SPEC, 1)
    depth.fill(torch.from_numpy(y[:, None]).float(), codes, numbers, torch.full((20_000, 1), 0.09))
    mean, scale = at(depth, 0, 0)
    assert mean == pytest.approx(8.0, abs=0.01)
    assert scale == pytest.approx(0.4, abs=0.01)
