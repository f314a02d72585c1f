"""InfoNCE in L_p, with a learned Λ, and with negatives from the anchor's support, against loops."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from scipy.special import logsumexp
from torch.autograd import gradcheck

from chreode.losses.infonce import an_info_nce, info_nce, info_nce_lp, support_corrected
from chreode.losses.sphere import uniformity

N, M, D = 5, 7, 3
PRECISION = torch.tensor([0.5, 3.0, 20.0], dtype=torch.float64)


def drawn(seed, *shape):
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape))


def unit(x):
    return x / x.norm(dim=-1, keepdim=True)


def one_by_one(query, key, negatives, logit):
    """Return the mean of −ln of the share of each query's key; `logit` is of two vectors."""
    total = 0.0
    for i, (q, k) in enumerate(zip(query, key, strict=True)):
        own = negatives if negatives.ndim == 2 else negatives[i]
        logits = [float(logit(q, k)), *(float(logit(q, n)) for n in own)]
        total += logsumexp(logits) - logits[0]
    return total / len(query)


def distance(p, tau, q, k):
    return -sum(abs(a - b) ** p for a, b in zip(q.tolist(), k.tolist(), strict=True)) / tau


def mahalanobis(precision, q, k):
    return -0.5 * (q - k) @ precision.diag() @ (q - k)


BOTH_SHAPES = pytest.mark.parametrize("shape", [(M, D), (N, M, D)], ids=["shared", "own"])


@BOTH_SHAPES
@pytest.mark.parametrize("tau", [0.3, 2.0])
@pytest.mark.parametrize("p", [1.0, 1.5, 2.0, 3.0])
def test_the_loss_in_l_p_is_what_loops_give(p, tau, shape):
    query, key, negatives = drawn(0, N, D), drawn(1, N, D), drawn(2, *shape)
    expected = one_by_one(query, key, negatives, partial(distance, p, tau))
    assert info_nce_lp(query, key, negatives, p, tau).item() == pytest.approx(expected, rel=1e-12)


@BOTH_SHAPES
def test_the_loss_with_a_precision_is_what_loops_give(shape):
    query, key, negatives = drawn(0, N, D), drawn(1, N, D), drawn(2, *shape)
    expected = one_by_one(query, key, negatives, partial(mahalanobis, PRECISION))
    found = an_info_nce(query, key, negatives, PRECISION).item()
    assert found == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(("s", "m"), [(0, 4), (3, 0), (3, 4), (1, 1)])
def test_the_corrected_loss_is_what_loops_over_both_kinds_give(s, m):
    query, key, support, others = (
        drawn(0, N, D),
        drawn(1, N, D),
        drawn(2, N, s, D),
        drawn(3, N, m, D),
    )

    def cosine(q, k):
        return q @ k / (q.norm() * k.norm()) / 0.3

    negatives = torch.cat([support, others], 1)
    expected = one_by_one(query, key, negatives, cosine)
    found = support_corrected(query, key, support, others, 0.3).item()
    assert found == pytest.approx(expected, rel=1e-12)


@BOTH_SHAPES
@pytest.mark.parametrize("p", [1.0, 2.0, 3.0])
def test_gradients_in_l_p_are_finite_differences(p, shape):
    tensors = [drawn(i, *s).requires_grad_() for i, s in enumerate([(N, D), (N, D), shape])]
    assert gradcheck(lambda q, k, n: info_nce_lp(q, k, n, p, 0.7), tensors)


@BOTH_SHAPES
def test_gradients_with_a_precision_are_finite_differences_and_reach_the_precision(shape):
    tensors = [drawn(i, *s).requires_grad_() for i, s in enumerate([(N, D), (N, D), shape])]
    precision = PRECISION.clone().requires_grad_()
    assert gradcheck(an_info_nce, (*tensors, precision))
    an_info_nce(*tensors, precision).backward()
    assert (precision.grad != 0).all()


def test_gradients_of_the_corrected_loss_are_finite_differences():
    shapes = [(N, D), (N, D), (N, 2, D), (N, 3, D)]
    tensors = [drawn(i, *s).requires_grad_() for i, s in enumerate(shapes)]
    assert gradcheck(support_corrected, tensors)


@pytest.mark.parametrize("p", [1.0, 1.5, 2.0, 3.0])
def test_gradients_are_finite_where_a_query_is_its_own_key(p):
    query, negatives = drawn(0, N, D).requires_grad_(), drawn(1, M, D)
    info_nce_lp(query, query.clone(), negatives, p).backward()
    assert query.grad.isfinite().all()


@pytest.mark.parametrize("weight", [0.4, 1.0, 30.0])
def test_one_weight_for_all_coordinates_is_the_squared_distance(weight):
    query, key, negatives = drawn(0, N, D), drawn(1, N, D), drawn(2, M, D)
    found = an_info_nce(query, key, negatives, torch.full((D,), weight, dtype=torch.float64))
    squared = info_nce_lp(query, key, negatives, 2.0, 2 / weight)
    torch.testing.assert_close(found, squared, rtol=1e-12, atol=0)
    # a constant of all logits falls out: −½λ|q − k|² = λ q·k − λ where both have length 1
    query, key, negatives = unit(query), unit(key), unit(negatives)
    on_sphere = an_info_nce(query, key, negatives, torch.full((D,), weight, dtype=torch.float64))
    cosines = info_nce(query, key, negatives, 1 / weight)
    torch.testing.assert_close(on_sphere, cosines, rtol=1e-10, atol=1e-12)
    assert abs(found / cosines - 1) > 1e-3  # but not where lengths differ


def test_even_points_are_as_uniform_as_the_closed_form_says():
    n = 4000
    even = unit(drawn(0, n, 3))
    closed = -4 + np.log(np.sinh(4) / 4)
    assert uniformity(even).item() == pytest.approx(closed, abs=0.004)
    # a control: points that are 5 % denser at one end are told apart
    tilted = unit(even + torch.tensor([0.2, 0.0, 0.0]))
    assert uniformity(tilted).item() > closed + 0.015


@pytest.mark.parametrize("shared", [True, False])
def test_points_far_from_the_origin_keep_their_distances(shared):
    torch.manual_seed(0)
    query, key = torch.randn(2, 8, 3) * 0.05
    others = torch.randn(5, 3) * 0.05 if shared else torch.randn(8, 5, 3) * 0.05
    near = info_nce_lp(query, key, others, 2.0, 0.001)
    far = info_nce_lp(query + 100, key + 100, others + 100, 2.0, 0.001)
    assert far.item() == pytest.approx(near.item(), rel=0.01)
