"""The variational autoencoder in its original form: Gaussian values of log-expression."""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..compute.rng import Rng
from ..config import config, param
from ..data.batch import CellBatch
from ..data.sampler import Shuffled
from ..data.source import Source
from ..distributions import Normal
from ..learn.phase import Phase
from ..learn.sgd import SGD
from ..losses.evidence import evidence_bound, log_ratio_standard_normal
from ..losses.kl import kl_standard_normal
from ..model import Model
from ..module import Loss, Module, Step
from ..nn.blocks import MLP, GaussianEncoder, Linear, input_weight, reparametrise
from ..schema import Spec

#: Added to the noise variance: a constant feature would otherwise have an infinite density.
MIN_VARIANCE = 1e-4


class VAEModule(Module):
    """Encoder, decoder and noise, relative to the mean of the training cells."""

    centre: Tensor

    def __init__(self, options: VAE, n_features: int) -> None:
        super().__init__()
        self.options = options
        self.unable = ("loadings",) if options.n_layers else ()
        self.encoder = GaussianEncoder(
            n_features, options.n_latent, options.n_hidden, options.n_layers
        )
        self.trunk = MLP(options.n_latent, [options.n_hidden] * options.n_layers)
        self.head = Linear(options.n_hidden if options.n_layers else options.n_latent, n_features)
        self.log_variance = nn.Parameter(torch.zeros(n_features if options.noise == "gene" else 1))
        self.register_buffer("centre", torch.full((n_features,), torch.nan))  # NaN: not taken yet

    def prepare(self, source: Source, rows: np.ndarray, rng: Rng) -> None:  # noqa: ARG002 (the contract)
        """Store the mean of each feature, and start the noise at the variance around it."""
        if not bool(self.centre.isnan().any()):
            return  # a fit that goes on from another one keeps what it has
        total, squares = torch.zeros(2, *self.centre.shape, dtype=torch.float64).to(
            self.centre.device
        )
        for batch in source.batches(rows, str(self.centre.device)):
            x = batch.log_expression().double()
            total, squares = total + x.sum(0), squares + x.square().sum(0)
        mean = total / len(rows)
        variance = (squares / len(rows) - mean.square()).clamp_min(MIN_VARIANCE)
        self.centre.copy_(mean)
        self.log_variance.copy_(
            (variance if self.options.noise == "gene" else variance.mean()).log()
        )

    # the model

    def encode(
        self, x: Float[Tensor, "b g"], observed: Float[Tensor, "#b #g"]
    ) -> tuple[Float[Tensor, "b z"], Float[Tensor, "b z"]]:
        """Return mean and variance of q(z|x); a value that is not observed is set to its mean."""
        return self.encoder((x - self.centre) * observed)

    def decode(self, z: Float[Tensor, "b z"]) -> Normal:
        """Return p(x|z)."""
        scale = (self.log_variance.exp() + MIN_VARIANCE).sqrt()
        return Normal(self.head(self.trunk(z)) + self.centre, scale)

    def loss(self, batch: CellBatch, step: Step) -> Loss:
        """Return the negative ELBO; the weight of its KL term rises to 1 over `kl_warmup`."""
        x, observed = batch.measured_expression()
        mean, variance = self.encode(x, observed)
        values = self.decode(reparametrise(mean, variance))
        reconstruction = -(values.log_prob(x) * observed).sum(-1)
        kl = kl_standard_normal(mean, variance)
        weight = step.warm_up(self.options.kl_warmup)
        terms = {
            "reconstruction": reconstruction.mean(),
            "kl": kl.mean(),
            "elbo": -(reconstruction + kl).mean(),
        }
        return Loss({"model": (reconstruction + weight * kl).mean()}, terms)

    # what a fitted model can do

    def embed(self, batch: CellBatch) -> Float[Tensor, "b z"]:
        """Return the posterior mean of each cell."""
        return self.encode(*batch.measured_expression())[0]

    def posterior(self, batch: CellBatch, n_samples: int) -> Float[Tensor, "s b z"]:
        """Return draws from the posterior of each cell."""
        mean, variance = self.encode(*batch.measured_expression())
        shape = (n_samples, *mean.shape)
        return reparametrise(mean.expand(shape), variance.expand(shape))

    def reconstruct(self, batch: CellBatch, to: CellBatch) -> Float[Tensor, "b g"]:  # noqa: ARG002 (no conditions)
        """Return the log-expression expected at the posterior mean."""
        return self.decode(self.embed(batch)).mean

    def predict(self, batch: CellBatch, to: CellBatch) -> Float[Tensor, "b g"]:  # noqa: ARG002 (no conditions)
        """Return log-expression drawn for each cell, as if it were measured again (posterior predictive)."""
        return self.decode(self.posterior(batch, 1)[0]).sample()

    def generate(self, batch: CellBatch) -> Float[Tensor, "b g"]:
        """Return log-expression of cells drawn from the prior."""
        noise = torch.randn(len(batch), self.options.n_latent, device=batch.rows.device)
        return self.decode(noise).sample()

    def score(
        self,
        batch: CellBatch,
        n_samples: int,
        importance: bool,  # noqa: FBT001 (the contract)
    ) -> Float[Tensor, " b"]:
        """Return the ELBO or the importance-weighted bound of the features that the cells have."""
        x, observed = batch.measured_expression()
        mean, variance = self.encode(x, observed)

        def draw() -> tuple[Float[Tensor, " b"], Float[Tensor, " b"]]:
            z = reparametrise(mean, variance)
            ll = (self.decode(z).log_prob(x) * observed).sum(-1)
            return ll, log_ratio_standard_normal(z, mean, variance)

        kl = kl_standard_normal(mean, variance)
        return evidence_bound(draw, kl, n_samples, importance=importance)

    def loadings(self) -> Float[Tensor, "g z"]:
        """Return the linear decoder's weights: change of log-expression per unit of z."""
        return self.head.weight.T

    def feature_weight(self) -> dict[str, Float[Tensor, " g"]]:
        """Return the norm of the encoder's weights per feature."""
        weight = input_weight(self.encoder)
        return {"counts": weight, "expression": weight}


@config
class VAE(Model):
    """Variational autoencoder of log-expression, with Gaussian noise and no batch correction.

    Generative story, for cell n and gene g::

        z_n ~ N(0, I)
        x_ng ~ N(f_g(z_n), ψ_g)     log1p counts per 10,000 of the features read, or `expression`

    The fit maximises E_q log p(x|z) − w KL(q(z|x) ‖ N(0, I)). q is a Gaussian, and an encoder gives its
    mean and variances. The weight w rises from 0 to 1. With ``n_layers=0`` and ``noise="shared"`` the
    optimum is that of probabilistic PCA.

    References
    ----------
    Kingma & Welling (2014), Auto-Encoding Variational Bayes, Eq. 3 and appendix C.2; the linear case:
    Lucas et al. (2019), Don't Blame the ELBO!, NeurIPS 32.
    """

    needs: ClassVar[tuple[str, ...]] = ("expression|counts",)
    scale: ClassVar[Literal["counts", "log1p CP10k"]] = "log1p CP10k"

    n_latent: int = param(10, "Number of dimensions of the latent space.", low=1)
    n_hidden: int = param(128, "Number of units in each hidden layer.", low=1)
    n_layers: int = param(
        1,
        "Number of hidden layers in the encoder and in the decoder; 0: both are linear, and `loadings` "
        "is available.",
        low=0,
        high=20,
    )
    noise: Literal["gene", "shared"] = param(
        "gene",
        "Whether each gene has a noise variance of its own (gene), or all share one (shared).",
    )
    kl_warmup: float = param(
        0.5,
        "Share of the training run over which the weight of the KL term rises from 0 to 1.",
        low=0,
        high=1,
    )
    batch_size: int = param(128, "Number of cells per minibatch.", low=2)
    max_epochs: int | None = param(
        None,
        "Largest number of passes over the training cells; None: 400, and fewer above 20,000 cells.",
        low=1,
    )
    lr: float = param(1e-3, "Learning rate of Adam.", low=0)
    patience: int | None = param(
        None,
        "Number of epochs without a better validation ELBO after which the fit stops; None: no early "
        "stopping.",
        low=1,
    )

    def build(self, spec: Spec) -> VAEModule:
        """Return the untrained tensors."""
        role = spec.either("expression", "counts")
        return VAEModule(self, spec.n_features(role))

    def phases(self) -> list[Phase]:
        """Return the one phase of a fit: gradient descent."""
        learner = SGD(
            lr=self.lr, max_epochs=self.max_epochs, patience=self.patience, settle=self.kl_warmup
        )
        return [Phase(learner, data=Shuffled(self.batch_size), name="VAE", lasts="max_epochs")]
