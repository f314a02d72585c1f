"""Likelihoods and divergences against SciPy, 60-digit arithmetic and their own samples."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import mpmath
import numpy as np
import pytest
import scipy.special
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from chreode.distributions import (
    Bernoulli,
    Distribution,
    NegativeBinomial,
    NegativeBinomialMixture,
    Normal,
    Poisson,
    ZeroInflatedNegativeBinomial,
)
from chreode.losses.kl import kl_normal, kl_standard_normal

COUNTS = [0, 1, 2, 3, 9, 10, 11, 100, 3000, 100_000]
MEANS = [1e-8, 1e-4, 0.03, 1.0, 3.0, 7.0, 300.0, 1e4, 99e3, 1e6]
THETAS = [1e-4, 0.01, 0.7, 3.0, 9.9, 50.0, 1e4, 1e6]
LOGITS = [-50.0, -20.5, -3.0, 0.0, 2.0, 20.5, 50.0]

# float64 is exact to a dozen digits. In float32 the log-ratios of mean and count, of size
# |mean - count| / count, are rounded before they are multiplied by the count: five digits are left.
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5}
DTYPES = list(TOLERANCE)


def grid(*axes: list[float], dtype: torch.dtype = torch.float64) -> list[Tensor]:
    return [torch.tensor(c, dtype=dtype) for c in zip(*itertools.product(*axes), strict=True)]


def exactly(formula: Callable[..., mpmath.mpf], *columns: Tensor) -> Tensor:
    """Evaluate `formula` with 60 digits at the very numbers that the tensors hold."""
    with mpmath.workdps(60):
        rows = zip(*(c.tolist() for c in columns), strict=True)
        values = [float(formula(*(mpmath.mpf(v) for v in row))) for row in rows]
    return torch.tensor(values, dtype=torch.float64)


def nb(x, mu, theta):
    coefficient = mpmath.loggamma(x + theta) - mpmath.loggamma(theta) - mpmath.loggamma(x + 1)
    return (
        coefficient + theta * mpmath.log(theta / (theta + mu)) + x * mpmath.log(mu / (theta + mu))
    )


def nb_by_log_mu(x, mu, theta):
    return (x - mu) * theta / (mu + theta)


def nb_by_log_theta(x, mu, theta):
    digammas = mpmath.digamma(x + theta) - mpmath.digamma(theta)
    return theta * (digammas + mpmath.log(theta / (theta + mu)) + (mu - x) / (theta + mu))


def zinb(x, mu, theta, logits):
    weight = 1 / (1 + mpmath.exp(-logits))
    return mpmath.log(weight * (x == 0) + (1 - weight) * mpmath.exp(nb(x, mu, theta)))


def poisson(x, rate):
    return x * mpmath.log(rate) - rate - mpmath.loggamma(x + 1)


# --- log-probabilities ---------------------------------------------------------------------------


def test_normal_is_scipys():
    x, loc, scale = grid([-1e3, -1.0, 0.0, 2.5], [-3.0, 0.0, 40.0], [1e-3, 1.0, 50.0])
    expected = torch.from_numpy(scipy.stats.norm.logpdf(x.numpy(), loc.numpy(), scale.numpy()))
    torch.testing.assert_close(Normal(loc, scale).log_prob(x), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.float64])
def test_bernoulli_is_scipys(dtype):
    x, logits = grid([0, 1], [-10.0, -1.0, 0.0, 3.0, 10.0])
    expected = scipy.stats.bernoulli.logpmf(x.numpy(), scipy.special.expit(logits.numpy()))
    found = Bernoulli(logits).log_prob(x.to(dtype))
    torch.testing.assert_close(found, torch.from_numpy(expected), rtol=1e-9, atol=0)


@pytest.mark.parametrize("dtype", DTYPES)
def test_bernoulli_is_exact_in_both_tails(dtype):
    x, logits = grid([0, 1], LOGITS, dtype=dtype)
    expected = scipy.special.log_expit(((2 * x - 1) * logits).double().numpy())
    found = Bernoulli(logits).log_prob(x).double()
    torch.testing.assert_close(found, torch.from_numpy(expected), rtol=TOLERANCE[dtype], atol=0)


def test_poisson_is_scipys():
    x, rate = grid(COUNTS, MEANS)
    expected = torch.from_numpy(scipy.stats.poisson.logpmf(x.numpy(), rate.numpy()))
    torch.testing.assert_close(Poisson(rate).log_prob(x), expected, rtol=1e-8, atol=0)


@pytest.mark.parametrize("dtype", DTYPES)
def test_poisson_is_exact(dtype):
    x, rate = grid(COUNTS, MEANS, dtype=dtype)
    found = Poisson(rate).log_prob(x).double()
    torch.testing.assert_close(found, exactly(poisson, x, rate), rtol=TOLERANCE[dtype], atol=0)


def test_nb_is_scipys():
    x, mu, theta = grid(COUNTS, MEANS, THETAS)
    # SciPy takes p = theta / (theta + mu), in which a smaller mu / theta is rounded away
    kept = mu / theta > 1e-6
    x, mu, theta = x[kept], mu[kept], theta[kept]
    p = (theta / (theta + mu)).numpy()
    expected = torch.from_numpy(scipy.stats.nbinom.logpmf(x.numpy(), theta.numpy(), p))
    found = NegativeBinomial(mu, theta).log_prob(x)
    torch.testing.assert_close(found, expected, rtol=2e-8, atol=0)


@pytest.mark.parametrize("dtype", DTYPES)
def test_nb_is_exact(dtype):
    x, mu, theta = grid(COUNTS, MEANS, THETAS, dtype=dtype)
    found = NegativeBinomial(mu, theta).log_prob(x).double()
    torch.testing.assert_close(found, exactly(nb, x, mu, theta), rtol=TOLERANCE[dtype], atol=0)


def test_nb_takes_counts_that_are_not_whole():
    x, mu, theta = grid([1e-3, 0.4, 2.5, 40.25], [0.1, 2.5, 30.0], [0.1, 5.0, 1e4])
    found = NegativeBinomial(mu, theta).log_prob(x)
    torch.testing.assert_close(found, exactly(nb, x, mu, theta), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("dtype", DTYPES)
def test_zinb_is_exact(dtype):
    columns = grid(
        [0, 1, 11, 100_000], [1e-8, 1.0, 300.0, 1e6], [1e-4, 3.0, 1e6], LOGITS, dtype=dtype
    )
    x, mu, theta, logits = columns
    found = ZeroInflatedNegativeBinomial(mu, theta, logits).log_prob(x).double()
    # near 0 the error is one rounding of the largest logit, 50
    atol = 50 * torch.finfo(dtype).eps
    expected = exactly(zinb, *columns)
    torch.testing.assert_close(found, expected, rtol=TOLERANCE[dtype], atol=atol)


def test_zinb_is_a_mixture_with_a_spike_at_zero():
    x, mu, theta, logits = grid(COUNTS, MEANS, THETAS, LOGITS)
    spike = torch.where(x == 0, 0.0, -torch.inf) + Bernoulli(logits).log_prob(torch.tensor(1))
    counted = NegativeBinomial(mu, theta).log_prob(x) + Bernoulli(logits).log_prob(torch.tensor(0))
    expected = torch.logsumexp(torch.stack([spike, counted]), dim=0)
    found = ZeroInflatedNegativeBinomial(mu, theta, logits).log_prob(x)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=2e-14)


@pytest.mark.parametrize("dtype", DTYPES)
def test_mixture_is_exact(dtype):
    columns = grid([0, 2, 3000], [0.01, 30.0], [5.0, 1e5], [0.01, 2.0, 1e6], LOGITS, dtype=dtype)

    def mixture(x, low, high, theta, logits):
        weight = 1 / (1 + mpmath.exp(-logits))
        background, foreground = (mpmath.exp(nb(x, mu, theta)) for mu in (low, high))
        return mpmath.log(weight * background + (1 - weight) * foreground)

    found = NegativeBinomialMixture(*columns[1:]).log_prob(columns[0]).double()
    torch.testing.assert_close(
        found, exactly(mixture, *columns), rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype] / 10
    )


positive = st.floats(0.05, 30.0)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(mu=positive, high=positive, theta=st.floats(0.3, 1e4), logits=st.floats(-8.0, 8.0))
def test_probabilities_sum_to_one(mu, high, theta, logits):
    x = torch.arange(6_000)  # over 50 times the largest scale of the tail, mu / theta
    mu, high, theta, logits = torch.tensor([mu, high, theta, logits], dtype=torch.float64)
    for distribution in (
        Poisson(mu),
        NegativeBinomial(mu, theta),
        ZeroInflatedNegativeBinomial(mu, theta, logits),
        NegativeBinomialMixture(mu, high, theta, logits),
    ):
        assert distribution.log_prob(x).exp().sum().item() == pytest.approx(1, abs=1e-11)
    assert Bernoulli(logits).log_prob(x[:2]).exp().sum().item() == pytest.approx(1, abs=1e-14)


# --- gradients -----------------------------------------------------------------------------------

LOW, HIGH = torch.tensor([[0.01], [0.8], [30.0]]).double(), torch.tensor([2.0, 40.0, 9.0]).double()
THETA, SIGNED = torch.tensor([0.2, 3.0, 500.0]).double(), torch.tensor([-4.0, 0.1, 3.0]).double()


@pytest.mark.parametrize(
    ("kind", "parameters"),
    [
        (Normal, (SIGNED, THETA)),
        (Bernoulli, (SIGNED,)),
        (Poisson, (LOW,)),
        (NegativeBinomial, (LOW, THETA)),
        (NegativeBinomial, (HIGH, LOW)),
        (ZeroInflatedNegativeBinomial, (LOW, THETA, SIGNED)),
        (ZeroInflatedNegativeBinomial, (HIGH, THETA, LOW)),
        (NegativeBinomialMixture, (LOW, HIGH, THETA, SIGNED)),
    ],
)
def test_gradients_are_those_of_finite_differences(kind, parameters):
    x = torch.tensor([[[0, 1, 0], [2, 0, 7], [30, 0, 12]], [[0, 0, 3], [0, 1, 1], [0, 50, 0]]])
    x = x.clamp(max=1) if kind is Bernoulli else x
    leaves = [p.clone().requires_grad_() for p in parameters]
    assert torch.autograd.gradcheck(lambda *leaves: kind(*leaves).log_prob(x), leaves)


@pytest.mark.parametrize("dtype", DTYPES)
def test_nb_gradients_are_exact_where_digammas_cancel(dtype):
    x, mu, theta = grid(COUNTS, MEANS, THETAS, dtype=dtype)
    mu.requires_grad_()
    theta.requires_grad_()
    NegativeBinomial(mu, theta).log_prob(x).sum().backward()
    by_log_mu, by_log_theta = (v.grad.double() * v.detach().double() for v in (mu, theta))
    # in float32 a difference of digammas at theta = 1e6, times theta, would be off by tenths
    rtol = 10 * TOLERANCE[dtype]
    for found, formula in ((by_log_mu, nb_by_log_mu), (by_log_theta, nb_by_log_theta)):
        torch.testing.assert_close(found, exactly(formula, x, mu, theta), rtol=rtol, atol=rtol)


@pytest.mark.parametrize("mean", [0.0, 1e-45, 1e-38, 1e-8, 1e6])
def test_everything_is_finite_in_float32(mean):
    x, theta, logits = grid(
        [0, 1, 100_000], [1e-4, 1.0, 1e6], [-50.0, 0.0, 50.0], dtype=torch.float32
    )
    mu = torch.full_like(x, mean)
    for kind, parameters in (
        (Poisson, (mu,)),
        (NegativeBinomial, (mu, theta)),
        (ZeroInflatedNegativeBinomial, (mu, theta, logits)),
        (NegativeBinomialMixture, (mu, 2 * mu, theta, logits)),
    ):
        leaves = [p.clone().requires_grad_() for p in parameters]
        out = kind(*leaves).log_prob(x)
        out.sum().backward()
        assert out.isfinite().all()
        assert (out <= 0).all()
        assert all(leaf.grad.isfinite().all() for leaf in leaves)


def test_a_mean_of_zero_explains_a_zero_exactly_and_a_count_hardly():
    mu = torch.zeros(2, requires_grad=True)
    zero, one = NegativeBinomial(mu, torch.tensor(2.0)).log_prob(torch.tensor([0, 1]))
    assert zero == 0
    floor = torch.finfo(torch.float32).tiny / torch.finfo(torch.float32).eps
    assert one.item() == pytest.approx(math.log(floor), rel=1e-5)
    zero.backward()
    assert mu.grad.tolist() == [-1, 0]


# --- cost ----------------------------------------------------------------------------------------


class _GammaCalls(TorchDispatchMode):
    """Counts the elements that lgamma and digamma are evaluated at."""

    def __init__(self):
        super().__init__()
        self.evaluated = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket in (torch.ops.aten.lgamma, torch.ops.aten.digamma):
            self.evaluated += args[0].numel()
        return func(*args, **(kwargs or {}))


def test_gamma_functions_are_evaluated_at_nonzeros_only():
    cells, genes = 16, 50
    mu = torch.full((cells, genes), 0.5, requires_grad=True)
    theta = torch.ones(genes, requires_grad=True)
    x = torch.zeros(cells, genes)
    x[3, :7] = 4
    with _GammaCalls() as calls:
        NegativeBinomial(mu, theta).log_prob(x).sum().backward()
    assert 0 < calls.evaluated <= 3 * 7 + 2 * genes  # x + theta twice, x; theta twice, per gene


def test_all_zeros_and_deterministic_mode_are_no_exception():
    mu = torch.ones(2, 3, requires_grad=True)
    torch.use_deterministic_algorithms(True)
    try:
        ZeroInflatedNegativeBinomial(mu, mu, mu).log_prob(torch.zeros(2, 3)).sum().backward()
        Poisson(mu).log_prob(torch.ones(2, 3)).sum().backward()
    finally:
        torch.use_deterministic_algorithms(False)
    assert mu.grad.isfinite().all()


# --- samples -------------------------------------------------------------------------------------

ONE = torch.tensor(1.0, dtype=torch.float64)
SAMPLED: list[Distribution] = [
    Normal(-2 * ONE, 3 * ONE),
    Bernoulli(-1.5 * ONE),
    Poisson(4.5 * ONE),
    NegativeBinomial(4 * ONE, 0.8 * ONE),
    NegativeBinomial(4 * ONE, 1e6 * ONE),
    ZeroInflatedNegativeBinomial(5 * ONE, 2 * ONE, -0.7 * ONE),
    NegativeBinomialMixture(2 * ONE, 25 * ONE, 4 * ONE, 0.9 * ONE),
]


def many(distribution: Distribution, n: int) -> Distribution:
    return type(distribution)(*(p.expand(n) for p in vars(distribution).values()))


@pytest.mark.parametrize("distribution", SAMPLED, ids=lambda d: type(d).__name__)
def test_samples_have_the_stated_moments(distribution):
    n = 200_000
    torch.manual_seed(0)
    x = many(distribution, n).sample().numpy()
    mean, variance = distribution.mean.item(), distribution.variance.item()
    fourth = np.mean((x - mean) ** 4)
    assert abs(x.mean() - mean) < 4 * math.sqrt(variance / n)
    assert abs(x.var() - variance) < 4 * math.sqrt((fourth - variance**2) / n)


@pytest.mark.parametrize("distribution", SAMPLED[2:], ids=lambda d: type(d).__name__)
def test_samples_occur_as_often_as_log_prob_says(distribution):
    n, top = 100_000, 2_000
    torch.manual_seed(1)
    observed = torch.bincount(many(distribution, n).sample().long(), minlength=top)[:top].numpy()
    expected = n * distribution.log_prob(torch.arange(top)).exp().numpy()
    common = expected > 20
    observed, expected = (np.append(v[common], n - v[common].sum()) for v in (observed, expected))
    assert scipy.stats.chisquare(observed, expected).pvalue > 1e-4


def test_samples_follow_the_seed_broadcast_and_carry_no_gradient():
    mu = torch.rand(4, 1, requires_grad=True)
    for distribution in (
        Normal(mu, torch.ones(3)),
        NegativeBinomial(mu, torch.ones(3)),
        ZeroInflatedNegativeBinomial(mu, torch.ones(3), torch.zeros(2, 1, 1)),
        NegativeBinomialMixture(mu, mu, torch.ones(3), torch.zeros(2, 1, 1)),
        Poisson(mu),
        Bernoulli(mu),
    ):
        torch.manual_seed(3)
        first = distribution.sample()
        torch.manual_seed(3)
        assert torch.equal(first, distribution.sample())
        parameters = vars(distribution).values()
        assert first.shape == torch.broadcast_shapes(*(p.shape for p in parameters))
        assert not first.requires_grad


# --- divergences ---------------------------------------------------------------------------------


def test_kl_normal_is_torchs():
    mu_q, scale_q, mu_p, scale_p = grid(
        [-2.0, 0.0, 30.0], [1e-3, 1.0, 7.0], [0.5, 4.0], [0.2, 1.0, 20.0]
    )
    expected = torch.distributions.kl_divergence(
        torch.distributions.Normal(mu_q, scale_q), torch.distributions.Normal(mu_p, scale_p)
    )
    torch.testing.assert_close(
        kl_normal(mu_q, scale_q, mu_p, scale_p), expected, rtol=1e-12, atol=0
    )


def test_kl_standard_normal_sums_over_the_last_axis():
    torch.manual_seed(0)
    mu, var = torch.randn(2, 5, 4), torch.rand(2, 5, 4) + 0.01
    expected = kl_normal(mu, var.sqrt(), torch.tensor(0.0), torch.tensor(1.0)).sum(-1)
    found = kl_standard_normal(mu, var)
    assert found.shape == (2, 5)
    torch.testing.assert_close(found, expected)
    assert kl_standard_normal(torch.zeros(1, 4), torch.ones(1, 4)).item() == 0


def test_kl_is_the_expected_log_ratio():
    torch.manual_seed(0)
    q, p = Normal(0.7 * ONE, 0.6 * ONE), Normal(-0.2 * ONE, 1.5 * ONE)
    x = many(q, 200_000).sample()
    ratio = q.log_prob(x) - p.log_prob(x)
    error = ratio.std().item() / math.sqrt(len(x))
    assert abs(ratio.mean() - kl_normal(q.loc, q.scale, p.loc, p.scale)).item() < 4 * error


def test_kl_gradients():
    leaves = [v.clone().requires_grad_() for v in (SIGNED, THETA.clamp(max=5), HIGH, LOW)]
    assert torch.autograd.gradcheck(kl_normal, leaves)
    assert torch.autograd.gradcheck(kl_standard_normal, leaves[:2])
