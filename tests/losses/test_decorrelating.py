"""Barlow Twins, VICReg, alignment and uniformity, masked errors: closed forms, NumPy, and gradients."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from chreode.losses.barlowtwins import barlow_twins, cross_correlation
from chreode.losses.masked import masked_error
from chreode.losses.sphere import alignment, uniformity
from chreode.losses.vicreg import vicreg

N, D = 9, 4


def drawn(seed, n=N, d=D):
    return torch.from_numpy(np.random.default_rng(seed).normal(size=(n, d)))


def orthogonal(n=16, d=3, scale=1.0):
    """Return dimensions of ±scale, of mean 0, that do not correlate (columns of a Hadamard table)."""
    table = torch.ones(1, 1, dtype=torch.float64)
    while len(table) < n:
        table = torch.cat([torch.cat([table, table], 1), torch.cat([table, -table], 1)])
    return scale * table[:, 1 : d + 1]


def test_barlow_twins_is_what_numpy_gives():
    one, two = drawn(0), 0.5 * drawn(0) + drawn(1)
    table = np.corrcoef(one, two, rowvar=False)[:D, D:]
    np.testing.assert_allclose(cross_correlation(one, two), table, rtol=1e-4)
    wanted = ((1 - table.diagonal()) ** 2).sum()
    wanted += 0.3 * (table**2).sum() - 0.3 * (table.diagonal() ** 2).sum()
    assert barlow_twins(one, two, 0.3).item() == pytest.approx(wanted, rel=1e-4)


def test_barlow_twins_of_orthogonal_duplicated_and_constant_dimensions():
    z = orthogonal(scale=100.0)
    assert barlow_twins(z, z).item() == pytest.approx(0, abs=1e-8)
    assert barlow_twins(z, -z).item() == pytest.approx(4 * 3)  # (1 + 1)² for each
    twice = torch.cat([z, z[:, :1]], 1)  # dimensions 0 and 3 are one: C_03 = C_30 = 1
    assert barlow_twins(twice, twice, 0.25).item() == pytest.approx(2 * 0.25)
    constant = z.clone()
    constant[:, 1] = 7.0  # it correlates with nothing, not with itself
    assert barlow_twins(constant, constant).item() == pytest.approx(1, abs=1e-8)


def test_vicreg_is_what_numpy_gives():
    one, two = 0.7 * drawn(0), 0.4 * drawn(1)
    found = vicreg(one, two)
    spreads = [np.sqrt(z.numpy().var(0, ddof=1) + 1e-4) for z in (one, two)]
    tables = [np.cov(z, rowvar=False) for z in (one, two)]
    off = [(t**2).sum() - (t.diagonal() ** 2).sum() for t in tables]
    assert found.invariance.item() == pytest.approx(((one - two).numpy() ** 2).mean())
    wanted = np.mean([np.maximum(0, 1 - s).mean() for s in spreads])
    assert found.variance.item() == pytest.approx(wanted)
    assert wanted > 0.2
    assert found.covariance.item() == pytest.approx(sum(off) / D)


def test_vicreg_of_orthogonal_duplicated_and_constant_dimensions():
    z = orthogonal(scale=2.0)
    assert [t.item() for t in vicreg(z, z + 3)] == pytest.approx([9, 0, 0])
    twice = torch.cat([z, z[:, :1]], 1)
    both = 4.0 * 16 / 15  # variance of the dimension that is there twice
    assert vicreg(twice, twice).covariance.item() == pytest.approx(2 * 2 * both**2 / 4)
    constant = torch.ones(N, D, dtype=torch.float64)
    # of a constant dimension 1 − √(10⁻⁴) is lacking, in one view of two
    assert vicreg(constant, 2.0 * drawn(0)).variance.item() == pytest.approx(0.99 / 2, abs=0.02)
    assert vicreg(constant, constant).variance.item() == pytest.approx(0.99)
    assert vicreg(constant, constant).covariance.item() == 0
    single = vicreg(drawn(0, 1), drawn(1, 1))
    assert [single.variance, single.covariance] == [0, 0]
    assert single.invariance > 0


def test_alignment_of_known_angles():
    angle = torch.tensor([0.0, math.pi / 3, math.pi], dtype=torch.float64)
    one = torch.stack([angle.cos(), angle.sin()], 1)
    two = torch.tensor([[5.0, 0.0]], dtype=torch.float64).repeat(3, 1)
    chords = 2 * (angle / 2).sin()
    for power in (1.0, 2.0, 3.0):
        assert alignment(one, two, power).item() == pytest.approx((chords**power).mean().item())


def test_uniformity_is_the_sum_over_pairs_and_of_the_whole_sphere_as_known():
    x = drawn(0)
    unit = (x / x.norm(dim=1, keepdim=True)).numpy()
    pairs = [math.exp(-3 * ((a - b) ** 2).sum()) for a, b in itertools.permutations(unit, 2)]
    assert uniformity(x, 3.0).item() == pytest.approx(math.log(np.mean(pairs)), rel=1e-12)
    # evenly spread on S² (a spiral of Fibonacci), less the pairs of a point with itself
    n = 3000
    height = 1 - (2 * torch.arange(n, dtype=torch.float64) + 1) / n
    turn = math.pi * (3 - math.sqrt(5)) * torch.arange(n, dtype=torch.float64)
    ring = (1 - height**2).sqrt()
    sphere = torch.stack([ring * turn.cos(), ring * turn.sin(), height], 1)
    known = -4 + math.log(math.sinh(4) / 4)
    with_itself = math.log(math.exp(uniformity(sphere).item()) * (n - 1) / n + 1 / n)
    assert with_itself == pytest.approx(known, abs=1e-3)
    assert known == pytest.approx(-2.08, abs=0.005)
    assert uniformity(sphere[:300]).item() > known + 0.5  # a cap
    assert uniformity(torch.ones(5, 3)).item() == pytest.approx(0, abs=1e-6)
    assert uniformity(torch.ones(1, 3)).item() == 0


def test_masked_errors_are_of_hidden_entries_alone():
    found, x = drawn(0), drawn(1)
    hidden = drawn(2) > 0.3
    wanted = ((found - x).numpy()[hidden.numpy()] ** 2).mean()
    assert masked_error(found, x, hidden).item() == pytest.approx(wanted, rel=1e-12)
    seen = x.clone()
    seen[~hidden] = torch.nan  # what is not hidden is not looked at
    y = found.clone().requires_grad_()
    loss = masked_error(y, seen, hidden)
    loss.backward()
    assert loss.item() == pytest.approx(wanted, rel=1e-12)
    assert (y.grad[~hidden] == 0).all()
    assert (y.grad[hidden] != 0).all()
    assert masked_error(found, x, torch.zeros_like(hidden)).item() == 0


LOSSES = {
    "barlow_twins": barlow_twins,
    "vicreg": lambda a, b: 5 * sum(vicreg(a, b)[:2]) + vicreg(a, b).covariance,
    "alignment": alignment,
    "uniformity": lambda a, b: uniformity(a) + uniformity(b),
    "masked_error": lambda a, b: masked_error(a, b, torch.ones_like(a, dtype=torch.bool)),
}


@pytest.mark.parametrize("name", LOSSES)
def test_gradients_are_those_of_finite_differences(name):
    one, two = 0.5 * drawn(0, 5, 3), 0.5 * drawn(1, 5, 3)
    assert torch.autograd.gradcheck(LOSSES[name], (one.requires_grad_(), two.requires_grad_()))


@pytest.mark.parametrize("name", LOSSES)
def test_neither_the_order_of_cells_nor_that_of_views_matters(name):
    loss, one, two = LOSSES[name], drawn(0), drawn(1)
    order = torch.from_numpy(np.random.default_rng(0).permutation(N))
    known = loss(one, two).item()
    assert loss(one[order], two[order]).item() == pytest.approx(known, rel=1e-10)
    assert loss(two, one).item() == pytest.approx(known, rel=1e-10)
    if name in ("alignment", "uniformity"):
        lengths = torch.linspace(0.1, 30, N, dtype=torch.float64)[:, None]
        assert loss(lengths * one, two / lengths).item() == pytest.approx(known, rel=1e-10)
    else:
        others = torch.cat([one[1:], one[:1]])  # pairs of cells that do not belong together
        assert abs(loss(others, one) - loss(one, one)).item() > 0.01


def test_correlations_know_no_scale_or_shift():
    one, two = 10 * drawn(0), 10 * drawn(1)
    scale = torch.tensor([1.0, 5.0, 0.5, 20.0])
    known = barlow_twins(one, two).item()
    assert barlow_twins(3 + scale * one, two - 7).item() == pytest.approx(known, rel=1e-4)
    moved = vicreg(one + 5, two + 5)
    for found, wanted in zip(moved, vicreg(one, two), strict=True):
        assert found.item() == pytest.approx(wanted.item(), rel=1e-10)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("n", [1, 2, N])
def test_zero_vectors_single_cells_and_half_precision_stay_finite(name, dtype, n):
    for one, two in (
        (drawn(0, n), drawn(1, n)),
        (torch.zeros(n, D), torch.zeros(n, D)),
        (torch.ones(n, D), torch.ones(n, D)),
        (100 * drawn(0, n), 1e-4 * drawn(1, n)),
    ):
        a = one.to(dtype).requires_grad_()
        loss = LOSSES[name](a, two.to(dtype))
        (gradient,) = torch.autograd.grad(loss, a)
        assert loss.isfinite()
        assert gradient.isfinite().all()
