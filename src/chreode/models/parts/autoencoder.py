"""One latent state for all modalities of a cell, of which some may be absent."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ...compute.rng import Rng
from ...data.batch import CellBatch, SparseRows
from ...data.source import Source
from ...distributions import Bernoulli, NegativeBinomial, Poisson
from ...errors import DataError
from ...learn.exact import Batches
from ...losses.kl import kl_standard_normal
from ...module import Loss, Module, Step
from ...nn.attributes import attribute_names, read_attributes
from ...nn.blocks import Linear, reparametrise, widened
from ...schema import Spec
from .effects import AttributeEffects, Compared
from .modality import DecoderInput, Modality

MODALITIES = ("counts", "accessibility", "protein")
#: Share of the run over which the KL weight rises.
WARM_UP = 0.05


class Autoencoder(Module):
    """A latent vector per cell, from which the counts of every modality are drawn.

    Parameters
    ----------
    options
        The model, whose options it reads (`CFGen`).
    spec
        Of the cells.
    """

    started: Tensor

    def __init__(self, options: Any, spec: Spec) -> None:
        super().__init__()
        self.options, self.spec = options, spec
        self.by = options.theta_by(spec)
        # one θ per gene, or one per category, is what was asked for
        self.within = options.effects and options.dispersion == "gene-state"
        self.modalities: Any = nn.ModuleDict()  # of `Modality`
        self.effects: Any = nn.ModuleDict()  # of `AttributeEffects`
        for role in (r for r in MODALITIES if r in spec.roles):
            self.modalities[role] = Modality(
                spec.n_features(role), options.n_latent, options.hidden,
                options.peaks if role == "accessibility" else "nb",
                groups=spec.blocks[self.by] if self.by else (1,), normalised=options.normalise,
                theta_speed=options.theta_speed, rises=options.dispersion == "gene-state",
                n_types=sum(spec.blocks.get("label", ())) if self.within else 0,
            )  # fmt: skip
            if options.effects:
                binary = role == "accessibility" and options.peaks == "bernoulli"
                self.effects[role] = AttributeEffects(spec, spec.n_features(role), binary=binary)
        width = len(self.modalities) * options.hidden[-1]
        self.mean = Linear(width, options.n_latent)
        self.log_variance = Linear(width, options.n_latent) if options.kl else None
        self.register_buffer("started", torch.tensor(False))

    def prepare(self, source: Source, rows: np.ndarray, rng: Rng) -> None:  # noqa: ARG002 (the contract)
        """Let the decoders start where the data are."""
        for role in self.modalities:
            if not source.measured(role)[rows].any():
                raise DataError(
                    f"No cell to learn from has {role}: leave that role out of the schema."
                )
        if self.started:
            return
        self.started.fill_(True)
        at_data = self.options.start == "data"
        for role, modality in self.modalities.items():
            cells = (batch.sparse(role) for batch in source.batches(rows))
            modality.start(cells, len(rows), at_data=at_data)
        if at_data:
            self._count_effects(lambda: source.batches(rows), lambda _: None)

    def encode(self, batch: CellBatch) -> tuple[Float[Tensor, "b z"], Float[Tensor, "b z"] | None]:
        """Return the latent mean, and its variance where the autoencoder is variational."""
        parts = [
            modality.features(batch.sparse(role), batch.present.get(role))
            for role, modality in self.modalities.items()
        ]
        h = torch.cat(parts, 1)
        if self.log_variance is None:
            return widened(self.mean(h)), None
        return widened(self.mean(h)), widened(self.log_variance(h)).clamp(-15, 5).exp()

    def log_depth(self, batch: CellBatch) -> Float[Tensor, "b m"]:
        """Return the log of each modality's total; NaN where a cell lacks it."""
        parts = []
        for role in self.modalities:
            total = batch.sparse(role).sum().clamp_min(1.0).log()
            present = batch.present.get(role)
            parts.append(total if present is None else total.where(present, torch.nan))
        return torch.stack(parts, 1)

    def depth_noise(
        self, z: Float[Tensor, "b z"], log_depth: Float[Tensor, "b m"], batch: CellBatch
    ) -> Float[Tensor, "b m"]:
        """Return the variance that drawing counts adds to the log of each modality's total."""
        parts = []
        for role in self.modalities:
            found = self.distribution(role, z, log_depth.nan_to_num(), batch)
            noise = found.variance.sum(1) / found.mean.sum(1).square()
            # of peaks that are there or not, ℓ is not the total
            parts.append(torch.zeros_like(noise) if isinstance(found, Bernoulli) else noise)
        return torch.stack(parts, 1)

    def distribution(
        self,
        role: str,
        z: Float[Tensor, "b z"] | None,
        log_depth: Float[Tensor, "b m"],
        batch: CellBatch,
        weights: Sequence[float] | None = None,
    ) -> NegativeBinomial | Poisson | Bernoulli:
        """Return p(x|z, ℓ, attributes) of a modality; `weights` of the attributes' effects."""
        j, shift = list(self.modalities).index(role), self._shift(role, batch, weights)
        depth = log_depth[:, j : j + 1]
        measured = batch.observed.get(role)
        return self.modalities[role].distribution(
            z, depth, self._group(batch), shift, measured, self._types(batch, weights)
        )

    def _shift(
        self, role: str, batch: CellBatch, weights: Sequence[float] | None
    ) -> Float[Tensor, "b g"] | float:
        if role not in self.effects:
            return 0.0
        shift: Tensor | float = self.effects[role](read_attributes(self.spec, batch)[0], weights)
        return shift

    def _types(self, batch: CellBatch, weights: Sequence[float] | None) -> Int[Tensor, " b"] | None:
        """Return the type of each cell (the label, the first attribute), if it is to be used."""
        used = "label" in self.spec.blocks and (weights is None or weights[0] > 0)
        return read_attributes(self.spec, batch)[0][:, 0] if self.within and used else None

    def solve(self, batches: Batches, rng: Rng) -> None:
        """Let each category's expected counts be those observed, now that the decoders are learned.

        With these means, it is counted how the cells of a type differ, and then the means once more.
        """

        def drawn(batch: CellBatch) -> Float[Tensor, "b z"]:
            mean, variance = self.encode(batch)
            return mean if variance is None else reparametrise(mean, variance)

        with rng.scope("effects"):
            counted = [(role, m) for role, m in self.modalities.items() if m.within is not None]
            for _, modality in counted:
                modality.within.reset()
            self._count_effects(batches, drawn)
            for role, modality in counted:
                modality.fit_within(partial(self._within_input, role, batches, drawn))
            if counted:
                self._count_effects(batches, drawn)

    def _within_input(
        self, role: str, batches: Batches, latent: Callable[[CellBatch], Float[Tensor, "b z"]]
    ) -> Iterator[tuple[SparseRows, Int[Tensor, " b"], DecoderInput]]:
        """Return counts, types, and the decoder's input; -1: no type, or cells without the modality."""
        j = list(self.modalities).index(role)
        for batch in batches():
            depth = self.log_depth(batch)[:, j : j + 1].nan_to_num()
            types = read_attributes(self.spec, batch)[0][:, 0]  # the label
            if role in batch.present:
                types = types.where(batch.present[role], -1)
            yield batch.sparse(role), types, (latent(batch), depth, self._shift(role, batch, None))

    def _count_effects(
        self, batches: Batches, latent: Callable[[CellBatch], Float[Tensor, "b z"] | None]
    ) -> None:
        def compared(role: str) -> Iterator[Compared]:
            for batch in batches():
                depth = self.log_depth(batch).nan_to_num()
                expected = self.distribution(role, latent(batch), depth, batch).mean
                codes = read_attributes(self.spec, batch)[0]
                if role in batch.present:
                    codes = codes.where(batch.present[role][:, None], -1)
                yield batch.sparse(role), codes, expected

        for role, effects in self.effects.items():
            effects.fit(partial(compared, role))

    def loss(self, batch: CellBatch, step: Step) -> Loss:
        """Return −Σ log p(x|z, ℓ) over modalities, plus the weighted KL term if there is one."""
        mean, variance = self.encode(batch)
        z = mean if variance is None else reparametrise(mean, variance)
        # the latent state must hold the types: their names are not given
        weights = [float(name != "label") for name in attribute_names(self.spec)[0]]
        found = self.log_likelihood(batch, z, weights)
        terms = {f"log_likelihood_{role}": ll.detach().mean() for role, ll in found.items()}
        total = -torch.stack([*found.values()]).sum(0)
        for modality in self.modalities.values():
            if modality.log_theta is not None:
                total = total + modality.log_theta.penalty()
        if variance is not None:
            kl = kl_standard_normal(mean, variance)
            terms["kl"] = kl.detach().mean()
            total = total + self.options.kl * step.warm_up(WARM_UP) * kl
        return Loss({"model": total.mean()}, terms)

    def log_likelihood(
        self,
        batch: CellBatch,
        z: Float[Tensor, "b z"],
        weights: Sequence[float] | None = None,
    ) -> dict[str, Float[Tensor, " b"]]:
        """Return log p(x|z, ℓ, attributes) of each modality in nats; 0 where a cell lacks it."""
        depth, group = self.log_depth(batch).nan_to_num(), self._group(batch)
        found = {}
        for j, (role, modality) in enumerate(self.modalities.items()):
            shift = self._shift(role, batch, weights)
            ll = modality.log_likelihood(
                batch.sparse(role), z, depth[:, j : j + 1], group, shift,
                batch.observed.get(role), self._types(batch, weights),
            )  # fmt: skip
            found[role] = ll * batch.present[role] if role in batch.present else ll
        return found

    def _group(self, batch: CellBatch) -> Int[Tensor, " b"] | None:
        return batch[self.by] if self.by else None
