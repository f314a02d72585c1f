"""scVI: a variational autoencoder of counts, with batches and depth kept out of the latent space."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ..compute.rng import Rng
from ..config import config, param
from ..data.batch import CellBatch, SparseRows
from ..data.sampler import Shuffled
from ..data.source import Source
from ..learn.phase import Phase
from ..learn.sgd import SGD
from ..losses.barlowtwins import barlow_twins
from ..losses.evidence import evidence_bound, log_ratio_standard_normal
from ..losses.kl import kl_normal, kl_standard_normal
from ..model import Model
from ..module import Loss, Step
from ..nn.augment import thinned
from ..nn.blocks import (
    CategoryStatistics,
    GaussianEncoder,
    input_weight,
    reparametrise,
)
from ..nn.dispersion import CountMoments
from ..schema import Spec
from .parts.counts_decoder import WITHOUT_EXTRA_ZEROS, CountsDecoder

#: Counts of the shallowest cells that `joint` makes, and its λ (scvi-tools 1.5, JointEmbeddingSCVI).
_SHALLOWEST, _REDUNDANCY = 10, 0.01


@dataclass(frozen=True, eq=False)
class Latent:
    """The posterior of some cells: mean and variance of q(z|x), and of q(log ℓ|x) if ℓ is latent."""

    mean: Float[Tensor, "b z"]
    variance: Float[Tensor, "b z"]
    library: tuple[Float[Tensor, "b 1"], Float[Tensor, "b 1"]] | None

    def halves(self) -> list[Latent]:
        """Return that of the first half of the cells, and that of the second."""
        library = (
            zip(*(t.chunk(2) for t in self.library), strict=True) if self.library else [None] * 2
        )
        return [*map(Latent, self.mean.chunk(2), self.variance.chunk(2), library)]


class SCVIModule(CountsDecoder):
    """Encoder, decoder, dispersions and library size of scVI."""

    started: Tensor

    def __init__(self, options: SCVI, spec: Spec) -> None:
        super().__init__()
        self.options = options
        self.unable = () if options.linear_decoder else ("loadings",)
        genes, categories = spec.n_features("counts"), spec.condition_blocks()
        covariates: dict[str, Any] = {
            "categories": categories,
            "n_continuous": len(spec.continuous),
        }
        seen = covariates if options.encode_covariates else {}
        self.encoder = GaussianEncoder(
            genes,
            options.n_latent,
            options.n_hidden,
            options.n_layers,
            dropout=options.dropout,
            **seen,
        )
        self.library_encoder: GaussianEncoder | None = None
        if options.latent_library:
            self.library_encoder = GaussianEncoder(
                genes, 1, options.n_hidden, 1, dropout=options.dropout, **seen
            )
            batches = spec.blocks.get("batch", (1,))
            self.library_prior = CategoryStatistics(batches)
        self.add_decoder(options, spec)
        self.register_buffer("started", torch.tensor(False))

    def prepare(self, source: Source, rows: np.ndarray, rng: Rng) -> None:  # noqa: ARG002 (the contract)
        """Estimate the prior of the library size, and set the start of the decoder."""
        fresh = not self.started  # a fit that starts from another has all this already
        self.started.fill_(True)
        if self.options.latent_library:
            library = torch.cat([b.sparse("counts").sum().log() for b in source.batches(rows)])
            codes = source.columns.get("batch", np.zeros(len(source), np.int64))[rows]
            self.library_prior.fill(library.cpu(), torch.from_numpy(codes))
        if fresh:
            moments = CountMoments.of(b.sparse("counts") for b in source.batches(rows))
            self._start(moments, len(rows), self._first_logits(moments, source, rows))

    # the model

    def encode(self, batch: CellBatch) -> Latent:
        """Return means and variances of q(z|x), and those of the log library size if it is latent."""
        x = batch.sparse("counts")
        log_x = x.map(x.values.log1p())
        inputs = (log_x, *self._covariates(batch)) if self.options.encode_covariates else (log_x,)
        mean, variance = self.encoder(*inputs)
        return Latent(
            mean, variance, self.library_encoder(*inputs) if self.library_encoder else None
        )

    def encode_with_thinned(self, batch: CellBatch) -> list[Latent]:
        """Return `encode` of the cells, and of the same cells thinned to depths drawn log-uniformly.

        Both pass the encoder at once, so that batch norm learns from the depths that it will meet.
        """
        counts = batch.sparse("counts")
        lowest = (_SHALLOWEST / counts.sum()).clamp(max=1)  # a cell of fewer counts keeps them all
        kept = (torch.rand_like(lowest) * lowest.log()).exp()
        both = SparseRows.stacked([counts, thinned(counts, kept)])
        columns = {name: torch.cat([values] * 2) for name, values in batch.columns.items()}
        return self.encode(
            CellBatch(batch.rows.repeat(2), {"counts": both}, columns=columns)
        ).halves()

    def log_library(self, batch: CellBatch, latent: Latent | None = None) -> Float[Tensor, "b 1"]:
        """Return the log library size: a size factor, the mean of the latent size, or the observed total."""
        if self.scaled:
            return batch["size_factor"].log()[:, None]
        if latent is not None and latent.library is not None:
            return latent.library[0]
        total = batch.sparse("counts").sum() if "counts" in batch else batch["library"]
        return total.log()[:, None]

    def loss(self, batch: CellBatch, step: Step) -> Loss:
        """Return the negative ELBO; the weight of the KL term of z rises to 1 over `kl_warmup`.

        With `joint`, the Barlow Twins loss of draws of z for the cells and for the cells thinned is added.
        """
        views = self.encode_with_thinned(batch) if self.options.joint else [self.encode(batch)]
        latent, *thinner = views
        z = reparametrise(latent.mean, latent.variance)
        log_library, late = self._draw_library(batch, latent), step.progress >= WITHOUT_EXTRA_ZEROS
        reconstruction = -self.log_likelihood(z, log_library, batch, extra_zeros=late)
        kl = kl_standard_normal(latent.mean, latent.variance)
        kl_library = self._library_kl(batch, latent)
        weight = step.warm_up(self.options.kl_warmup)
        objective = (reconstruction + weight * kl + kl_library).mean()
        if self.options.likelihood != "poisson":
            objective = objective + self.log_theta.penalty()
        lost, gap, gap_library = (v.detach().mean() for v in (reconstruction, kl, kl_library))
        terms = {"reconstruction": lost, "kl": gap, "elbo": -(lost + gap + gap_library)}
        if self.library_encoder is not None:
            terms["kl_library"] = gap_library
        if self.options.joint:
            other = reparametrise(thinner[0].mean, thinner[0].variance)
            terms["joint"] = barlow_twins(z, other, _REDUNDANCY, step.group)
            objective = objective + self.options.joint * terms["joint"]
        return Loss({"model": objective}, terms)

    # what a fitted model can do

    def embed(self, batch: CellBatch) -> Float[Tensor, "b z"]:
        """Return the posterior mean of each cell."""
        return self.encode(batch).mean

    def posterior(self, batch: CellBatch, n_samples: int) -> Float[Tensor, "s b z"]:
        """Return draws from the posterior of each cell."""
        latent = self.encode(batch)
        shape = (n_samples, *latent.mean.shape)
        return reparametrise(latent.mean.expand(shape), latent.variance.expand(shape))

    def reconstruct(
        self, batch: CellBatch, to: CellBatch, library: float | None = None
    ) -> Float[Tensor, "b g"]:
        """Return expected counts at the depth of the cell, or frequencies scaled to `library`.

        Expected counts include the extra zeros. Frequencies, ℓρ, do not, and sum to `library`.
        """
        latent = self.encode(batch)
        log_library = self.log_library(batch, latent)
        if library is None:
            return self.decode(latent.mean, log_library, to).mean
        mu = self.rates(latent.mean, log_library, to)[0]
        return mu * (library / mu.sum(-1, keepdim=True))

    def predict(self, batch: CellBatch, to: CellBatch) -> Float[Tensor, "b g"]:
        """Return counts drawn for each cell under the batch and covariates of `to` (posterior predictive)."""
        latent = self.encode(batch)
        z = reparametrise(latent.mean, latent.variance)
        return self.decode(z, self._draw_library(batch, latent), to).sample()

    def generate(self, batch: CellBatch) -> Float[Tensor, "b g"]:
        """Return counts of cells drawn from the prior, at depths of training cells of the same conditions."""
        z = torch.randn(len(batch), self.options.n_latent, device=batch.rows.device)
        if self.library_encoder is not None:
            mean, scale = self._library_prior(batch)
            log_library = mean + scale * torch.randn_like(mean)
        else:
            log_library = self.log_library(batch)
        return self.decode(z, log_library, batch).sample()

    def score(
        self,
        batch: CellBatch,
        n_samples: int,
        importance: bool,  # noqa: FBT001 (the contract)
    ) -> Float[Tensor, " b"]:
        """Return the ELBO, or the importance-weighted bound (Burda 2016), in nats per cell."""
        latent = self.encode(batch)
        kl = kl_standard_normal(latent.mean, latent.variance) + self._library_kl(batch, latent)

        def draw() -> tuple[Float[Tensor, " b"], Float[Tensor, " b"]]:
            z = reparametrise(latent.mean, latent.variance)
            log_library = self._draw_library(batch, latent)
            ll = self.log_likelihood(z, log_library, batch)
            return ll, self._log_ratio(batch, latent, z, log_library)

        return evidence_bound(draw, kl, n_samples, importance=importance)

    def feature_weight(self) -> dict[str, Float[Tensor, " g"]]:
        """Return the norm of the encoder's weights per gene."""
        return {"counts": input_weight(self.encoder)}

    # details

    def _draw_library(self, batch: CellBatch, latent: Latent) -> Float[Tensor, "b 1"]:
        return reparametrise(*latent.library) if latent.library else self.log_library(batch)

    def _library_prior(self, batch: CellBatch) -> tuple[Float[Tensor, "b 1"], Float[Tensor, "b 1"]]:
        codes = batch["batch"] if "batch" in batch else torch.zeros_like(batch.rows)
        mean, scale = self.library_prior(codes).split(1, dim=1)
        return mean, scale

    def _library_kl(self, batch: CellBatch, latent: Latent) -> Float[Tensor, " b"]:
        if latent.library is None:
            return torch.zeros_like(latent.mean[:, 0])
        mean, variance = latent.library
        return kl_normal(mean, variance.sqrt(), *self._library_prior(batch)).squeeze(-1)

    def _log_ratio(
        self,
        batch: CellBatch,
        latent: Latent,
        z: Float[Tensor, "b z"],
        log_library: Float[Tensor, "b 1"],
    ) -> Float[Tensor, " b"]:
        """Return log p(z, ℓ) − log q(z, ℓ|x)."""
        ratio = log_ratio_standard_normal(z, latent.mean, latent.variance)
        if latent.library is None:
            return ratio
        normal, (mean, variance) = torch.distributions.Normal, latent.library
        prior, q = normal(*self._library_prior(batch)), normal(mean, variance.sqrt())
        return ratio + (prior.log_prob(log_library) - q.log_prob(log_library)).squeeze(-1)


@config
class SCVI(Model):
    """scVI: a variational autoencoder of counts, with batches and depth kept out of the latent space.

    Generative story, for cell n and gene g::

        z_n ~ N(0, I)                      state of the cell
        ρ_n = softmax(f(z_n, s_n))         expected frequencies; s_n: batch and covariates
        θ_ng = a_g + b_g ρ_ng              inverse dispersions, which rise with the frequencies
        x_ng ~ NB(ℓ_n ρ_ng, θ_ng)          counts; ℓ_n: library size (observed, or log-normal)

    With ``likelihood="zinb"``, as in the paper, a count is also set to 0 with a probability π_ng that the
    decoder gives.

    The fit maximises E_q log p(x|z) − w KL(q(z|x) ‖ N(0, I)), with w rising from 0 to 1.

    With `joint`, each cell is also thinned to a depth drawn log-uniformly between 10 counts and all, and
    the Barlow Twins loss of the states of whole and thinned cells, with λ = 0.01, is added at that weight.

    References
    ----------
    Lopez et al. (2018), Nature Methods 15:1053, Methods; linear decoder: Svensson et al. (2020),
    Bioinformatics 36:3418; `joint`: Svensson (2026), bioRxiv 2026.02.11.705441, as in scvi-tools.
    """

    needs: ClassVar[tuple[str, ...]] = ("counts",)
    uses: ClassVar[tuple[str, ...]] = ("batch", "categorical", "continuous", "size_factor")

    rescores: ClassVar[tuple[str, ...]] = ("latent_library",)  # or depth is given

    n_latent: int = param(10, "Number of dimensions of the latent space.", low=1)
    n_hidden: int = param(128, "Number of units in each hidden layer.", low=1)
    n_layers: int = param(
        1, "Number of hidden layers in the encoder and in the decoder.", low=1, high=20
    )
    dropout: float = param(0.1, "Dropout rate of the encoder in training.", low=0, high=0.95)
    likelihood: Literal["nb", "zinb", "poisson"] = param(
        "nb",
        "Distribution of the counts: negative binomial (nb), the same with extra zeros (zinb), or Poisson.",
    )
    dispersion: Literal["gene-state", "gene", "gene-batch"] = param(
        "gene-state",
        "What the inverse dispersion θ of a gene depends on: its expected frequency in the cell "
        "(gene-state), nothing else (gene), or the batch (gene-batch).",
    )
    latent_library: bool = param(
        False, "Whether to infer the library size of a cell instead of using its total count."
    )
    linear_decoder: bool = param(
        False, "Whether the decoder is linear (LDVAE), so that `loadings` is available."
    )
    encode_covariates: bool = param(
        False, "Whether the encoder also reads the batch and the covariates."
    )
    start: Literal["data", "random"] = param(
        "data",
        "Where training of the decoder starts: at the mean and spread of each gene in the data (data), "
        "or at random values (random).",
    )
    kl_warmup: float = param(
        0.1,
        "Share of the training run over which the weight of the KL term rises from 0 to 1.",
        low=0,
        high=1,
    )
    joint: float | None = param(
        None,
        "Weight of a term that keeps a cell in place when its counts are thinned (scvi-tools: 100); None: no "
        "such term.",
        low=0,
    )
    batch_size: int = param(128, "Number of cells per minibatch.", low=2)
    max_epochs: int | None = param(
        None,
        "Largest number of passes over the training cells; None: 400, and fewer above 20,000 cells.",
        low=1,
    )
    lr: float = param(1e-3, "Learning rate of Adam.", low=0)
    weight_decay: float = param(1e-6, "Weight decay of Adam (an L2 penalty on the weights).", low=0)
    ema: float | None = param(
        0.99, "Decay per step of the average of the weights, which is what is kept; None: no average.",
        low=0, high=0.99999,
    )  # fmt: skip
    patience: int | None = param(
        None,
        "Number of epochs without a better validation objective after which the fit stops; None: no early "
        "stopping.",
        low=1,
    )
    keep: Literal["best", "last"] = param(
        "best",
        "Weights to keep if the fit overfitted: those of the best epoch (best: for embeddings), or of the "
        "last one (last: to generate cells of a given batch).",
    )

    def build(self, spec: Spec) -> SCVIModule:
        """Return the untrained tensors."""
        return SCVIModule(self, spec)

    def phases(self) -> list[Phase]:
        """Return the one phase of a fit: gradient descent."""
        learner = SGD(
            lr=self.lr, max_epochs=self.max_epochs, weight_decay=self.weight_decay, eps=0.01,
            ema=self.ema, patience=self.patience, keep=self.keep, settle=self.kl_warmup,
        )  # fmt: skip
        data = Shuffled(self.batch_size, compares=bool(self.joint))
        return [Phase(learner, data=data, name="SCVI", lasts="max_epochs")]

    def reads(self, verb: str) -> tuple[str, ...]:
        """Return the roles that `verb` reads; `embed` needs no batch unless the encoder reads it."""
        if verb in ("embed", "posterior") and not self.encode_covariates:
            return ("counts",)
        return super().reads(verb)
