"""Where cells lie in the latent space, and how probable they are.

Every function here is a method of `Fitted`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Float

from ..compute.rng import Rng
from ..compute.settings import settled
from ..config.arguments import checked
from ..data.cells import Cells
from ..data.read import Data
from ..errors import CapabilityError, ConfigError
from ..run import Run
from ..schema import Schema
from .answering import (
    at_least,
    evaluate,
    on_device,
    open_cells,
    refuse_slot,
    settings_of,
    stream,
    write_provenance,
)
from .conditions import (
    Conditions,
    encode,
    with_conditions,
)
from .state import FittedState


@settled()
@checked
def embed(
    self: FittedState,
    data: Data | str | Path,
    *,
    to: Conditions | str | None = None,
    key_added: str | None = None,
    schema: Schema | None = None,
    run: Run = Run(),
    **settings: Any,
) -> Float[np.ndarray, "cells z"]:
    """Return the latent coordinates of cells.

    Parameters
    ----------
    data
        AnnData, MuData, what `chreode.open` returned, or a path. Features are matched by name. Cells
        are streamed, so data on disk stay there.
    to
        Conditions to move every cell to, for models that can say where in their latent space it would
        then be: ``{"batch": "p3"}`` gives coordinates with the batches taken out.
    key_added
        Slot to write (default ``X_<model>``, or ``X_<model>_to`` under other conditions).
    schema
        Where the roles live in `data`, if not where they lived in the fit.
    run
        How to compute (see `Run`); its fields may be given one by one, as ``device="cuda"``.

    Returns
    -------
    float32, cells x latent dimensions; NaN for cells that lack the modality.
    ``obsm[key_added]`` : the same.
    ``uns["chreode"][key_added]`` : JSON of model, version, configuration, spec and seed.
    """
    cells = Cells.of(data, schema or self.schema)
    run, options = settings_of(self, "embed", run, settings)
    if to is not None and not self.model.inverts:
        raise CapabilityError(
            f"{self.model.key} embeds cells under no other conditions; leave out to."
        )
    key = key_added or f"X_{self.model.key}{'' if to is None else '_to'}"
    refuse_slot(cells.data, key)
    verb = "embed" if to is None else "predict"
    source, usable = open_cells(self, verb, cells, run, to)
    target = encode(self, to)
    out = None
    with on_device(self, run) as (module, device):
        for rows, batch in stream(source, usable, "embed", run, device):
            other = () if to is None else (with_conditions(batch, target),)
            z = evaluate(module.embed, batch, *other, **options).numpy()
            if out is None:
                out = np.full((len(source), z.shape[1]), np.nan, np.float32)
            out[rows] = z
    assert out is not None, "no cells"
    cells.data.obsm[key] = out
    write_provenance(self, cells.data, key, **({} if to is None else {"to": to}))
    return out


@settled()
@checked
def posterior(
    self: FittedState,
    data: Data | str | Path,
    *,
    n_samples: int = 1,
    seed: int = 0,
    schema: Schema | None = None,
    run: Run = Run(),
    **settings: Any,
) -> Float[np.ndarray, "n_samples cells z"]:
    """Return draws of the latent coordinates given each cell's data.

    Returns
    -------
    float32, samples x cells x latent dimensions. Writes nothing.
    """
    at_least("n_samples", n_samples, 1)
    cells = Cells.of(data, schema or self.schema)
    run, options = settings_of(self, "posterior", run, settings)
    source, usable = open_cells(self, "posterior", cells, run)
    parts = []
    with on_device(self, run) as (module, device):
        for number, (_, batch) in enumerate(stream(source, usable, "posterior", run, device)):
            noise = Rng(seed).scope("noise", number)
            parts.append(
                evaluate(module.posterior, batch, n_samples, noise=noise, **options).numpy()
            )
    drawn = np.concatenate(parts, axis=1)
    out = np.full((n_samples, len(source), drawn.shape[2]), np.nan, np.float32)
    out[:, usable] = drawn
    return out


@settled()
@checked
def score(
    self: FittedState,
    data: Data | str | Path,
    *,
    bound: Literal["elbo", "importance"] = "elbo",
    n_samples: int = 1,
    seed: int = 0,
    schema: Schema | None = None,
    run: Run = Run(),
    **settings: Any,
) -> Float[np.ndarray, " cells"]:
    """Return how probable the model finds each cell, in nats.

    Parameters
    ----------
    bound
        ``"elbo"`` (evidence lower bound), or ``"importance"``: the importance-weighted bound
        (Burda 2016), which reaches the log-likelihood as `n_samples` grows. Models with an exact
        likelihood return it for both.
    n_samples
        Draws per cell.

    Returns
    -------
    float64, one value per cell; NaN for cells that lack the modality. Writes nothing.
    """
    at_least("n_samples", n_samples, 1)
    if bound not in ("elbo", "importance"):
        raise ConfigError(f"bound={bound!r}: expected 'elbo' or 'importance'.")
    cells = Cells.of(data, schema or self.schema)
    run, options = settings_of(self, "score", run, settings)
    source, usable = open_cells(self, "score", cells, run)
    out = np.full(len(source), np.nan)
    with on_device(self, run) as (module, device):
        for number, (rows, batch) in enumerate(stream(source, usable, "score", run, device)):
            noise, exact = Rng(seed).scope("noise", number), bound == "importance"
            out[rows] = (
                evaluate(module.score, batch, n_samples, exact, noise=noise, **options)
                .double()
                .numpy()
            )
    return out
