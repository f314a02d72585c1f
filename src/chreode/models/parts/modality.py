"""Encoder and decoder of one kind of counts, for autoencoders of one kind or several."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from ...data.batch import SparseRows
from ...distributions import Bernoulli, NegativeBinomial, Poisson
from ...errors import warn
from ...losses.counts import bernoulli_log_likelihood, nb_log_likelihood, poisson_log_likelihood
from ...nn.blocks import MLP, Linear, cells_of_all
from ...nn.dispersion import NEVER, CountMoments, LogTheta
from .within import Expected, WithinTypes

#: What the decoder reads: latent vectors, log ℓ, and how far attributes move the logits.
DecoderInput = tuple[Float[Tensor, "b z"], Float[Tensor, "b 1"], Float[Tensor, "b g"] | float]


class Modality(nn.Module):
    """Counts to features, and latent vectors to counts.

    Parameters
    ----------
    kind
        ``"nb"``: negative binomial of mean ℓ softmax(·); ``"poisson"``: Poisson of that mean;
        ``"bernoulli"``: there or not.
    hidden
        Widths of the encoder; the decoder has them in reverse.
    groups
        Blocks of categories that have a θ each (default: one θ per feature).
    normalised
        Encode log1p of counts per 10,000 instead of log1p of counts.
    theta_speed, rises
        See `LogTheta`.
    n_types
        Types of cells of which `WithinTypes` are counted (0: none are).
    """

    def __init__(
        self,
        n_features: int,
        n_latent: int,
        hidden: Sequence[int],
        kind: Literal["nb", "poisson", "bernoulli"],
        *,
        groups: Sequence[int] = (1,),
        normalised: bool = False,
        theta_speed: float = 10.0,
        rises: bool = False,
        n_types: int = 0,
    ) -> None:
        super().__init__()
        self.kind, self.normalised = kind, normalised
        self.encoder = MLP(n_features, hidden, activation="elu", momentum=0.1)
        self.decoder = MLP(n_latent, hidden[::-1], activation="elu", momentum=0.1)
        self.head = Linear(hidden[0], n_features)
        self.missing = nn.Parameter(torch.zeros(hidden[-1]))
        self.log_theta = (
            LogTheta(groups, n_features, theta_speed, rises=rises) if kind == "nb" else None
        )
        self.within = WithinTypes(n_types, n_features) if n_types and kind == "nb" else None

    @torch.no_grad()
    def start(self, rows: Iterable[SparseRows], n_cells: int, *, at_data: bool) -> None:
        """Take the frequencies that θ refers to; with `at_data`, let the decoder begin there.

        That is at each feature's mean and, where it has one, at its spread. At random, the many steps
        that bring them there are lost to what differs between cells.
        """
        moments = CountMoments.of(rows)
        if self.log_theta is not None:
            self.log_theta.refer(moments.log_frequency, n_cells)
        if self.kind == "poisson" and moments.binary:
            warn(
                "All peaks are 0 or 1, and new cells will have counts of them. Say peaks='bernoulli' "
                "(--peaks bernoulli) for peaks that are open or not."
            )
        if not at_data:
            return
        self.head.bias.copy_(
            moments.log_odds if self.kind == "bernoulli" else moments.log_frequency
        )
        if self.log_theta is not None:
            self.log_theta.start(moments.log_theta)

    def features(
        self, x: SparseRows, present: Bool[Tensor, " b"] | None = None
    ) -> Float[Tensor, "b h"]:
        """Return the encoder's activations; a learned vector stands for cells that are not `present`."""
        if self.kind == "bernoulli":
            x = x.map(x.values.sign())
        else:
            scale = (1e4 / x.sum().clamp_min(1.0))[x.cells] if self.normalised else 1.0
            x = x.map(torch.log1p(x.values * scale))
        if present is None:
            return self.encoder(x)
        out = self.missing.expand(len(x), -1)
        # batch norm learns from two, which is for all processes to decide alike
        if int(cells_of_all(present.sum(), self.encoder.norms[0])) < (2 if self.training else 1):
            return out
        if bool(present.all()):
            return self.encoder(x)
        out = out.clone()
        out[present] = self.encoder(x.without(~present)).to(out.dtype)
        return out

    def log_likelihood(
        self,
        x: SparseRows,
        z: Float[Tensor, "b z"],
        log_depth: Float[Tensor, "b 1"],
        group: Int[Tensor, " b"] | None = None,
        shift: Float[Tensor, "b g"] | float = 0.0,
        measured: Bool[Tensor, " g"] | None = None,
        types: Int[Tensor, " b"] | None = None,
    ) -> Float[Tensor, " b"]:
        """Return log p(x|z, ℓ, group) in nats, summed over `measured` features.

        Logits are moved by `shift`; `types` are those of `WithinTypes`, None: not given.
        """
        whole = self._logits(z, types) + shift
        logits = _among(measured, whole)
        if self.kind == "bernoulli":
            return bernoulli_log_likelihood(x, logits)
        if self.kind == "poisson":
            return poisson_log_likelihood(x, logits, log_depth)
        assert self.log_theta is not None
        rows = self._rows(group)
        # counting some features alone leaves θ as it is
        if measured is not None or (types is not None and self.within is not None):
            return nb_log_likelihood(x, logits, log_depth, self._log_theta(rows, whole, types))
        at_none, log_rise = self.log_theta.for_likelihood(rows)
        return nb_log_likelihood(x, logits, log_depth, at_none, log_rise=log_rise)

    def distribution(
        self,
        z: Float[Tensor, "b z"] | None,
        log_depth: Float[Tensor, "b 1"],
        group: Int[Tensor, " b"] | None = None,
        shift: Float[Tensor, "b g"] | float = 0.0,
        measured: Bool[Tensor, " g"] | None = None,
        types: Int[Tensor, " b"] | None = None,
    ) -> NegativeBinomial | Poisson | Bernoulli:
        """Return p(x|z, ℓ, group), moved as above; no z: as if all cells were alike.

        ℓ is the total of the `measured` features (default: all).
        """
        hidden = self.head.bias.expand(len(log_depth), -1)
        logits = (hidden if z is None else self._logits(z, types)) + shift
        if self.kind == "bernoulli":
            return Bernoulli(logits)
        total = _among(measured, logits).logsumexp(-1, keepdim=True)
        mu = (log_depth + logits - total).exp()
        if self.kind == "poisson":
            return Poisson(mu)
        assert self.log_theta is not None
        return NegativeBinomial(mu, self._log_theta(self._rows(group), logits, types).exp())

    def _logits(
        self, z: Float[Tensor, "b z"], types: Int[Tensor, " b"] | None
    ) -> Float[Tensor, "b g"]:
        """Return the decoder's logits, for these types."""
        logits: Tensor = self.head(self.decoder(z))
        return logits if self.within is None or types is None else self.within.tilted(logits, types)

    def _log_theta(
        self,
        rows: Float[Tensor, "#b g"],
        logits: Float[Tensor, "b g"],
        types: Int[Tensor, " b"] | None,
    ) -> Float[Tensor, "#b g"]:
        assert self.log_theta is not None
        found = self.log_theta.of(rows, logits)
        return found if self.within is None or types is None else found + self.within.shift[types]

    def fit_within(
        self, cells: Callable[[], Iterator[tuple[SparseRows, Int[Tensor, " b"], DecoderInput]]]
    ) -> None:
        """Count what cells of a type differ in, from counts, types, and z, log ℓ and the logits' shift."""
        assert self.within is not None
        assert self.log_theta is not None
        tiny, within = torch.finfo(torch.float32).tiny, self.within
        rising = self.log_theta.rising

        def expected() -> Iterator[Expected]:
            for x, types, (z, log_depth, shift) in cells():
                nb = self.distribution(z, log_depth, None, shift)
                assert isinstance(nb, NegativeBinomial)
                log_frequency = self._logits(z, None).log_softmax(1)
                log_theta = nb.theta.log() + within.shift[types]
                log_mean = nb.mu.clamp_min(tiny).log()
                yield Expected(x, types, log_frequency, log_mean, log_theta, rising(log_mean))

        within.fit(expected)

    def _rows(self, group: Int[Tensor, " b"] | None) -> Float[Tensor, "#b g"]:
        """Return rows of the table of log θ; a cell of no group (-1) has the mean of them all."""
        assert self.log_theta is not None
        table = self.log_theta.table()
        if group is None:
            return table
        return table[group.clamp(min=0)].where(group[:, None] >= 0, table.mean(0))


def _among(
    measured: Bool[Tensor, " g"] | None, logits: Float[Tensor, "b g"]
) -> Float[Tensor, "b g"]:
    """Return logits; of features that are not `measured` nothing is expected."""
    return logits if measured is None else logits.masked_fill(~measured, NEVER)
