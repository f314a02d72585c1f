"""Latents and positives: whole distributions against analytic densities, grids and SciPy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.special import ive
from scipy.stats import gennorm, kstest, ortho_group

from chreode.errors import ConfigError
from chreode.identify import conditionals
from chreode.identify.conditionals import (
    Anisotropic,
    Around,
    Full,
    Restricted,
    require_concentration,
    von_mises_fisher,
)
from chreode.identify.spaces import Box, Euclidean, Sphere

#: The largest distance of two distribution functions that 1 in 1,000 samples exceeds is 1.95 / √n.
RARE = 1.95


def generic(k):
    """Return a direction that is no axis."""
    return F.normalize(torch.arange(1.0, k + 1).cos(), dim=0)


def drawn(kappa, k, n, mean=None):
    mean = generic(k) if mean is None else mean
    return von_mises_fisher(mean.expand(n, -1), torch.full((n,), float(kappa)))


def angles(x, mean):
    """Return the angle to the mean, which keeps its digits where it is small."""
    apart = (x.double() - mean.double()).norm(dim=1)
    return 2 * (apart / 2).clamp(max=1).asin().numpy()


def law_of_angles(kappa, k):
    """Return the distribution function of the angle, whose density is ∝ exp(κ cos a) sin^{k−2} a."""
    a = np.linspace(0, min(math.pi, 12 / math.sqrt(max(kappa, 1e-9))), 4001)
    density = np.exp(kappa * (np.cos(a) - 1)) * np.sin(a) ** (k - 2)
    mass = np.concatenate([[0], np.cumsum((density[1:] + density[:-1]) / 2)])
    return lambda x: np.interp(x, a, mass / mass[-1])


@pytest.mark.parametrize("kappa", [0.0, 0.1, 1.0, 10.0, 100.0, 1000.0])
@pytest.mark.parametrize("k", [2, 3, 4, 10])
def test_von_mises_fisher_has_its_density(k, kappa):
    torch.manual_seed(0)
    n, mean = 20_000, generic(k)
    x = drawn(kappa, k, n)
    torch.testing.assert_close(x.norm(dim=1), torch.ones(n), atol=1e-5, rtol=0)
    cosines = (x @ mean).double().numpy()
    expected = ive(k / 2, kappa) / ive(k / 2 - 1, kappa) if kappa else 0.0
    spread = math.sqrt(1 - expected**2 - (k - 1) * expected / kappa if kappa else 1 / k)
    assert abs(cosines.mean() - expected) < 4 * spread / math.sqrt(n) + 1e-6
    found = angles(x, mean)

    def distance(concentration):
        return kstest(found, law_of_angles(concentration, k)).statistic

    assert distance(kappa) < RARE / math.sqrt(n)
    if kappa >= 10:  # a control: the same sample is not of a concentration that differs by 10 %
        assert min(distance(0.9 * kappa), distance(1.1 * kappa)) > RARE / math.sqrt(n)


@pytest.mark.parametrize("k", [3, 4, 10])
@pytest.mark.parametrize("kappa", [0.0, 5.0])
def test_von_mises_fisher_has_no_direction_but_the_mean(k, kappa):
    torch.manual_seed(1)
    n, mean = 60_000, generic(k).double()
    x = drawn(kappa, k, n).double()
    along = x @ mean
    second = (along**2).mean()
    outer = mean.outer(mean)
    expected = second * outer + (1 - second) / (k - 1) * (torch.eye(k) - outer)
    torch.testing.assert_close(x.T @ x / n, expected, atol=0.008, rtol=0)
    torch.testing.assert_close(x.mean(0), along.mean() * mean, atol=0.008, rtol=0)


@pytest.mark.parametrize("k", [3, 5])
def test_draws_turn_with_their_mean(k):
    turn = torch.from_numpy(ortho_group.rvs(k, random_state=0)).float()
    angle = []
    for mean in (generic(k), turn @ generic(k)):
        torch.manual_seed(2)
        angle.append(angles(drawn(4.0, k, 2000, mean), mean))
    # the same numbers decide how far, whatever the mean is
    np.testing.assert_allclose(angle[0], angle[1], atol=1e-5)


@pytest.mark.parametrize("k", [2, 3, 4, 10])
def test_a_large_concentration_keeps_its_digits(k):
    torch.manual_seed(3)
    mean = generic(k)
    x = drawn(1e5, k, 20_000)
    short = ((x.double() - mean.double()) ** 2).sum(1) / 2
    assert short.mean().item() == pytest.approx((k - 1) / 2e5, rel=0.05)


@pytest.mark.parametrize("k", [1, 3, 4])
def test_rows_have_their_own_means_and_concentrations(k):
    torch.manual_seed(4)
    n = 30_000
    means = F.normalize(torch.randn(3, k), dim=1)
    if k == 1:
        means = torch.tensor([[1.0], [-1.0], [1.0]])
    kappas = torch.tensor([0.5, 5.0, 200.0])
    x = von_mises_fisher(means.repeat(n, 1), kappas.repeat(n))
    for i, kappa in enumerate(kappas.tolist()):
        found = (x[i::3] @ means[i]).mean().item()
        expected = math.tanh(kappa) if k == 1 else ive(k / 2, kappa) / ive(k / 2 - 1, kappa)
        assert found == pytest.approx(expected, abs=0.016 if kappa < 1 else 0.006)


@pytest.mark.parametrize("n", [2, 3, 10])
def test_the_sphere_is_evenly_covered(n):
    torch.manual_seed(5)
    z = Sphere(n).draw(50_000).double()
    torch.testing.assert_close(z.norm(dim=1), torch.ones(50_000).double(), atol=1e-6, rtol=0)
    torch.testing.assert_close(z.mean(0), torch.zeros(n).double(), atol=0.01, rtol=0)
    torch.testing.assert_close(z.T @ z / 50_000, torch.eye(n).double() / n, atol=0.01, rtol=0)
    axis = torch.eye(n)[0]
    assert kstest(angles(z, axis), law_of_angles(0, n)).statistic < RARE / math.sqrt(50_000)


@pytest.mark.parametrize("power", [1.0, 2.0, 3.0])
def test_boxes_and_spaces_have_their_marginals(power):
    torch.manual_seed(6)
    n = 20_000
    z = Euclidean(2, power).draw(n).numpy()
    box = Box(2).draw(n).numpy()
    for i in range(2):
        assert kstest(z[:, i], gennorm(power).cdf).statistic < RARE / math.sqrt(n)
        assert kstest(z[:, i], gennorm(power, scale=1.1).cdf).statistic > RARE / math.sqrt(n)
        assert kstest(box[:, i], "uniform").statistic < RARE / math.sqrt(n)
    assert abs(np.corrcoef(z.T)[0, 1]) < 0.03
    assert abs(np.corrcoef(box.T)[0, 1]) < 0.03


@pytest.mark.parametrize(("k", "n_fixed"), [(3, 1), (4, 1), (5, 3), (3, 2)])
@pytest.mark.parametrize("sampler", ["theorem", "published"])
def test_what_is_kept_is_kept_and_the_rest_has_its_concentration(sampler, k, n_fixed):
    torch.manual_seed(7)
    n, kappa, free = 60_000, 6.0, k - n_fixed
    z = Sphere(k).draw(n)
    positives = Restricted(n_fixed, kappa, sampler).draw(z)
    assert torch.equal(positives[:, :n_fixed], z[:, :n_fixed])
    torch.testing.assert_close(positives.norm(dim=1), torch.ones(n), atol=1e-5, rtol=0)
    v, of_positives = (F.normalize(x[:, n_fixed:], dim=1) for x in (z, positives))
    cosines = (v * of_positives).sum(1).double().numpy()
    r = z[:, n_fixed:].norm(dim=1).double().numpy()
    for part in np.array_split(np.argsort(r), 5):
        at, other = kappa * r[part] ** 2, np.full(len(part), kappa)
        if sampler == "published":
            at, other = other, at
        expected, wrong = (mean_of(c, free) for c in (at, other))
        error = cosines[part].std() / math.sqrt(len(part))
        # where all but a few of 12,000 are equal, their spread says too little
        assert abs(cosines[part].mean() - expected) < 4 * error + 3 / len(part)
        if abs(wrong - expected) > 0.1:
            assert abs(cosines[part].mean() - wrong) > 4 * error + 3 / len(part)


def mean_of(kappa, k):
    return (ive(k / 2, kappa) / ive(k / 2 - 1, kappa)).mean()


def test_the_theorem_s_density_is_that_of_products_with_the_anchor():
    """Equation 6 on S²: on the circle of radius r, e^{κ z·z̃} is von Mises with κr²."""
    torch.manual_seed(8)
    z = torch.tensor([[0.6, 0.48, 0.64]])
    found = Restricted(1, 9.0, "theorem").draw(z.expand(20_000, -1)).double().numpy()
    a = np.linspace(-math.pi, math.pi, 4001)
    circle = np.stack([np.full(4001, 0.6), 0.8 * np.cos(a), 0.8 * np.sin(a)], 1)
    density = np.exp(9 * circle @ z[0].double().numpy())
    mass = np.cumsum(density) / density.sum()
    at = np.arctan2(found[:, 2], found[:, 1])
    assert kstest(at, lambda x: np.interp(x, a, mass)).statistic < RARE / math.sqrt(20_000)


@pytest.mark.parametrize("sampler", ["theorem", "published"])
def test_none_one_or_all_coordinates_may_be_free(sampler):
    z = Sphere(4).draw(4000)
    law = Restricted(4, 5.0, sampler)
    assert torch.equal(law.draw(z), z)
    assert torch.equal(law.support(z), z)
    torch.manual_seed(9)
    positives = Restricted(3, 5.0, sampler).draw(z)  # a sign alone is left
    torch.testing.assert_close(positives[:, 3].abs(), z[:, 3].abs(), atol=1e-6, rtol=0)
    kept = (positives[:, 3] * z[:, 3] > 0).double().mean().item()
    at = 5.0 * z[:, 3].double() ** 2 if sampler == "theorem" else torch.full((4000,), 5.0)
    assert kept == pytest.approx((2 * at).sigmoid().mean().item(), abs=0.02)
    torch.manual_seed(10)
    restricted = Restricted(0, 5.0, sampler).draw(z)
    torch.manual_seed(10)
    torch.testing.assert_close(restricted, Full(5.0).draw(z), atol=1e-5, rtol=0)


@pytest.mark.parametrize(("k", "n_fixed"), [(3, 1), (5, 2), (4, 0)])
def test_the_support_is_evenly_covered(k, n_fixed):
    torch.manual_seed(11)
    n, free = 30_000, k - n_fixed
    z = Sphere(k).draw(1).expand(n, -1)
    found = Restricted(n_fixed, 50.0).support(z)
    assert torch.equal(found[:, :n_fixed], z[:, :n_fixed])
    torch.testing.assert_close(found.norm(dim=1), torch.ones(n), atol=1e-5, rtol=0)
    v = F.normalize(found[:, n_fixed:], dim=1)
    axis = F.normalize(z[:1, n_fixed:], dim=1)[0]
    assert kstest(angles(v, axis), law_of_angles(0, free)).statistic < RARE / math.sqrt(n)
    v = v.double()
    torch.testing.assert_close(v.T @ v / n, torch.eye(free).double() / free, atol=0.012, rtol=0)


@pytest.mark.parametrize("power", [1.0, 2.0, 3.0])
def test_noise_in_a_box_is_cut_off_at_its_walls(power):
    torch.manual_seed(12)
    n, at, scale = 20_000, torch.tensor([0.04, 0.5, 0.97]), 0.1
    found = Around(Box(3), scale, power).draw(at.expand(n, -1)).numpy()
    assert found.min() >= 0
    assert found.max() <= 1
    for i, place in enumerate(at.tolist()):
        whole = gennorm(power, loc=place, scale=scale)
        low, high = whole.cdf([0, 1])

        def cut(x, whole=whole, low=low, high=high):
            return (whole.cdf(x) - low) / (high - low)

        assert kstest(found[:, i], cut).statistic < RARE / math.sqrt(n)
    assert abs(np.corrcoef(found.T)[0, 1]) < 0.03


@pytest.mark.parametrize("power", [1.0, 2.0, 3.0])
def test_noise_in_space_is_scipy_s(power):
    torch.manual_seed(13)
    n, at = 20_000, torch.tensor([-3.0, 0.5])
    found = Around(Euclidean(2), 0.2, power).draw(at.expand(n, -1)).numpy()
    for i, place in enumerate(at.tolist()):
        for scale, sign in ((0.2, 1), (0.18, -1)):
            law = gennorm(power, loc=place, scale=scale)
            assert sign * kstest(found[:, i], law.cdf).statistic < sign * RARE / math.sqrt(n)


def test_noise_about_points_of_a_sphere_stays_on_it():
    torch.manual_seed(14)
    z = Sphere(3).draw(5000)
    found = Around(Sphere(3), 0.05).draw(z)
    torch.testing.assert_close(found.norm(dim=1), torch.ones(5000), atol=1e-6, rtol=0)
    # two of three directions of variance s²/2 each stay
    assert ((found - z) ** 2).sum(1).mean().item() == pytest.approx(0.05**2, rel=0.05)


def moments_on_a_grid(z, precision):
    """Return E x and E x xᵀ of the density ∝ exp(−½ (x − z)ᵀ Λ (x − z)) on S², by a fine grid."""
    heights, weights = np.polynomial.legendre.leggauss(300)
    turns = np.arange(600) * 2 * math.pi / 600
    across = np.sqrt(1 - heights**2)[:, None]
    x = np.stack(
        [across * np.cos(turns), across * np.sin(turns), heights[:, None].repeat(600, 1)], -1
    )
    form = ((x - z) ** 2 * np.asarray(precision)).sum(-1) / 2
    mass = np.exp(form.min() - form) * weights[:, None]
    mass /= mass.sum()
    return np.einsum("ij,ijk->k", mass, x), np.einsum("ij,ijk,ijl->kl", mass, x, x)


@pytest.mark.parametrize(
    "precision", [(2.0, 8.0, 20.0), (100.0, 0.5, 5.0), (0.1, 0.2, 0.3), (300.0, 3.0, 3.0)]
)
def test_anisotropic_positives_have_the_moments_of_a_grid(precision):
    torch.manual_seed(15)
    n = 20_000
    anchors = Sphere(3).draw(2)  # in turn: rows must not be mixed up
    found = Anisotropic(precision).draw(anchors.repeat(n, 1)).double()
    torch.testing.assert_close(found.norm(dim=1), torch.ones(2 * n).double(), atol=1e-5, rtol=0)
    for i in range(2):
        x = found[i::2].numpy()
        mean, second = moments_on_a_grid(anchors[i].double().numpy(), precision)
        error = x.std(0) / math.sqrt(n)
        assert (np.abs(x.mean(0) - mean) < 4.5 * error + 1e-6).all()
        products = np.einsum("ni,nj->nij", x, x)
        error = products.std(0) / math.sqrt(n)
        assert (np.abs(products.mean(0) - second) < 4.5 * error + 1e-6).all()


@pytest.mark.parametrize("k", [3, 6])
@pytest.mark.parametrize("weight", [0.5, 7.0, 90.0])
def test_one_precision_for_all_is_von_mises_fisher(weight, k):
    torch.manual_seed(16)
    n, mean = 20_000, generic(k)
    found = Anisotropic((weight,) * k).draw(mean.expand(n, -1))
    assert kstest(angles(found, mean), law_of_angles(weight, k)).statistic < RARE / math.sqrt(n)


def test_coordinates_of_a_larger_precision_vary_less():
    torch.manual_seed(17)
    precision = (5.0, 10.0, 20.0, 40.0, 80.0)
    z = Sphere(5).draw(20_000)
    spread = (Anisotropic(precision).draw(z) - z).pow(2).mean(0)
    assert (spread.diff() < 0).all()


@pytest.mark.parametrize(
    ("kappa", "why"),
    [
        (0.0, "nothing to learn"), (-1.0, "how narrowly"), (math.nan, "how narrowly"), (1e9, "32 bits"),
        (math.inf, "32 bits"),
    ],
)  # fmt: skip
def test_a_concentration_by_which_nothing_is_learned_is_refused(kappa, why):
    with pytest.raises(ConfigError, match=rf"kappa=.*above 0 and up to 100,000.*{why}"):
        require_concentration(kappa)


@pytest.mark.parametrize("n_fixed", [-1, 4])
def test_more_fixed_coordinates_than_there_are_are_refused(n_fixed):
    law, z = Restricted(n_fixed, 3.0), Sphere(3).draw(5)
    for verb in (law.draw, law.support):
        with pytest.raises(ConfigError, match=rf"n_fixed={n_fixed}: latents have 3 coordinates"):
            verb(z)


@pytest.mark.parametrize("kappa", [-1.0, math.nan, math.inf])
@pytest.mark.parametrize("k", [1, 2, 3, 6])
def test_a_concentration_of_no_density_ends_before_a_draw(kappa, k):
    z = Sphere(k).draw(4)
    for law in (Full(kappa), Restricted(0, kappa), Restricted(0, kappa, "published")):
        with pytest.raises(ConfigError, match="finite numbers, 0 or more"):
            law.draw(z)


@pytest.mark.parametrize("value", [-1.0, 0.0, math.nan, math.inf])
def test_noise_and_precisions_of_no_density_are_refused(value):
    with pytest.raises(ConfigError, match="scale="):
        Around(Box(2), value)
    with pytest.raises(ConfigError, match="power="):
        Around(Box(2), 0.1, value)
    with pytest.raises(ConfigError, match="precision="):
        Anisotropic((1.0, value))


def test_each_coordinate_has_its_precision():
    with pytest.raises(ConfigError, match="latents have 3 coordinates; give one for each"):
        Anisotropic((1.0, 2.0)).draw(Sphere(3).draw(4))


def test_the_rarest_draw_is_no_antipode(monkeypatch):
    monkeypatch.setattr(torch, "rand_like", torch.zeros_like)
    z = Sphere(3).draw(10)
    assert ((Full(1e5).draw(z) * z).sum(1) > 0.999).all()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA card")
@pytest.mark.parametrize("k", [1, 2, 3, 6])
def test_draws_stay_on_the_device_of_their_anchors(k):
    z = Sphere(k).draw(50).cuda()
    laws = [Full(3.0), Restricted(1, 3.0), Around(Box(k), 0.1), Anisotropic((2.0,) * k)]
    assert {law.draw(z).device for law in laws} == {z.device}


def test_pieces_of_the_anchors_have_their_own_positives(monkeypatch):
    monkeypatch.setattr(conditionals, "_NUMBERS", 9 * 100)
    z = Sphere(3).draw(250)
    found = Anisotropic((200.0, 300.0, 400.0)).draw(z)
    assert found.shape == z.shape
    assert ((found * z).sum(1) > 0.9).all()
