"""Log-likelihoods of counts whose frequencies are a softmax: the costly part of a step, fused.

They are those of `distributions.NegativeBinomial` and `ZeroInflatedNegativeBinomial` with
μ = exp(log library) · softmax(logits) and θ = exp(log θ), summed over genes. Values and gradients come
out of one pass: the compiled `kernel` where it serves, else `reference`, which is plain torch.

With q = μ/θ, a count of 0 has the log-probability −θ log(1 + q), whose derivative by log μ is
−μ/(1 + q). Nothing else is computed of the zeros; Γ is met at stored values alone, where Stirling's
series makes the large parts of a log-probability cancel on paper instead of in floating point.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from ..data.batch import SparseRows
from ..distributions._counts import log_ratio, smallest_mean
from . import kernel

# Γ is taken this far above its argument, with so many terms: errors of 4e-8 and 1e-16.
_SHIFT = {torch.float32: 4, torch.float64: 10}
_TERMS = {torch.float32: 3, torch.float64: 8}
_SERIES = (1/12, -1/360, 1/1260, -1/1680, 1/1188, -691/360360, 1/156, -3617/122400)  # fmt: skip
_SLOPES = tuple((2 * i + 1) * c for i, c in enumerate(_SERIES))
_CERTAIN = 1e30  # log-odds, against an extra zero, of a gene that was counted

Gradients = tuple[Tensor, ...]
"""Derivatives of each cell's log-likelihood by logits, log library, −log θ and, if any, dropout logits.

Of shape (b, g), and (b, 1) for the library, also where θ is shared by all cells.
"""


def nb_log_likelihood(
    x: SparseRows,
    logits: Float[Tensor, "b g"],
    log_library: Float[Tensor, "b 1"],
    log_theta: Float[Tensor, "#b g"],
) -> Float[Tensor, " b"]:
    """Return the negative binomial log-probability of each cell's counts, in nats.

    Parameters
    ----------
    x
        Raw counts, whole or not; stored zeros are zeros.
    logits
        Log frequencies, up to a constant per cell.
    log_library
        Log of the expected total.
    log_theta
        Log of the inverse dispersion, shared by the cells or one per cell and gene.

    Notes
    -----
    Gradients are analytic, of first order, and by the tensors only. A count above a mean under
    1e-31 (see `distributions.NegativeBinomial`) has the log-probability of that mean; its gradient
    still draws the logit up.

    Examples
    --------
    >>> import torch
    >>> x = SparseRows.of(torch.tensor([[0.0, 1.0]]))
    >>> zeros = torch.zeros(1, 2)
    >>> nb_log_likelihood(x, zeros, torch.tensor([[4.0]]).log(), zeros + torch.tensor(2.0).log()).exp()
    tensor([0.0625])
    """
    return _log_likelihood(x, logits, log_library, log_theta, None)


def zinb_log_likelihood(
    x: SparseRows,
    logits: Float[Tensor, "b g"],
    log_library: Float[Tensor, "b 1"],
    log_theta: Float[Tensor, "#b g"],
    dropout_logits: Float[Tensor, "b g"],
) -> Float[Tensor, " b"]:
    """Return the log-probability of each cell's counts, negative binomial with extra zeros, in nats.

    Parameters
    ----------
    x, logits, log_library, log_theta
        As in `nb_log_likelihood`.
    dropout_logits
        Log-odds of the extra zero.
    """
    return _log_likelihood(x, logits, log_library, log_theta, dropout_logits)


def _log_likelihood(x: SparseRows, *parameters: Tensor | None) -> Float[Tensor, " b"]:
    assert parameters[0] is not None
    # mixed precision would compute the inner products of the reference in 16 bits
    with torch.autocast(parameters[0].device.type, enabled=False):
        wide = (p.float() if p is not None and p.dtype.itemsize < 4 else p for p in parameters)
        return _LogLikelihood.apply(x, *wide)  # type: ignore[no-untyped-call]  # torch's own


class _LogLikelihood(Function):
    """Gradients are made with the value.

    The kernel makes them for the loss that is nearly always asked for, minus the mean over the
    batch; if another arrives it runs again, with the same bits as if it had been foreseen.
    """

    @staticmethod
    def forward(ctx: Any, x: SparseRows, *parameters: Tensor | None) -> Float[Tensor, " b"]:
        logits, log_library, log_theta, dropout_logits = parameters
        assert logits is not None
        assert log_library is not None
        assert log_theta is not None
        ctx.x, ctx.shared, ctx.by_kernel = x, len(log_theta) == 1, False
        if torch.compiler.is_compiling() or not kernel.serves(logits):
            evaluate = compiled if logits.is_cuda else reference
            ll, made = evaluate(x, logits, log_library, log_theta, dropout_logits)
            ctx.save_for_backward(*made)
            return ll
        ctx.by_kernel = True
        ll, gradients = kernel.log_likelihood(x, _minus_mean(logits), *parameters)
        ctx.save_for_backward(*gradients, *parameters)
        return ll

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, weights: Float[Tensor, " b"]) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors
        if not ctx.by_kernel:
            return None, *_weighted(saved, weights, shared=ctx.shared)
        gradients, parameters = saved[:4], saved[4:]
        if not torch.equal(weights, _minus_mean(parameters[0])):
            gradients = kernel.log_likelihood(ctx.x, weights, *parameters)[1]
        return None, *gradients


def _minus_mean(logits: Float[Tensor, "b g"]) -> Float[Tensor, " b"]:
    return logits.new_full((len(logits),), -1 / max(1, len(logits)))


def _weighted(
    gradients: Gradients, weights: Float[Tensor, " b"], *, shared: bool
) -> tuple[Tensor | None, ...]:
    by_logits, by_library, by_dispersion, *by_dropout = gradients
    each = weights[:, None]
    with torch.autocast(weights.device.type, enabled=False):
        by_theta = (-weights @ by_dispersion)[None] if shared else by_dispersion * -each
    return (
        by_logits * each,
        by_library * each,
        by_theta,
        by_dropout[0] * each if by_dropout else None,
    )


def reference(
    x: SparseRows,
    logits: Float[Tensor, "b g"],
    log_library: Float[Tensor, "b 1"],
    log_theta: Float[Tensor, "#b g"],
    dropout_logits: Float[Tensor, "b g"] | None = None,
    *,
    run: Callable[..., Any] = lambda part, *inputs: part(*inputs),
) -> tuple[Float[Tensor, " b"], Gradients]:
    """Return log-likelihoods and `Gradients`; `run` may compile the two parts that are dense."""
    theta = log_theta.exp()
    at = torch.add(x.columns, x.cells, alpha=x.n_features)
    frequency, by_mu, log_1q, m = run(_zeros, logits, log_library, theta, at)
    k = x.values.to(m.dtype)
    t = theta.view(-1).index_select(0, x.columns if len(theta) == 1 else at)
    ll, by_mu_there, log_1q_there = _counted(k, m, t)
    by_mu.view(-1).scatter_(0, at, by_mu_there)
    log_1q.view(-1).scatter_(0, at, log_1q_there)
    ll = torch.segment_reduce(ll, "sum", offsets=x.indptr, unsafe=True)
    extra = None if dropout_logits is None else (dropout_logits, k.sign() * _CERTAIN)
    more, gradients = run(_gather, frequency, by_mu, log_1q, theta, at, extra)
    return ll + more, gradients


def _zeros(
    logits: Float[Tensor, "b g"],
    log_library: Float[Tensor, "b 1"],
    theta: Float[Tensor, "#b g"],
    at: Int[Tensor, " n"],
) -> tuple[Tensor, ...]:
    """Return frequencies, derivatives by log μ and log(1 + q) as if all were zeros; means where stored."""
    frequency = logits.softmax(1)
    mu = frequency * log_library.exp()
    there = mu.view(-1).index_select(0, at)
    q = mu / theta
    log_1q = q.log1p()
    return frequency, mu.div_(torch.rsub(q, -1)), log_1q, there


def _counted(
    k: Float[Tensor, " n"], m: Float[Tensor, " n"], t: Float[Tensor, " n"]
) -> tuple[Float[Tensor, " n"], ...]:
    """Return what stored counts have in the place of a zero's terms, and what else they add.

    That is: (1) their log-probability, less the −θ log(1 + q) that (3) stands for; (2) their
    derivative by log μ; (3) the number that takes the place of log(1 + q) in the derivative by θ.
    """
    shift = _SHIFT[m.dtype]
    m = m.clamp(min=smallest_mean(m.dtype))
    z, s, f = _gamma(k + t), _gamma(t), _gamma(k + 1)
    mt, excess = m + t, k - m
    # log Γ(v) = (v − ½) log y − y − log ratio + series + ½ log 2π for v = k + t, t and k + 1. The
    # logs are gathered to powers t and k of two ratios, which are near 1 where these are large.
    of_t = log_ratio((t * excess).sub_(m, alpha=shift), torch.minimum(z.y * t, s.y * mt))
    of_k = log_ratio((m - f.y).mul_(t).sub_(m), torch.minimum(z.y * m, f.y * mt))
    rising = (z.ratio / (s.ratio * f.ratio)).square_().mul_(z.y).mul_(f.y).div_(s.y).log_()
    log_1q = _log_less_digamma(z).sub_(_log_less_digamma(s)).sub_(of_t)
    ll = of_t.add_(log_1q).mul_(t).addcmul_(k, of_k).sub_(rising, alpha=0.5)
    ll.add_(z.series).sub_(s.series).sub_(f.series).add_(shift + 1 - 0.5 * math.log(2 * math.pi))
    return ll, excess.mul_(t).div_(mt), log_1q


class _Gamma(NamedTuple):
    """Γ(v) as `_counted` takes it: from y = v + shift, and from the ratio of ∏(v + i) and y^shift."""

    v: Float[Tensor, " n"]
    y: Float[Tensor, " n"]
    ratio: Float[Tensor, " n"]
    series: Float[Tensor, " n"]
    inverse: Float[Tensor, " n"]
    square: Float[Tensor, " n"]
    pairs: list[Float[Tensor, " n"]]


def _gamma(v: Float[Tensor, " n"]) -> _Gamma:
    shift, terms = _SHIFT[v.dtype], _TERMS[v.dtype]
    y = v + shift
    inverse = y.reciprocal()
    square = inverse * inverse
    first = (v + (shift - 1)).mul_(v)
    pairs = [first, *(first + i * (shift - 1 - i) for i in range(1, shift // 2))]
    ratio = first * square
    for pair in pairs[1:]:
        ratio.mul_(pair).mul_(square)
    return _Gamma(
        v, y, ratio, _polynomial(_SERIES, square, terms).mul_(inverse), inverse, square, pairs
    )


def _log_less_digamma(at: _Gamma) -> Float[Tensor, " n"]:
    """Return log y − ψ(v)."""
    shift, terms = _SHIFT[at.v.dtype], _TERMS[at.v.dtype]
    reciprocals = at.pairs[0].reciprocal()
    for pair in at.pairs[1:]:
        reciprocals.add_(pair.reciprocal())
    slope = _polynomial(_SLOPES, at.square, terms).mul_(at.square).add_(at.inverse, alpha=0.5)
    return slope.addcmul_((at.v * 2).add_(shift - 1), reciprocals)


def _polynomial(
    coefficients: Sequence[float], y: Float[Tensor, " n"], terms: int
) -> Float[Tensor, " n"]:
    total = y * coefficients[terms - 1]
    for i in reversed(range(1, terms - 1)):
        total.add_(coefficients[i]).mul_(y)
    return total.add_(coefficients[0])


def _gather(
    frequency: Float[Tensor, "b g"],
    by_mu: Float[Tensor, "b g"],
    log_1q: Float[Tensor, "b g"],
    theta: Float[Tensor, "#b g"],
    at: Int[Tensor, " n"],
    extra: tuple[Float[Tensor, "b g"], Float[Tensor, " n"]] | None,
) -> tuple[Float[Tensor, " b"], Gradients]:
    """Sum over genes, inflate zeros, and take the derivative through the softmax; inputs are spent."""
    if extra is not None:
        against = -extra[0]
        counted = torch.addcmul(against, log_1q, theta, value=-1)
    by_dispersion = torch.addcmul(by_mu, log_1q, theta, out=log_1q)
    ll = by_mu.sum(1) - by_dispersion.sum(1)
    by_dropout: Gradients = ()
    if extra is not None:
        counted.view(-1).scatter_add_(0, at, extra[1])
        more, counted, kept = _inflation(counted, against)
        ll = ll + more
        by_mu, by_dispersion = by_mu.mul_(counted), by_dispersion.mul_(counted)
        by_dropout = (kept.sub_(counted),)
    by_library = by_mu.sum(1, keepdim=True)
    by_logits = by_mu.addcmul_(frequency, by_library, value=-1)
    return ll, (by_logits, by_library, by_dispersion, *by_dropout)


def _inflation(
    u: Float[Tensor, "b g"], v: Float[Tensor, "b g"]
) -> tuple[Float[Tensor, " b"], Float[Tensor, "b g"], Float[Tensor, "b g"]]:
    """Return Σ softplus(−u) − softplus(−v) over genes, sigmoid(u) and sigmoid(v); inputs are spent.

    softplus(−u) = max(−u, 0) − log max(s, 1 − s) with s = sigmoid(u), for which torch is quick. The
    ratios of the maxima are between ½ and 2: up to 64 of them are multiplied for each logarithm.
    """
    s, r = u.sigmoid(), v.sigmoid()
    out = v.clamp_(max=0).sum(1) - u.clamp_(max=0).sum(1)
    ratio = _larger(r).div_(_larger(s))
    blocks = ratio.shape[1] // 64
    products = ratio[:, : 64 * blocks].unflatten(1, (blocks, 64)).prod(2)
    return out + products.log_().sum(1) + ratio[:, 64 * blocks :].log().sum(1), s, r


def _larger(s: Float[Tensor, "b g"]) -> Float[Tensor, "b g"]:
    """Return max(s, 1 − s)."""
    other = 1 - s
    return torch.maximum(s, other, out=other)


def compiled(*inputs: Any) -> tuple[Float[Tensor, " b"], Gradients]:
    """Return what `reference` does, with its dense parts compiled by torch where that works."""
    return reference(*inputs, run=_run_compiled)


_failed: list[str] = []


def _run_compiled(part: Callable[..., Any], *inputs: Any) -> Any:
    if not _failed:
        try:
            return _compile(part)(*inputs)
        except RuntimeError as error:  # no Triton, no compiler, an unknown device, …
            _failed.append(str(error))
    return part(*inputs)


@cache
def _compile(part: Callable[..., Any]) -> Callable[..., Any]:
    return torch.compile(part)
