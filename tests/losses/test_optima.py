"""The least that InfoNCE can be, and what single maps reach: the paper's numbers, quadrature, and samples."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.integrate import quad
from scipy.special import i0e, i1e
from scipy.stats import beta, ortho_group

from chreode.identify import Setting
from chreode.identify.conditionals import Full, Restricted
from chreode.identify.spaces import Sphere
from chreode.losses.infonce import info_nce
from chreode.losses.optima import (
    aligned_and_uniform,
    full_support,
    log_mean_exp,
    mean_cosine,
    outweighed,
    rescaled,
)
from chreode.metrics.recovery import axis_r2

KAPPA = 1 / 0.3
FACTORS = (0.0, 0.3, 0.7, 0.9, 0.97, 1.03, 1.1, 1.5, 3.0, math.inf)
SAMPLERS = ("theorem", "published")


@pytest.mark.parametrize(
    ("m", "full", "least"), [(1000, 6.001, 5.009), (2000, 6.694, 5.703), (4000, 7.387, 6.396)]
)
def test_the_optima_are_those_of_the_facts(m, full, least):
    assert full_support(KAPPA, 3, m) == pytest.approx(full, abs=6e-4)
    assert aligned_and_uniform(KAPPA, 3, m) == pytest.approx(least, abs=6e-4)


@pytest.mark.parametrize(
    ("sampler", "corrected", "factor", "expected"),
    [
        ("published", False, 1.0, 6.076), ("theorem", False, 1.0, 6.246),
        ("published", True, 1.0, 6.823), ("theorem", True, 1.0, 6.993),
        ("published", True, math.inf, 6.687), ("theorem", True, math.inf, 7.245),
    ],
)  # fmt: skip
def test_what_maps_reach_is_what_the_facts_say(sampler, corrected, factor, expected):
    found = rescaled(factor, KAPPA, 3, 1, 2000, sampler=sampler, corrected=corrected)
    assert found == pytest.approx(expected, abs=6e-4)


@pytest.mark.parametrize("kappa", [1e-3, 0.5, KAPPA, 40.0, 1e4])
def test_integrals_over_the_sphere_are_those_of_quadrature(kappa):
    for k in (2, 3, 4, 10):

        def weight(angle, k=k):
            return math.exp(kappa * (math.cos(angle) - 1)) * math.sin(angle) ** (k - 2)

        end = min(math.pi, 40 / math.sqrt(kappa))
        total = quad(weight, 0, end, epsabs=0, limit=200)[0]
        even = quad(lambda a, k=k: math.sin(a) ** (k - 2), 0, math.pi)[0]
        short = quad(lambda a: (1 - math.cos(a)) * weight(a), 0, end, epsabs=0, limit=200)[0]
        assert log_mean_exp(kappa, k) == pytest.approx(
            kappa + math.log(total / even), rel=1e-7, abs=1e-10
        )
        assert 1 - mean_cosine(kappa, k) == pytest.approx(short / total, rel=1e-7)


@pytest.mark.parametrize(("kappa", "k"), [(1e-9, 300), (3.3, 400), (50.0, 1000), (1000.0, 400)])
def test_integrals_in_many_dimensions_are_those_of_the_recurrence(kappa, k):
    # I_{ν+1} / I_ν by continued fraction, and the derivative of the one by κ is the other
    ratio = 0.0
    for order in range(k // 2 + 2000, k // 2 - 1, -1):
        ratio = 1 / (2 * order / kappa + ratio)
    assert mean_cosine(kappa, k) == pytest.approx(ratio, rel=1e-9)
    grown = quad(lambda at: float(mean_cosine(at, k)), 0, kappa, epsrel=1e-10, limit=200)[0]
    assert log_mean_exp(kappa, k) == pytest.approx(grown, rel=1e-6, abs=1e-15)


def test_closed_forms_are_told_where_negatives_outweigh_the_positive():
    torch.manual_seed(0)
    z = Sphere(3).draw(4000)
    for kappa in (KAPPA, 30.0, 45.0, 1000.0):
        sampled = info_nce(z, Full(kappa).draw(z), Sphere(3).draw(2000), 1 / kappa).item()
        error = abs(full_support(kappa, 3, 2000) - sampled)
        assert (error < 0.1) == outweighed(kappa, 3, 2000)
        assert (Setting(kappa=kappa).least() == full_support(kappa, 3, 2000)) == (kappa < 50)


def of_one_coordinate(factor, kappa, sampler, corrected):
    """Return the loss on S² with its first coordinate fixed, less ln M, by adaptive integrals over u."""

    def parts(u):
        v = math.sqrt(1 - u * u)
        length = math.hypot(u, factor * v) if math.isfinite(factor) else 1.0
        return (u / length, factor * v / length) if math.isfinite(factor) else (0.0, 1.0)

    def at(u):
        a, b = parts(u)
        drawn = kappa * (1 - u * u) if sampler == "theorem" else kappa
        met = a * a + b * b * i1e(drawn) / i0e(drawn)
        if corrected:
            others = kappa * a * a + kappa * b * b + math.log(i0e(kappa * b * b))
        else:
            # relative to e^κ, so that nothing is too large
            def share(w):
                c, d = parts(w)
                return math.exp(kappa * (a * c + b * d - 1)) * i0e(kappa * b * d) / 2

            others = kappa + math.log(quad(share, -1, 1, points=[u], limit=400)[0])
        return (others - kappa * met) / 2

    return quad(at, -1, 1, limit=400, epsabs=1e-8)[0]


@pytest.mark.parametrize("corrected", [False, True], ids=["InfoNCE", "corrected"])
@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize(
    ("factor", "kappa"), [(1.0, KAPPA), (0.6, 1.0), (2.0, 12.0), (1.0, 100.0), (1.0, 1e4)]
)
def test_what_maps_reach_is_what_adaptive_integrals_give(factor, kappa, sampler, corrected):
    found = rescaled(factor, kappa, 3, 1, 1, sampler=sampler, corrected=corrected)
    close = {"abs": 2e-3} if kappa <= 100 else {"abs": 0.05}
    assert found == pytest.approx(of_one_coordinate(factor, kappa, sampler, corrected), **close)


@pytest.mark.parametrize("kappa", [1e-6, 1e4, 1e5])
@pytest.mark.parametrize("factor", [0.5, 1.0, math.inf])
@pytest.mark.parametrize(("k", "n_fixed"), [(3, 1), (3, 2), (10, 9), (40, 20)])
def test_values_are_finite_at_both_ends(kappa, factor, k, n_fixed):
    for sampler in SAMPLERS:
        for corrected in (False, True):
            value = rescaled(factor, kappa, k, n_fixed, 2000, sampler=sampler, corrected=corrected)
            assert math.isfinite(value)
    assert math.isfinite(full_support(kappa, k, 2000))
    assert aligned_and_uniform(kappa, k, 2000) <= full_support(kappa, k, 2000)


def of(factor, n_fixed=1):
    """Return h_λ as a function of latents."""

    def h(z):
        u, v = z[:, :n_fixed], z[:, n_fixed:]
        if math.isinf(factor):
            return F.normalize(torch.cat([0 * u, v], 1), dim=1)
        return F.normalize(torch.cat([u, factor * v], 1), dim=1)

    return h


def sets(law, k, n_fixed, *, corrected, n_sets=80, n=1000, m=1000):
    """Yield anchors, positives and negatives; each set has one u if negatives are to share it.

    Lengths of u are then at even quantiles, so that few sets are enough.
    """
    for i in range(n_sets):
        if corrected:
            square = beta.ppf((i + 0.5) / n_sets, n_fixed / 2, (k - n_fixed) / 2)
            z = torch.zeros(1, k)
            z[0, 0], z[0, -1] = math.sqrt(square), math.sqrt(1 - square)
            anchors, negatives = law.support(z.expand(n, -1)), law.support(z.expand(m, -1))
        else:
            anchors, negatives = Sphere(k).draw(n), Sphere(k).draw(m)
        yield anchors, law.draw(anchors), negatives


def losses(maps, draws, kappa=KAPPA):
    """Return the loss of each map (columns) on each set (rows)."""
    return np.array(
        [[info_nce(h(a), h(p), h(n), 1 / kappa).item() for h in maps] for a, p, n in draws]
    )


def surely_lower(one, two):
    """Return whether the mean of `one` is below that of `two`, by 5 standard errors of paired sets."""
    apart = two - one
    return apart.mean() > 5 * apart.std(ddof=1) / math.sqrt(len(apart))


def test_the_loss_of_the_identity_on_samples_is_the_least_one_of_full_support():
    torch.manual_seed(0)
    law = Full(KAPPA)
    drawn = list(sets(law, 3, 0, corrected=False))
    found = losses([of(1.0)], drawn).mean()
    assert found == pytest.approx(full_support(KAPPA, 3, 1000), abs=0.01)
    # positives that are equal, and cells that are even
    met = np.mean([info_nce(a, a, n, 1 / KAPPA).item() for a, _, n in drawn])
    assert met == pytest.approx(aligned_and_uniform(KAPPA, 3, 1000), abs=0.01)


@pytest.mark.parametrize("corrected", [False, True], ids=["InfoNCE", "corrected"])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_losses_of_maps_on_samples_are_the_closed_ones(sampler, corrected):
    torch.manual_seed(0)
    draws = sets(Restricted(1, KAPPA, sampler), 3, 1, corrected=corrected)
    factors = (1.0, math.inf) if corrected else (1.0, 0.8)
    found = losses([of(f) for f in factors], draws).mean(0)
    closed = [rescaled(f, KAPPA, 3, 1, 1000, sampler=sampler, corrected=corrected) for f in factors]
    np.testing.assert_allclose(found, closed, atol=0.01)


@pytest.mark.parametrize("corrected", [False, True], ids=["InfoNCE", "corrected"])
@pytest.mark.parametrize(
    ("k", "n_fixed", "sampler"), [(10, 3, "theorem"), (10, 3, "published"), (3, 2, "theorem")]
)
def test_closed_forms_hold_in_other_dimensions(k, n_fixed, sampler, corrected):
    torch.manual_seed(1)
    kappa = 5.0
    draws = sets(Restricted(n_fixed, kappa, sampler), k, n_fixed, corrected=corrected, n_sets=60)
    factors = (1.0, 0.6)
    found = losses([of(f, n_fixed) for f in factors], draws, kappa).mean(0)
    closed = [
        rescaled(f, kappa, k, n_fixed, 1000, sampler=sampler, corrected=corrected) for f in factors
    ]
    np.testing.assert_allclose(found, closed, atol=0.015)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_no_orthogonal_map_is_the_best_where_a_coordinate_is_fixed(sampler):
    """Theorem 4.5."""
    closed = [rescaled(f, KAPPA, 3, 1, 2000, sampler=sampler) for f in (0.97, 0.9, 1.0, 1.03)]
    assert closed[1] < closed[0] < closed[2] < closed[3]
    torch.manual_seed(2)
    turns = [torch.from_numpy(ortho_group.rvs(3, random_state=i)).float() for i in range(4)]
    turns[0] = turns[0] @ torch.diag(
        torch.tensor([1.0, 1.0, -1.0])
    )  # both kinds: turns and mirrors
    maps = [of(1.0), of(0.9), *(lambda z, q=q: z @ q.T for q in turns)]
    draws = sets(Restricted(1, KAPPA, sampler), 3, 1, corrected=False, n_sets=20)
    found = losses(maps, draws)
    assert surely_lower(found[:, 1], found[:, 0])
    np.testing.assert_allclose(found[:, 2:], found[:, :1].repeat(4, 1), atol=1e-5)


def test_the_identity_is_the_best_under_the_corrected_loss_with_the_theorem_s_sampler_alone():
    """Theorem 4.6, which does not hold for the sampler of algorithm 13."""

    def closed(sampler):
        return [
            rescaled(f, KAPPA, 3, 1, 2000, sampler=sampler, corrected=True) for f in (1.0, *FACTORS)
        ]

    identity, *others = closed("theorem")
    assert identity < min(others)
    identity, *others = closed("published")
    assert min(others) == others[-1] < identity - 0.1  # the map that drops u
    maps = [of(f) for f in (1.0, 0.7, 1.5, math.inf)]
    for sampler in SAMPLERS:
        torch.manual_seed(3)
        law = Restricted(1, KAPPA, sampler)
        # each row is a mean over all lengths of u, so that what differs between rows is chance alone
        sweeps = [losses(maps, sets(law, 3, 1, corrected=True, n_sets=15, n=400)) for _ in range(8)]
        identity, less, more, dropped = np.array([sweep.mean(0) for sweep in sweeps]).T
        assert surely_lower(identity, less)
        if sampler == "theorem":
            assert surely_lower(identity, more)
            assert surely_lower(identity, dropped)
        else:
            assert surely_lower(more, identity)
            assert surely_lower(dropped, identity)


def test_folding_the_fixed_coordinate_costs_nothing_under_the_corrected_loss():
    """Theorem A.5: u → |u| has the loss of the identity, and two thirds of its R²."""

    def folded(z):
        return torch.cat([z[:, :1].abs(), z[:, 1:]], 1)

    def own_sets():
        for _ in range(20):
            z = Sphere(3).draw(1)
            anchors = law.support(z.expand(200, -1))
            yield anchors, law.draw(anchors), law.support(z.expand(200, -1))

    torch.manual_seed(4)
    law = Restricted(1, KAPPA, "theorem")
    found = losses([of(1.0), folded], own_sets())
    np.testing.assert_allclose(found[:, 0], found[:, 1], rtol=3e-7)  # a unit in the last place
    # negatives from everywhere have both signs of u, and it does cost
    found = losses([of(1.0), folded], sets(law, 3, 1, corrected=False, n_sets=10))
    assert surely_lower(found[:, 0], found[:, 1])
    z = Sphere(3).draw(20_000)
    by_axis = axis_r2(z.numpy(), folded(z).numpy())
    np.testing.assert_allclose(by_axis, [0, 1, 1], atol=0.01)
    assert by_axis.mean() == pytest.approx(2 / 3, abs=0.005)


def test_forgetting_the_fixed_coordinate_has_the_r2_of_the_paper_s_plateau():
    torch.manual_seed(5)
    z = Sphere(3).draw(40_000)
    by_axis = axis_r2(z.numpy(), of(math.inf)(z).numpy())
    np.testing.assert_allclose(
        by_axis, [0, 1.5 * (math.pi / 4) ** 2, 1.5 * (math.pi / 4) ** 2], atol=0.01
    )
