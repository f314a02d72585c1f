"""How simulated cells are drawn: populations, sequences, counts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import mudata
import numpy as np
import pandas as pd
from anndata import AnnData
from jaxtyping import Float, Integer
from mudata import MuData
from scipy import sparse

from ..errors import ConfigError, counted, near

N_LATENT = 10


def require(holds: object, message: str) -> None:
    """Refuse arguments by a message, where they do not hold."""
    if not holds:
        raise ConfigError(message)


BLOCK = 2**19  # entries of a dense block of cells: 4 MiB of float64


def numbered_names(prefix: str, n: int) -> pd.Index:
    """Return names such as ``gene_0``."""
    return pd.Index([f"{prefix}_{i}" for i in range(n)])


def population(
    rng: np.random.Generator,
    n_cells: int,
    n_types: int,
    n_batches: int,
    composition: Sequence[Sequence[float | int]] | Float[np.ndarray, "batches types"] | None,
) -> AnnData:
    """Cells with a type, a batch and a latent position, and no features yet."""
    require(n_types >= 1, f"n_types is {n_types}; at least one is needed.")
    require(
        1 <= n_batches <= n_cells,
        f"Got {counted(n_batches, 'batch')} and {counted(n_cells, 'cell')}: each batch needs one.",
    )
    if composition is None:
        composition = rng.dirichlet(np.full(n_types, 5.0), size=n_batches)
    try:
        weights = np.asarray(composition, dtype=np.float64)
    except ValueError as error:
        raise ConfigError("composition has rows of different lengths.") from error
    shape = (n_batches, n_types)
    require(weights.shape == shape, f"composition has shape {weights.shape}, not {shape}.")
    valid = (weights >= 0).all() and (weights.sum(axis=1) > 0).all()
    require(valid, "composition has a negative weight, or a batch without any.")
    weights = weights / weights.sum(axis=1, keepdims=True)

    batch = rng.permutation(np.arange(n_cells) % n_batches)
    steps = weights.cumsum(axis=1)[batch, :-1]
    cell_type = (rng.random((n_cells, 1)) >= steps).sum(axis=1)
    centres = rng.normal(0, 2, (n_types, N_LATENT))
    obs = pd.DataFrame(
        {
            "cell_type": pd.Categorical.from_codes(cell_type, numbered_names("type", n_types)),
            "batch": pd.Categorical.from_codes(batch, numbered_names("batch", n_batches)),
        },
        index=numbered_names("cell", n_cells),
    )
    return AnnData(
        obs=obs,
        obsm={"true_latent": centres[cell_type] + rng.normal(size=(n_cells, N_LATENT))},
        uns={"truth": {"centres": centres, "composition": weights}},
    )


def sequence(
    rng: np.random.Generator,
    cells: AnnData,
    loadings: Float[np.ndarray, "z g"],
    shifts: Mapping[str, Float[np.ndarray, "_ g"]],
    *,
    prefix: str,
    base: Float[np.ndarray, " g"],
    depth: float,
    dispersion: float,
    dropout: float = 0.0,
    true_mean: bool = False,
) -> AnnData:
    """Give the cells counts by the module's story; `shifts` are of columns of `obs`, by level."""
    require(0 < depth < 1e9, f"depth is {depth}; it must be positive, and below 1e9.")
    require(
        0 < dispersion < 1e6,
        f"dispersion is {dispersion}; it must be positive (1e-6 for Poisson), and below 1e6.",
    )
    require(0 <= dropout < 1, f"dropout is {dropout}; it is a probability below 1.")
    n_cells, n_features = cells.n_obs, len(base)
    cell_depth = rng.lognormal(np.log(depth), 0.4, n_cells)
    theta = rng.lognormal(-np.log(dispersion), 0.3, n_features)
    # Latent positions and levels side by side, so that one product adds up every effect.
    features = np.hstack(
        [cells.obsm["true_latent"], *(pd.get_dummies(cells.obs[s]) for s in shifts)]
    )
    weights = np.vstack([loadings, *shifts.values()])
    blocks, means = [], []
    step = max(1, BLOCK // n_features)
    for start in range(0, n_cells, step):
        rows = slice(start, start + step)
        mean = np.exp(base + features[rows] @ weights)
        mean *= cell_depth[rows, None] / mean.sum(axis=1, keepdims=True)
        x = negative_binomial(rng, mean, theta) * (rng.random(mean.shape) >= dropout)
        blocks.append(sparse.csr_matrix(x, dtype=np.float32))
        means.extend([mean.astype(np.float32)] if true_mean else [])
    counts = sparse.vstack(blocks, format="csr")
    return AnnData(
        counts,
        obs=cells.obs.assign(true_depth=cell_depth),
        var=pd.DataFrame(
            {"true_base": base, "true_theta": theta}, index=numbered_names(prefix, n_features)
        ),
        obsm=cells.obsm.copy(),
        varm={"true_loadings": loadings.T} | {f"true_{s}_shift": shifts[s].T for s in shifts},
        layers={"counts": counts.copy()} | ({"true_mean": np.vstack(means)} if means else {}),
        uns=cells.uns.copy(),
    )


def negative_binomial(
    rng: np.random.Generator, mean: Float[np.ndarray, "b g"], theta: Float[np.ndarray, " g"]
) -> Integer[np.ndarray, "b g"]:
    """Draw counts."""
    return rng.poisson(rng.gamma(theta, mean / theta))


def mosaic(modalities: Mapping[str, AnnData], absent: Mapping[str, Sequence[str]]) -> MuData:
    """Join modalities of the same cells, each without the batches where it is absent."""
    obs = next(iter(modalities.values())).obs
    for name, batches in absent.items():
        require(name in modalities, f"absent names {name!r}.{near(name, modalities)}")
        for batch in batches:
            known = obs["batch"].cat.categories
            require(batch in known, f"absent names {batch!r}.{near(batch, known)}")
    kept = {name: ~obs["batch"].isin(absent.get(name, ())).to_numpy() for name in modalities}
    seen = np.any(list(kept.values()), axis=0)
    require(seen.all(), "absent leaves a batch without any modality; keep one of them.")
    # mudata 0.3 would copy columns of obs under prefixed names, and warn that 0.4 will not.
    with mudata.set_options(pull_on_update=False):
        joined = MuData({name: data[kept[name]].copy() for name, data in modalities.items()})
    joined.obs[["cell_type", "batch"]] = obs[["cell_type", "batch"]]  # aligned by name
    return joined
