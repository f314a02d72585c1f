"""NT-Xent, InfoNCE, CLIP, NNCLR and the cosine: closed forms, brute force over pairs, and gradients."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.special import logsumexp

from chreode.losses.clip import clip
from chreode.losses.cosine import negative_cosine
from chreode.losses.infonce import among_keys, info_nce
from chreode.losses.nnclr import nearest, nnclr
from chreode.losses.ntxent import nt_xent

N, D = 7, 4


def drawn(seed, n=N, d=D, dtype=torch.float64):
    return torch.from_numpy(np.random.default_rng(seed).normal(size=(n, d))).to(dtype)


def unit(x):
    x = x.numpy()
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def one_by_one(query, key, others, tau):
    """Return −ln of the share of a query's key, with loops over vectors of length 1."""
    logits = [query @ key / tau, *(query @ other / tau for other in others)]
    return logsumexp(logits) - logits[0]


def brute_nt_xent(one, two, tau):
    views, total = (unit(one), unit(two)), 0.0
    for v in (0, 1):
        for i in range(len(one)):
            others = [views[w][j] for w in (0, 1) for j in range(len(one)) if j != i]
            total += one_by_one(views[v][i], views[1 - v][i], others, tau)
    return total / (2 * len(one))


def brute_among_keys(query, keys, tau):
    q, k = unit(query), unit(keys)
    return np.mean(
        [one_by_one(q[i], k[i], np.delete(k, i, axis=0), tau) for i in range(len(query))]
    )


@pytest.mark.parametrize("tau", [0.07, 0.5, 2.0])
@pytest.mark.parametrize("n", [2, N])
def test_they_are_what_loops_over_pairs_give(tau, n):
    one, two, bank = drawn(0, n), drawn(1, n), drawn(2, 9)
    close = {"rtol": 1e-12, "atol": 1e-14}
    np.testing.assert_allclose(nt_xent(one, two, tau), brute_nt_xent(one, two, tau), **close)
    forth, back = brute_among_keys(one, two, tau), brute_among_keys(two, one, tau)
    np.testing.assert_allclose(among_keys(one, two, tau), forth, **close)
    np.testing.assert_allclose(clip(one, two, tau), (forth + back) / 2, **close)
    queue = [one_by_one(q, k, unit(bank), tau) for q, k in zip(unit(one), unit(two), strict=True)]
    np.testing.assert_allclose(info_nce(one, two, bank, tau), np.mean(queue), **close)
    own = torch.stack([bank[i : i + 3] for i in range(n)])
    each = [
        one_by_one(q, k, unit(few), tau)
        for q, k, few in zip(unit(one), unit(two), own, strict=True)
    ]
    np.testing.assert_allclose(info_nce(one, two, own, tau), np.mean(each), **close)


@pytest.mark.parametrize("tau", [0.1, 0.5])
def test_orthogonal_and_opposite_views(tau):
    """Of N orthogonal cells with equal views 2 (N − 1) negatives have the cosine 0, with N − 1 keys half."""
    z = 3 * torch.eye(N, dtype=torch.float64)
    assert nt_xent(z, z, tau).item() == pytest.approx(math.log1p(2 * (N - 1) * math.exp(-1 / tau)))
    assert among_keys(z, z, tau).item() == pytest.approx(math.log1p((N - 1) * math.exp(-1 / tau)))
    assert clip(z, z, tau).item() == pytest.approx(math.log1p((N - 1) * math.exp(-1 / tau)))
    # opposite views: the cosine with the positive is −1
    assert nt_xent(z, -z, tau).item() == pytest.approx(math.log1p(2 * (N - 1) * math.exp(1 / tau)))
    queue = torch.eye(N + 3, dtype=torch.float64)[N:]
    wide = torch.nn.functional.pad(z, (0, 3))
    assert info_nce(wide, wide, queue, tau).item() == pytest.approx(
        math.log1p(3 * math.exp(-1 / tau))
    )
    assert info_nce(wide, -wide, queue, tau).item() == pytest.approx(
        math.log1p(3 * math.exp(1 / tau))
    )


def test_of_cells_that_are_all_alike_nothing_is_found():
    """Every cosine is 1: a query guesses among 2N − 1 views, N keys, or 1 + M keys."""
    z = torch.ones(N, D, dtype=torch.float64)
    assert nt_xent(z, z).item() == pytest.approx(math.log(2 * N - 1))
    assert among_keys(z, z).item() == pytest.approx(math.log(N))
    assert info_nce(z, z, torch.ones(20, D).double()).item() == pytest.approx(math.log(21))


def test_the_positive_is_not_a_negative_and_a_cell_is_not_its_own():
    """With the positive in the queue, or a cell among its own negatives, it is another value."""
    one, two = drawn(0), drawn(1)
    queue = drawn(2, 5)
    assert (info_nce(one, two, torch.cat([queue, two])) - info_nce(one, two, queue)).item() > 0.5
    logits = torch.cat([torch.nn.functional.normalize(x, dim=1) for x in (one, two)])
    logits = logits @ logits.T / 0.5
    with_itself = torch.nn.functional.cross_entropy(logits, torch.arange(2 * N).roll(N))
    assert with_itself.item() > nt_xent(one, two).item() + 0.1


LOSSES = {
    "nt_xent": nt_xent,
    "among_keys": among_keys,
    "clip": clip,
    "info_nce": lambda a, b: info_nce(a, b, drawn(5, 6, a.shape[1]).to(a)),
    "cosine": negative_cosine,
    "nnclr": lambda a, b: nnclr(a, b, a, b, drawn(5, 6, a.shape[1]).to(a)),
}


@pytest.mark.parametrize("name", LOSSES)
def test_neither_lengths_nor_the_order_of_cells_matter(name):
    loss, one, two = LOSSES[name], drawn(0), drawn(1)
    longer = [x * torch.rand(N, 1, dtype=torch.float64).add(0.1) * 50 for x in (one, two)]
    order = torch.tensor([3, 1, 6, 0, 2, 5, 4])
    for a, b in (longer, (one[order], two[order])):
        assert loss(a, b).item() == pytest.approx(loss(one, two).item(), rel=1e-12)


def test_which_view_is_first_matters_where_roles_differ_alone():
    one, two = drawn(0), drawn(1)
    for loss in (nt_xent, clip, negative_cosine):
        assert loss(one, two).item() == pytest.approx(loss(two, one).item(), rel=1e-12)
    assert abs(among_keys(one, two) - among_keys(two, one)).item() > 1e-3


@pytest.mark.parametrize("name", ["nt_xent", "among_keys", "clip", "info_nce"])
def test_gradients_are_those_of_finite_differences(name):
    one, two = drawn(0, 4, 3).requires_grad_(), drawn(1, 4, 3).requires_grad_()
    assert torch.autograd.gradcheck(LOSSES[name], (one, two))


def test_gradients_reach_negatives_and_temperature():
    one, two, queue = (drawn(i, 4, 3).requires_grad_() for i in range(3))
    assert torch.autograd.gradcheck(info_nce, (one, two, queue))
    tau = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda t: clip(one, two, t), (tau,))


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("n", [1, 2, N])
def test_zero_vectors_single_cells_and_half_precision_stay_finite(name, dtype, n):
    for one, two in (
        (drawn(0, n), drawn(1, n)),
        (torch.zeros(n, D), torch.zeros(n, D)),
        (1e4 * drawn(0, n), 1e-4 * drawn(1, n)),
    ):
        a, b = one.to(dtype).requires_grad_(), two.to(dtype)
        loss = LOSSES[name](a, b)
        (gradient,) = torch.autograd.grad(loss, a, allow_unused=True)
        assert loss.isfinite()
        assert gradient is None or gradient.isfinite().all()


def test_a_single_cell_has_nothing_to_be_told_apart_from():
    one, two = drawn(0, 1), drawn(1, 1)
    assert [loss(one, two).item() for loss in (nt_xent, among_keys, clip)] == [0, 0, 0]


def test_half_precision_is_near_the_loss():
    one, two = drawn(0, 64, 16), drawn(0, 64, 16) + drawn(1, 64, 16)
    for name, loss in LOSSES.items():
        if name in ("nt_xent", "among_keys", "clip", "cosine"):
            half = loss(one.bfloat16(), two.bfloat16())
            assert half.item() == pytest.approx(loss(one, two).item(), rel=0.02), name


def test_the_cosine_is_that_of_known_angles_and_holds_its_target_still():
    angles = torch.tensor([0.0, math.pi / 3, math.pi / 2, math.pi], dtype=torch.float64)
    found = torch.stack([angles.cos(), angles.sin()], 1).requires_grad_()
    target = torch.tensor([[2.0, 0.0]], dtype=torch.float64).repeat(4, 1).requires_grad_()
    loss = negative_cosine(found, target)
    assert loss.item() == pytest.approx(-(1 + 0.5 + 0 - 1) / 4)
    loss.backward()
    assert target.grad is None
    # the slope of −cos along the circle is the sine, a quarter of it for each of four cells
    tangent = torch.stack([-angles.sin(), angles.cos()], 1)
    np.testing.assert_allclose((found.grad * tangent).sum(1), angles.sin() / 4, atol=1e-12)
    assert torch.autograd.gradcheck(
        lambda x: negative_cosine(x, target.detach()), (drawn(0, 4, 2).requires_grad_(),)
    )


def test_the_nearest_is_that_of_a_search_through_the_bank():
    x, bank = drawn(0, 20), drawn(1, 15) * torch.logspace(-3, 3, 15, dtype=torch.float64)[:, None]
    found = nearest(x.requires_grad_(), bank)
    best = [max(range(15), key=lambda j, v=v: v @ unit(bank)[j]) for v in unit(x.detach())]
    np.testing.assert_array_equal(found, bank[best])
    assert len(set(best)) > 5
    assert not found.requires_grad


def test_no_gradient_flows_through_neighbours():
    """Only predictions learn; views choose, and so does a bank that comes with a gradient."""
    one, two, p, q, bank = (drawn(i, 6, 3).requires_grad_() for i in range(5))
    nnclr(one, two, p, q, bank).backward()
    assert one.grad is None
    assert two.grad is None
    assert bank.grad is None
    assert min(p.grad.norm(dim=1).min(), q.grad.norm(dim=1).min()) > 0
    fixed = [x.detach() for x in (one, two)]
    assert torch.autograd.gradcheck(lambda p, q: nnclr(*fixed, p, q, bank.detach()), (p, q))


def test_nnclr_is_the_cross_entropy_of_neighbours_and_predictions_of_the_other_view():
    one, two, p, q, bank = (drawn(i) for i in range(5))
    near_one, near_two = nearest(one, bank), nearest(two, bank)
    wanted = (brute_among_keys(near_one, q, 0.3) + brute_among_keys(near_two, p, 0.3)) / 2
    assert nnclr(one, two, p, q, bank, 0.3).item() == pytest.approx(wanted, rel=1e-12)
    # with the views themselves in the bank each is its own neighbour: no neighbour at all
    itself = (brute_among_keys(one, q, 0.3) + brute_among_keys(two, p, 0.3)) / 2
    both = torch.cat([one, two])
    assert nnclr(one, two, p, q, both, 0.3).item() == pytest.approx(itself, rel=1e-12)
    assert abs(itself - wanted) > 0.01
