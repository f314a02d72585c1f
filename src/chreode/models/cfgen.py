"""CFGen: counts of new cells with chosen attributes, by a flow in the latent space of an autoencoder."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.distributions import Normal

from ..config import config, param
from ..data.batch import CellBatch
from ..data.sampler import Shuffled
from ..errors import ConfigError, near
from ..flows.field import Terms
from ..learn.exact import Exact
from ..learn.phase import Phase
from ..learn.sgd import SGD, default_epochs
from ..losses.evidence import evidence_bound
from ..model import Model
from ..module import Module, Option
from ..nn.attributes import attribute_names, read_attributes
from ..schema import Spec
from .parts.autoencoder import MODALITIES, WARM_UP, Autoencoder
from .parts.flow import Flow, encoded

#: Cells that weigh as much as a weight decay of 1: the decay falls as cells are added, as that of a prior
#: of the weights does. From a decay of 3 Adam's normalised steps could not hold a weight above a third.
PRIOR, MOST_DECAY = 4000.0, 3.0
#: Minibatches that the flow sees at the least: they are cheap, and few cells make few in an epoch.
FLOW_STEPS = 15_000


def _decay_of_prior(n_cells: int) -> float:
    return min(MOST_DECAY, PRIOR / n_cells)


class CFGenModule(Module):
    """The autoencoder and the flow in its latent space."""

    def __init__(self, options: CFGen, spec: Spec) -> None:
        super().__init__()
        self.options, self.spec = options, spec
        self.autoencoder = Autoencoder(options, spec)
        self.flow = Flow(options, spec)
        self.drawn = tuple(self.autoencoder.modalities)
        # without a posterior, latent states have a density and counts have none
        self.unable = () if options.kl else ("score",)

    def terms(self, guidance: float | Mapping[str, float] = 1.0) -> Terms:
        """Return, for each velocity of the guided sum, the attributes that it is given and its weight."""
        names = [*chain.from_iterable(attribute_names(self.spec))]
        k, at = len(names), self.flow.centre.device
        if k and (isinstance(guidance, Mapping) or (self.options.guide == "each" and k > 1)):
            weights = guidance if isinstance(guidance, Mapping) else dict.fromkeys(names, guidance)
            each = torch.eye(k, dtype=torch.bool, device=at)
            return [(mask, weights.get(name, 1.0)) for mask, name in zip(each, names, strict=True)]
        weight = 1.0 if isinstance(guidance, Mapping) else float(guidance)  # of no attributes
        return [(torch.ones(k, dtype=torch.bool, device=at), weight)]

    def verb_options(self, verb: str) -> Mapping[str, Option]:
        """Return the one additional option of a verb: the weight of guidance in `generate`."""
        if verb != "generate":
            return {}
        doc = "Weight of guidance: one number for all attributes, or one for each; 1: as trained."
        return {"guidance": Option(1.0, doc, self._checked_guidance)}

    def _checked_guidance(self, guidance: Any) -> float | Mapping[str, float]:
        weights = guidance if isinstance(guidance, Mapping) else {"guidance": guidance}
        names = [*chain.from_iterable(attribute_names(self.spec))]
        for name, weight in weights.items():
            number = isinstance(weight, (int, float)) and not isinstance(weight, bool)
            if not (number and math.isfinite(weight) and weight >= 0):
                raise ConfigError(
                    f"guidance: {name}={weight!r}: expected a finite number of at least 0."
                )
            if weights is guidance and name not in names:
                raise ConfigError(f"guidance: there is no attribute {name!r}.{near(name, names)}")
        return guidance

    def embed(self, batch: CellBatch, to: CellBatch | None = None) -> Float[Tensor, "b z"]:
        """Return the latent means of cells, moved to the attributes of `to` if these are given."""
        z = self.autoencoder.encode(batch)[0]
        if to is None:
            return z
        depth = self.autoencoder.log_depth(batch)
        noise = self.flow.transport(z, batch, depth, self.terms(), back=True)
        return self.flow.transport(noise, to, depth, self.terms())

    def reconstruct(
        self, batch: CellBatch, to: CellBatch, library: float | None = None, role: str = "counts"
    ) -> Float[Tensor, "b g"]:
        """Return expected counts at the latent mean, or frequencies scaled to `library`.

        If `to` holds other attributes, the cell is first moved to them, as in `predict`.
        """
        depth = self._completed(batch)
        if library is not None:
            depth = torch.full_like(depth, math.log(library))
        z = self.embed(batch, None if to is batch else to)
        return self.autoencoder.distribution(role, z, depth, to).mean

    def predict(self, batch: CellBatch, to: CellBatch) -> dict[str, Float[Tensor, "b g"]]:
        """Return counts of the same cells under other attributes, at their own depth.

        A cell is moved back to noise with its own attributes, and from there forward with those of `to`.
        """
        return self._draw(self.embed(batch, to), self._completed(batch), to)

    def generate(
        self, batch: CellBatch, guidance: float | Mapping[str, float] = 1.0
    ) -> dict[str, Float[Tensor, "b g"]]:
        """Return counts of new cells that have the attributes of the rows of `batch`."""
        codes, numbers, _ = read_attributes(self.spec, batch)
        depth = self.flow.depth.sample(codes, numbers)
        noise = torch.randn(len(batch), self.options.n_latent, device=batch.rows.device)
        terms = self.terms(guidance)
        z = self.flow.transport(noise, batch, depth, terms)
        weights = torch.stack([weight * mask for mask, weight in terms]).sum(0)
        # categories come first; numbers have no effects
        return self._draw(z, depth, batch, weights[: codes.shape[1]].tolist())

    def score(
        self,
        batch: CellBatch,
        n_samples: int,
        importance: bool,  # noqa: FBT001 (the contract)
    ) -> Float[Tensor, " b"]:
        """Return a lower bound of log p(counts | attributes, depth), over the modalities that a cell has.

        With draws of z from q(z|x), the bound is the mean of log p(x|z, ℓ) + log p(z | attributes, ℓ)
        − log q(z|x). The flow gives the second term. With `importance` it is the importance-weighted bound.
        """
        # derivatives need tensors of the usual kind
        with torch.inference_mode(False), torch.no_grad():
            mean, variance = self.autoencoder.encode(batch)
            assert variance is not None, "no posterior"
            posterior, depth = Normal(mean, variance.sqrt()), self.autoencoder.log_depth(batch)

            def draw() -> tuple[Float[Tensor, " b"], Float[Tensor, " b"]]:
                z = posterior.sample()
                ll = torch.stack([*self.autoencoder.log_likelihood(batch, z).values()]).sum(0)
                prior = self.flow.log_density(z, batch, depth)
                return ll, prior - posterior.log_prob(z).sum(-1)

            # counts are not more probable than certain, although a draw or the solver may give them
            return evidence_bound(draw, None, n_samples, importance=importance).clamp(max=0)

    def feature_weight(self) -> dict[str, Float[Tensor, " g"]]:
        """Return the norm of the encoder's weights per feature."""
        return {
            role: modality.encoder.layers[0].linear.weight.detach().norm(dim=1)
            for role, modality in self.autoencoder.modalities.items()
        }

    def _completed(self, batch: CellBatch) -> Float[Tensor, "b m"]:
        """Return log depths; of a modality that a cell lacks, what its attributes let expect."""
        depth = self.autoencoder.log_depth(batch)
        if bool(depth.isfinite().all()):
            return depth
        codes, numbers, _ = read_attributes(self.spec, batch)
        return depth.where(depth.isfinite(), self.flow.depth.parameters_of(codes, numbers)[0])

    def _draw(
        self,
        z: Float[Tensor, "b z"],
        log_depth: Float[Tensor, "b m"],
        batch: CellBatch,
        weights: Sequence[float] | None = None,
    ) -> dict[str, Float[Tensor, "b g"]]:
        return {
            role: self.autoencoder.distribution(role, z, log_depth, batch, weights).sample()
            for role in self.drawn
        }


@config
class CFGen(Model):
    """Flow matching in the latent space of an autoencoder: counts of new cells with chosen attributes.

    Generative story, for a cell with attributes y (any number of them, categorical or continuous)::

        log ℓ = m(y) + s(y) (r + δ_y(r))      r ~ N(0, 1); depth of each modality, by attributes
        ε ~ N(0, I),  dz/dt = v(z, t, y, ℓ)   from ε at t = 0 to the latent state z at t = 1
        η = f(z) + Σ_i b_i(y_i) + b(y)        logits; effects of attributes, and of combinations
        x_g ~ NB(ℓ softmax(η)_g, θ_g(η))    RNA, proteins; peaks: Poisson or Bernoulli(σ(η_p))

    Phase one fits encoder and decoder. Then the effects b of attributes are estimated by counting (see
    `AttributeEffects`), and so are differences between cells of one type, the label (see `WithinTypes`).
    Phase two fits the velocity v to the latent vectors.

    References
    ----------
    Palma et al. (2025), Multi-Modal and Multi-Attribute Generation of Single Cells with CFGen, ICLR,
    equations 5 to 9; flow matching: Lipman et al. (2023), ICLR; classifier-free guidance: Ho and
    Salimans (2021).
    """

    needs: ClassVar[tuple[str, ...]] = ("counts",)
    uses: ClassVar[tuple[str, ...]] = (
        "accessibility", "protein", "label", "batch", "perturbation", "trajectory",
        "categorical", "continuous", "time", "dose",
    )  # fmt: skip
    partial: ClassVar[bool] = True
    inverts: ClassVar[bool] = True
    extends: ClassVar[bool] = False
    rescores: ClassVar[tuple[str, ...]] = ("peaks",)  # there or not, or how many
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "paper": {
            "kl": 0.0, "normalise": False, "effects": False, "start": "random", "theta_speed": 1.0,
            "dispersion": "gene", "peaks": "bernoulli",
            "hidden": (512, 256), "n_latent": 50, "weight_decay": 1e-5, "max_epochs": 300,
            "lr": 1e-3, "flow_epochs": 1500,
            "flow_lr": 1e-4, "sigma": 1e-4, "drop_by": "minibatch", "conditioning": "additive",
            "guide": "each", "depth_in_flow": False, "depth": "lognormal", "standardise": False, "ema": None,
            "flow_width": 64, "flow_blocks": 3, "solver": "dopri5", "tolerance": 1e-5,
            "patience": None, "flow_schedule": "constant",
        }
    }  # fmt: skip

    preset: Literal["default", "paper"] = param(
        "default",
        "Source of options that are not set: the defaults, or the published recipe (paper).",
    )
    n_latent: int = param(30, "Number of dimensions of the latent space.", low=1)
    hidden: tuple[int, ...] = param(
        (256, 128), "Units of the encoder's hidden layers; the decoder has them in reverse.", low=1
    )
    kl: float = param(
        0.3, "Weight of the KL term; 0: a plain autoencoder, which has no `score`.", low=0
    )
    normalise: bool = param(
        True, "Whether the encoder reads log1p of counts per 10,000 instead of log1p of counts."
    )
    start: Literal["data", "random"] = param(
        "data",
        "Where decoders start: at each feature's mean and spread (data), or at random values.",
    )
    theta_speed: float = param(
        30.0, "How many times as fast as weights the inverse dispersions θ are learned.", low=0.01
    )
    effects: bool = param(
        True,
        "Whether to estimate, by counting, how each category (such as a type or batch) shifts every feature "
        "beyond what the decoder predicts from the latent state.",
    )
    dispersion: Literal["gene-state", "gene", "gene-label", "gene-batch"] = param(
        "gene-state",
        "What the inverse dispersion θ of a feature depends on: its expected frequency and, with effects, "
        "the label (gene-state); nothing else (gene); the label alone, or the batch alone.",
    )
    peaks: Literal["bernoulli", "poisson"] = param(
        "poisson",
        "Peaks as counts that depend on the depth (poisson), or as open or closed without it (bernoulli).",
    )
    sigma: float = param(
        0.0,
        "Standard deviation of the noise that is left at the end of the path from noise to a cell; 0: none.",
        low=0,
        high=0.5,
    )
    coupling: Literal["independent", "ot"] = param(
        "independent", "Pairing of noise and cells: at random, or by optimal transport (ot)."
    )
    condition_dropout: float = param(
        0.2,
        "Probability of hiding all attributes of a cell from the flow in training; in the other cells, "
        "each attribute is hidden with the same probability.",
        low=0, high=1,
    )  # fmt: skip
    drop_by: Literal["cell", "minibatch"] = param(
        "cell",
        "Whether attributes are hidden cell by cell, or by whole minibatches that otherwise keep one.",
    )
    conditioning: Literal["joint", "additive", "both"] = param(
        "both",
        "How the flow embeds attributes: all by one network (joint), as a sum of each (additive), or both.",
    )
    guide: Literal["joint", "each"] = param(
        "joint",
        "Whether guidance weighs the velocity given all attributes (joint), or one for each of them (each).",
    )
    depth: Literal["observed", "lognormal"] = param(
        "observed",
        "Distribution of the depths of new cells: as observed in training, or log-normal.",
    )
    depth_in_flow: bool = param(True, "Whether the flow is given the depth of the cell.")
    standardise: bool = param(
        True, "Whether latent dimensions are scaled to mean 0 and variance 1 for the flow."
    )
    ema: float | None = param(
        0.999, "Decay per step of the average of the weights, which is what is kept; None: no average.",
        low=0, high=0.99999,
    )  # fmt: skip
    flow_width: int = param(128, "Number of units in each layer of the flow's network.", low=2)
    flow_blocks: int = param(4, "Number of residual blocks in the flow's network.", low=1)
    solver: Literal["euler", "midpoint", "heun", "rk4", "dopri5"] = param(
        "midpoint", "Solver of the flow's ODE: dopri5 adapts its steps, the others take equal ones."
    )
    steps: int = param(4, "Number of equal steps of the solver; dopri5 ignores it.", low=1)
    tolerance: float = param(
        1e-3, "Error that dopri5 allows per step; the other solvers ignore it.", low=1e-8, high=0.1
    )
    batch_size: int = param(256, "Number of cells per minibatch, for autoencoder and flow.", low=2)
    max_epochs: int | None = param(
        None,
        "Largest number of passes over the training cells for the autoencoder; None: 400, and fewer above "
        "20,000 cells.",
        low=1,
    )
    lr: float = param(1e-3, "Learning rate of the autoencoder.", low=0)
    weight_decay: float | None = param(
        None,
        "Decoupled weight decay of the autoencoder; None: 4,000 divided by the number of training cells, "
        "at most 3.",
        low=0,
    )
    patience: int | None = param(
        20,
        "Number of epochs without a better validation loss after which training of the autoencoder stops; "
        "None: no early stopping.",
        low=1,
    )
    flow_epochs: int | None = param(
        None,
        "Number of passes over the training cells for the flow; None: 400, and fewer above 20,000 cells, "
        "but at least 15,000 minibatches.",
        low=1,
    )
    flow_lr: float = param(1e-3, "Learning rate of the flow at the start of its training.", low=0)
    flow_schedule: Literal["cosine", "constant"] = param(
        "cosine", "Course of the flow's learning rate: falling to 0 along a cosine, or constant."
    )

    def build(self, spec: Spec) -> CFGenModule:
        """Return the untrained tensors."""
        return CFGenModule(self, spec)

    def reads(self, verb: str) -> tuple[str, ...]:
        """Return the roles that `verb` reads; `embed` reads counts alone, as the encoder does."""
        if verb == "embed":
            return MODALITIES
        return super().reads(verb)

    def theta_by(self, spec: Spec) -> str:
        """Return the attribute whose categories each have a θ of their own, or ""."""
        by = self.dispersion.partition("-")[2]
        return by if by in spec.blocks else ""

    def solver_options(self) -> dict[str, Any]:
        """Return the options of `ode.solve`."""
        return {
            "method": self.solver, "steps": self.steps, "rtol": self.tolerance, "atol": self.tolerance,
        }  # fmt: skip

    def _flow_passes(self, n_cells: int) -> int:
        """Return the passes over so many cells that the flow needs for its minibatches."""
        enough = math.ceil(FLOW_STEPS / Shuffled(self.batch_size).per_epoch(n_cells))
        return max(default_epochs(n_cells), enough)

    def phases(self) -> list[Phase]:
        """Return the phases of a fit: autoencoder, effects (if they are estimated), flow."""
        data = Shuffled(self.batch_size)
        counted = [Phase(Exact(), "autoencoder", name="effects")] if self.effects else []
        return [
            Phase(
                SGD(
                    lr=self.lr, max_epochs=self.max_epochs,
                    weight_decay=_decay_of_prior if self.weight_decay is None else self.weight_decay,
                    decoupled=True, clip=1.0, ema=self.ema, patience=self.patience, settle=WARM_UP,
                ),
                "autoencoder", data, name="autoencoder", lasts="max_epochs",
            ),
            *counted,
            Phase(
                SGD(
                    lr=self.flow_lr, max_epochs=self.flow_epochs or self._flow_passes,
                    weight_decay=1e-6, decoupled=True, clip=1.0,
                    ema=self.ema, schedule=self.flow_schedule,
                ),
                "flow", data, name="flow", view=encoded, lasts="flow_epochs",
            ),
        ]  # fmt: skip
