"""A flow in the latent space of an autoencoder, and the cells as its input."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ...compute.rng import Rng
from ...data.batch import CellBatch
from ...data.source import Source
from ...errors import DataError
from ...flows.coupling import optimal
from ...flows.field import ConditionalField, Terms
from ...flows.guidance import drop_as_published, drop_conditions
from ...flows.path import straight, stratified_times
from ...learn.phase import Session, Split
from ...module import Loss, Module, Step
from ...nn.attributes import read_attributes
from ...nn.blocks import reparametrise
from ...schema import Spec
from .autoencoder import MODALITIES
from .depth import Depth


class Flow(Module):
    """Phase two: the velocity that moves standard normal noise to latent vectors, given attributes.

    Parameters
    ----------
    options
        The model, whose options it reads (`CFGen`).
    spec
        Of the cells.
    """

    started: Tensor
    centre: Tensor
    scale: Tensor

    def __init__(self, options: Any, spec: Spec) -> None:
        super().__init__()
        self.options, self.spec = options, spec
        for role, blocks in spec.blocks.items():
            if not sum(blocks):
                raise DataError(f"No cell has a {role}: leave that role out of the schema.")
        n_modalities = sum(role in spec.roles for role in MODALITIES)
        self.field = ConditionalField(
            spec, options.n_latent, n_modalities if options.depth_in_flow else 0,
            width=options.flow_width, n_blocks=options.flow_blocks, conditioning=options.conditioning,
        )  # fmt: skip
        self.depth = Depth(spec, n_modalities, observed=options.depth == "observed")
        self.register_buffer("started", torch.tensor(False))
        self.register_buffer("centre", torch.zeros(options.n_latent))
        self.register_buffer("scale", torch.ones(options.n_latent))

    def prepare(self, source: Source, rows: np.ndarray, rng: Rng) -> None:  # noqa: ARG002 (the contract)
        """Estimate the scale of the latent space, and the distribution of depths given the attributes."""
        if self.started:  # what was learned expects the scales that it was learned with
            return
        self.started.fill_(True)
        batch = source.batch(rows)
        codes, numbers, _ = read_attributes(self.spec, batch)
        self.depth.fill(batch["log_depth"], codes, numbers, batch["depth_noise"])
        if self.options.standardise:
            spread = batch["latent"].var(0) + batch["latent_variance"].mean(0)
            self.centre.copy_(batch["latent"].mean(0))
            self.scale.copy_(spread.sqrt().clamp_min(1e-6))

    def loss(self, batch: CellBatch, step: Step) -> Loss:  # noqa: ARG002 (the contract)
        """Return the flow-matching loss: the squared error of the velocity, as a mean over dimensions."""
        options = self.options
        z = reparametrise(batch["latent"], batch["latent_variance"])
        data = (z - self.centre) / self.scale
        given = read_attributes(self.spec, batch)[2]
        if given.shape[1]:
            drop = drop_conditions if options.drop_by == "cell" else drop_as_published
            given = drop(given, options.condition_dropout)
        noise = torch.randn_like(data)
        if options.coupling == "ot":  # minibatches also of a larger chunk, as validation reads them
            part = torch.arange(len(data), device=data.device) // options.batch_size
            noise = optimal(noise, data, part)
        t = stratified_times(len(data), data.device)
        point, velocity = straight(noise, data, t, options.sigma)
        found = self.field(point, t, batch, given, self.depth.standardised(batch["log_depth"]))
        return Loss({"model": (found - velocity).square().mean()})

    def transport(
        self,
        x: Float[Tensor, "b z"],
        batch: CellBatch,
        log_depth: Float[Tensor, "b m"],
        terms: Terms,
        *,
        back: bool = False,
    ) -> Float[Tensor, "b z"]:
        """Move noise to latent vectors or, with `back`, latent vectors to noise."""
        x = (x - self.centre) / self.scale if back else x
        depth, solver = self.depth.standardised(log_depth), self.options.solver_options()
        y = self.field.transport(x, batch, depth, self._known(batch), terms, back=back, **solver)
        return y if back else y * self.scale + self.centre

    def log_density(
        self, z: Float[Tensor, "b z"], batch: CellBatch, log_depth: Float[Tensor, "b m"]
    ) -> Float[Tensor, " b"]:
        """Return log p(z | attributes, ℓ) of each cell, in nats."""
        x, depth = (z - self.centre) / self.scale, self.depth.standardised(log_depth)
        solver = self.options.solver_options()
        found = self.field.log_density(x, batch, depth, self._known(batch), **solver)
        return found - self.scale.log().sum()

    def _known(self, batch: CellBatch) -> Bool[Tensor, "b k"]:
        """Return which attributes the flow is given: of a combination never seen, the part that was seen.

        For the whole combination, the network would extrapolate far from any cell. The effects of the
        other attributes are added by the decoder.
        """
        codes, numbers, _ = read_attributes(self.spec, batch)
        combined = self.depth.combinations.known(codes)
        if not self.options.effects:
            combined = torch.ones_like(combined)
        return torch.cat([combined, torch.ones_like(numbers, dtype=torch.bool)], 1)


def encoded(module: Any, source: Source, split: Split, run: Session) -> tuple[Source, Split]:
    """Return the cells as input of the flow: latent means and variances, depths and attributes."""
    shape = (len(source), module.options.n_latent)
    columns = {
        "latent": np.zeros(shape, np.float32),
        "latent_variance": np.zeros(shape, np.float32),
        "log_depth": np.zeros((len(source), len(module.drawn)), np.float32),
        "depth_noise": np.zeros((len(source), len(module.drawn)), np.float32),
    }
    autoencoder = module.autoencoder.eval()
    rows = np.sort(np.concatenate([split.train, split.validation]))
    with torch.no_grad():
        for batch in source.batches(rows, run.device):
            mean, variance = autoencoder.encode(batch)
            found = {"latent": mean, "log_depth": autoencoder.log_depth(batch)}
            found["depth_noise"] = autoencoder.depth_noise(mean, found["log_depth"], batch)
            found |= {} if variance is None else {"latent_variance": variance}
            for name, values in found.items():
                columns[name][batch.rows.cpu().numpy()] = values.cpu().numpy()
    columns = {**source.columns, **columns}
    return replace(source, matrices={}, where={}, take={}, columns=columns), split
