"""Log-likelihoods of counts whose frequencies are a softmax: the costly part of a step, fused.

They are those of `distributions.NegativeBinomial` and `ZeroInflatedNegativeBinomial` with
μ = exp(log library) · softmax(logits) and θ = exp(log θ), summed over genes. Values and gradients come
out of one pass: the compiled `kernel` where it serves, else `reference`, which is plain torch.

With q = μ/θ, a count of 0 has the log-probability −θ log(1 + q), whose derivative by log μ is
−μ/(1 + q). Nothing else is computed of the zeros; Γ is met at stored values alone, where Stirling's
series makes the large parts of a log-probability cancel on paper instead of in floating point.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from functools import cache, reduce
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from ..data.batch import SparseRows
from ..distributions._counts import log_ratio, smallest_mean
from . import kernel
from .gamma import Gamma

log = logging.getLogger(__name__)

_CERTAIN = 1e30  # log-odds, against an extra zero, of a gene that was counted
# A log θ that rises with the frequency is kept within this, beyond which nothing changes; as in kernel.c.
_MOST = 15.0

Gradients = tuple[Tensor | None, ...]
"""By logits, log library, log θ and dropout logits, which the negative binomial has none of."""


def nb_log_likelihood(
    x: SparseRows,
    logits: Float[Tensor, "b g"],
    log_library: Float[Tensor, "b 1"],
    log_theta: Float[Tensor, "#b g"],
    *,
    log_rise: Float[Tensor, "1 g"] | None = None,
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
    log_rise
        If given, `log_theta` is that of a frequency of 0, from which θ rises (`log_theta_at`).

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
    return _log_likelihood(x, log_rise, logits, log_library, log_theta)


def zinb_log_likelihood(
    x: SparseRows,
    logits: Float[Tensor, "b g"],
    log_library: Float[Tensor, "b 1"],
    log_theta: Float[Tensor, "#b g"],
    dropout_logits: Float[Tensor, "b g"],
    *,
    log_rise: Float[Tensor, "1 g"] | None = None,
) -> Float[Tensor, " b"]:
    """Return the log-probability of each cell's counts, negative binomial with extra zeros, in nats.

    Parameters
    ----------
    x, logits, log_library, log_theta, log_rise
        As in `nb_log_likelihood`.
    dropout_logits
        Log-odds of the extra zero.
    """
    return _log_likelihood(x, log_rise, logits, log_library, log_theta, dropout_logits)


def log_theta_at(
    log_theta: Float[Tensor, "1 g"], log_rise: Float[Tensor, "1 g"], logits: Float[Tensor, "b g"]
) -> Float[Tensor, "b g"]:
    """Return log θ in each cell, θ = exp(`log_theta`) + exp(`log_rise`) × frequency, kept finite."""
    return torch.logaddexp(log_theta, log_rise + logits.log_softmax(1)).clamp(-_MOST, _MOST)


def poisson_log_likelihood(
    x: SparseRows, logits: Float[Tensor, "b g"], log_library: Float[Tensor, "b 1"]
) -> Float[Tensor, " b"]:
    """Return the Poisson log-probability of each cell's counts, in nats; parameters as above.

    The means of a cell sum to its library, so its zeros need nothing but that.
    """
    logits, log_library = _wide(logits, log_library)
    log_mu = (logits.log_softmax(1) + log_library).view(-1)
    log_rate = log_mu[torch.add(x.columns, x.cells, alpha=x.n_features)]
    each = x.values * log_rate - torch.lgamma(x.values + 1)
    return _sums(x, each) - log_library.exp()[:, 0]


def bernoulli_log_likelihood(x: SparseRows, logits: Float[Tensor, "b g"]) -> Float[Tensor, " b"]:
    """Return the log-probability that just the features stored above 0 are there, in nats.

    Parameters
    ----------
    logits
        Log-odds of each feature.
    """
    (logits,) = _wide(logits)
    log_odds = logits.view(-1)[torch.add(x.columns, x.cells, alpha=x.n_features)]
    return _sums(x, log_odds * x.values.sign()) - F.softplus(logits).sum(1)


def _wide(*parameters: Tensor) -> tuple[Tensor, ...]:
    """Return them in one precision, that of 16 bits being too coarse for sums over genes."""
    dtype = reduce(torch.promote_types, (p.dtype for p in parameters), torch.float32)
    return tuple(p.to(dtype).contiguous() for p in parameters)


def _sums(x: SparseRows, values: Float[Tensor, " n"]) -> Float[Tensor, " b"]:
    return values.new_zeros(len(x)).index_add(0, x.cells, values)


def _log_likelihood(
    x: SparseRows, log_rise: Float[Tensor, "1 g"] | None, *parameters: Tensor
) -> Float[Tensor, " b"]:
    logits, _, log_theta = parameters[:3]
    b, g = logits.shape
    expected = [(b, g), (b, 1), (len(log_theta), g), (b, g)][: len(parameters)]
    shapes = [tuple(p.shape) for p in parameters]
    # the kernel reads memory by these
    if (len(x), x.n_features) != (b, g) or len(log_theta) not in (1, b) or shapes != expected:
        raise ValueError(f"Counts of shape {(len(x), x.n_features)}, parameters of {shapes}.")
    # mixed precision would compute the inner products of the reference in 16 bits
    with torch.autocast(logits.device.type, enabled=False):
        wide = _wide(*parameters)
        if log_rise is not None:
            log_rise = log_rise.to(wide[0].dtype).contiguous()
            if len(log_theta) > 1 or log_rise.shape != (1, g):
                raise ValueError(f"Rises of shape {tuple(log_rise.shape)}, parameters of {shapes}.")
            if torch.compiler.is_compiling() or not kernel.serves(wide[0]):
                wide = (*wide[:2], log_theta_at(wide[2], log_rise, wide[0]), *wide[3:])
                log_rise = None
        four = (*wide, None)[:4]
        return _LogLikelihood.apply(x, *four, log_rise)  # type: ignore[no-untyped-call]  # torch's own


class _LogLikelihood(Function):
    """Gradients are made with the value.

    The kernel weighs the cells as the last loss did, at first as minus their mean does. If another
    gradient arrives it runs again, with the same bits as if that one had been foreseen.
    """

    @staticmethod
    def forward(ctx: Any, x: SparseRows, *parameters: Tensor | None) -> Float[Tensor, " b"]:
        logits, _, log_theta, *_ = parameters
        assert logits is not None
        assert log_theta is not None
        ctx.x, ctx.shared, ctx.weights = x, len(log_theta) == 1, None
        if torch.compiler.is_compiling() or not kernel.serves(logits):
            evaluate: Callable[..., Any] = compiled if logits.is_cuda else reference
            ll, gradients = evaluate(x, *parameters[:4])
            ctx.save_for_backward(*gradients)
            return ll
        b = len(logits)
        ctx.weights = logits.new_full((b,), _foreseen.get(b, -1 / max(b, 1)))
        ll, gradients = kernel.log_likelihood(x, ctx.weights, *parameters)
        ctx.save_for_backward(*gradients, *parameters)
        return ll

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, weights: Float[Tensor, " b"]) -> tuple[Tensor | None, ...]:
        if ctx.weights is None:
            return None, *_weighted(ctx.saved_tensors, weights, shared=ctx.shared), None
        gradients, parameters = ctx.saved_tensors[:5], ctx.saved_tensors[5:]
        if not torch.equal(weights, ctx.weights):
            _foreseen[len(weights)] = float(weights[0])
            gradients = kernel.log_likelihood(ctx.x, weights, *parameters)[1]
        return None, *gradients


_foreseen: dict[int, float] = {}
"""The weight of a cell in the last loss over so many cells."""


def _weighted(gradients: Gradients, weights: Float[Tensor, " b"], *, shared: bool) -> Gradients:
    """Return the gradient of the weighted sum from the `reference`'s per cell."""
    by_logits, by_library, by_dispersion, by_dropout = gradients
    assert by_logits is not None
    assert by_library is not None
    assert by_dispersion is not None
    each = weights[:, None]
    with torch.autocast(weights.device.type, enabled=False):
        by_theta = (-weights @ by_dispersion)[None] if shared else by_dispersion * -each
    by_dropout = None if by_dropout is None else by_dropout * each
    return by_logits * each, by_library * each, by_theta, by_dropout


def reference(
    x: SparseRows,
    logits: Float[Tensor, "b g"],
    log_library: Float[Tensor, "b 1"],
    log_theta: Float[Tensor, "#b g"],
    dropout_logits: Float[Tensor, "b g"] | None = None,
    *,
    run: Callable[..., Any] = lambda part, *inputs: part(*inputs),
) -> tuple[Float[Tensor, " b"], Gradients]:
    """Return log-likelihoods and their gradients, each cell's own, and by −log θ in place of log θ.

    `run` may compile the two parts that are dense.
    """
    theta = log_theta.exp()
    at = torch.add(x.columns, x.cells, alpha=x.n_features)
    mu, by_mu, log_1q = run(_zeros, logits, log_library, theta)
    m, k = mu.view(-1).index_select(0, at), x.values.to(mu.dtype)
    t = theta.view(-1).index_select(0, x.columns if len(theta) == 1 else at)
    ll, by_mu_there, log_1q_there = _counted(k, m, t)
    by_mu.view(-1).scatter_(0, at, by_mu_there)
    log_1q.view(-1).scatter_(0, at, log_1q_there)
    ll = torch.segment_reduce(ll, "sum", offsets=x.indptr, unsafe=True)
    extra = None if dropout_logits is None else (dropout_logits, k.sign() * _CERTAIN)
    more, gradients = run(_gather, mu, by_mu, log_1q, log_library, theta, at, extra)
    return ll + more, gradients


def _zeros(
    logits: Float[Tensor, "b g"], log_library: Float[Tensor, "b 1"], theta: Float[Tensor, "#b g"]
) -> tuple[Float[Tensor, "b g"], ...]:
    """Return means and, as if all counts were zeros, derivatives by log μ, and log(1 + q)."""
    mu = logits.softmax(1).mul_(log_library.exp())
    q = mu / theta
    log_1q = q.log1p()
    return mu, torch.div(mu, q.neg_().sub_(1), out=q), log_1q


def _counted(
    k: Float[Tensor, " n"], m: Float[Tensor, " n"], t: Float[Tensor, " n"]
) -> tuple[Float[Tensor, " n"], ...]:
    """Return what counts k of mean m and inverse dispersion t have in the place of a zero's terms.

    That is: (1) their log-probability, less the −θ log(1 + q) that (3) stands for; (2) its
    derivative by log μ; (3) what stands for log(1 + q) in that by −log θ, θ log(1 + q) − μ/(1 + q).
    """
    m = m.clamp(min=smallest_mean(m.dtype))
    z, s, f = Gamma(k + t), Gamma(t), Gamma(k + 1)
    both, excess = m + t, k - m
    # Γ(k + t) / Γ(t) Γ(k + 1): y log y goes into powers t and k of ratios that are near 1 where t or
    # k is large, which is how the large parts cancel
    of_t = log_ratio((t * excess).sub_(m, alpha=z.shift), torch.minimum(z.y * t, s.y * both))
    of_k = log_ratio((m - f.y).mul_(t).sub_(m), torch.minimum(z.y * m, f.y * both))
    rest = (z.ratio() / (s.ratio() * f.ratio())).square_().mul_(z.y).mul_(f.y).div_(s.y).log_()
    log_1q = z.log_less_digamma().sub_(s.log_less_digamma()).sub_(of_t)
    ll = of_t.add_(log_1q).mul_(t).addcmul_(k, of_k).sub_(rest, alpha=0.5)
    ll.add_(z.series()).sub_(s.series()).sub_(f.series())
    return ll.add_(z.shift + 1 - 0.5 * math.log(2 * math.pi)), excess.mul_(t).div_(both), log_1q


def _gather(
    mu: Float[Tensor, "b g"],
    by_mu: Float[Tensor, "b g"],
    log_1q: Float[Tensor, "b g"],
    log_library: Float[Tensor, "b 1"],
    theta: Float[Tensor, "#b g"],
    at: Int[Tensor, " n"],
    extra: tuple[Float[Tensor, "b g"], Float[Tensor, " n"]] | None,
) -> tuple[Float[Tensor, " b"], Gradients]:
    """Sum over genes, inflate zeros, and go back through the softmax; the inputs are spent."""
    if extra is not None:
        against, certain = -extra[0], extra[1]
        u = torch.addcmul(against, log_1q, theta, value=-1)  # log-odds against an extra zero
    by_dispersion = torch.addcmul(by_mu, log_1q, theta, out=log_1q)
    ll = by_mu.sum(1) - by_dispersion.sum(1)
    by_dropout = None
    if extra is not None:
        u.view(-1).scatter_add_(0, at, certain)
        more, counted, kept = _inflation(u, against)
        ll = ll + more
        by_mu, by_dispersion = by_mu.mul_(counted), by_dispersion.mul_(counted)
        by_dropout = kept.sub_(counted)
    by_library = by_mu.sum(1, keepdim=True)
    library = log_library.exp().clamp(min=torch.finfo(mu.dtype).tiny)
    by_logits = by_mu.addcmul_(mu, by_library / library, value=-1)
    return ll, (by_logits, by_library, by_dispersion, by_dropout)


def _inflation(
    u: Float[Tensor, "b g"], v: Float[Tensor, "b g"]
) -> tuple[Float[Tensor, " b"], Float[Tensor, "b g"], Float[Tensor, "b g"]]:
    """Return Σ softplus(−u) − softplus(−v) over genes, sigmoid(u) and sigmoid(v); inputs are spent.

    softplus(−u) = max(−u, 0) − log max(s, 1 − s) with s = sigmoid(u), for which torch is quick.
    """
    s, r = u.sigmoid(), v.sigmoid()
    out = v.clamp_(max=0).sub_(u.clamp_(max=0)).sum(1)
    return out + _sum_of_logs(_larger(r, out=v).div_(_larger(s, out=u))), s, r


def _larger(s: Float[Tensor, "b g"], out: Float[Tensor, "b g"]) -> Float[Tensor, "b g"]:
    """Return max(s, 1 − s)."""
    return torch.maximum(s, torch.sub(s.new_ones(()), s, out=out), out=out)


def _sum_of_logs(x: Float[Tensor, "b g"]) -> Float[Tensor, " b"]:
    """Return the sum over genes of logs of numbers between ½ and 2."""
    if torch.compiler.is_compiling():
        return x.log().sum(1)
    whole = x.shape[1] // 64 * 64
    products = x[:, :whole].unflatten(1, (-1, 64)).prod(2)  # a third of the time of 64 logs
    return products.log_().sum(1) + x[:, whole:].log().sum(1)


class _Compiled:
    """`reference` with its dense parts compiled by torch, once this has been seen to work."""

    def __init__(self) -> None:
        self.works: bool | None = None  # None: not tried

    def __call__(self, *inputs: Any) -> tuple[Float[Tensor, " b"], Gradients]:
        """Return what `reference` does."""
        if self.works is not False:
            try:
                found = reference(*inputs, run=_run_compiled)
            except torch.OutOfMemoryError:  # says nothing of the compiler
                raise
            except RuntimeError as error:  # no Triton, no compiler, an unknown device, …
                log.info("the reference is not compiled: %s", error)
                self.works = False
        if self.works:
            return found
        expected = reference(*inputs)
        if self.works is None:
            pairs = zip(_tensors(found), _tensors(expected), strict=True)
            self.works = all(bool((a - b).norm() <= 1e-4 * b.norm()) for a, b in pairs)
        return found if self.works else expected  # the first call like all others, to the bit


compiled = _Compiled()


def _tensors(result: tuple[Tensor, Gradients]) -> list[Tensor]:
    return [t for t in (result[0], *result[1]) if t is not None]


def _run_compiled(part: Callable[..., Any], *inputs: Any) -> Any:
    return _compile(part)(*inputs)


@cache
def _compile(part: Callable[..., Any]) -> Callable[..., Any]:
    return torch.compile(part, dynamic=True)  # no two minibatches store as many values
