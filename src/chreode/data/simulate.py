"""Simulated cells whose truth is known and stored beside the counts, in slots named `true_...`.

RNA and ATAC counts come from one story. A cell of type t has a latent position z ~ N(centre_t, I);

    log rate = base + z W + shift of its batch + shifts of its attributes,
    mean     = depth x softmax of the log rates over features,
    count    ~ negative binomial(mean, theta).

The seed alone decides what comes out, and the dense matrix is never held as a whole.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import mudata
import numpy as np
import pandas as pd
from anndata import AnnData
from jaxtyping import Float, Integer
from mudata import MuData
from scipy import sparse

from ..config.arguments import checked
from ..errors import ConfigError, near
from .systems import GeneNetwork, Sampling, simulate_system

__all__ = [
    "GeneNetwork",
    "Sampling",
    "simulate_cells",
    "simulate_citeseq",
    "simulate_linear_gaussian",
    "simulate_multiome",
    "simulate_system",
]

_BLOCK = 2**19  # entries of a dense block of cells: 4 MiB of float64
_N_LATENT = 10


@checked
def simulate_cells(
    n_cells: int = 1000,
    n_genes: int = 500,
    *,
    n_types: int = 5,
    n_batches: int = 1,
    batch_strength: float = 0.3,
    depth: float | None = None,
    dispersion: float = 0.5,
    dropout: float = 0.0,
    composition: Sequence[Sequence[float | int]] | Float[np.ndarray, "batches types"] | None = None,
    attributes: Mapping[str, Sequence[str]] | None = None,
    true_mean: bool = False,
    seed: int = 0,
) -> AnnData:
    """Simulate raw RNA counts of cells of several types, batches and attributes.

    Parameters
    ----------
    n_cells, n_genes
        Size of the data.
    n_types
        Number of cell types, the components of the latent Gaussian mixture.
    n_batches
        Number of batches, equally large but for a remainder.
    batch_strength
        Standard deviation over genes of a batch's shift of the log rates, 5 at the most.
    depth
        Median of a cell's expected total count; the totals are log-normal around it. By default a
        fifth of a count per gene (but 100 at least), which leaves a tenth of the counts nonzero. Below 1e9.
    dispersion
        Median over genes of 1 / theta, where a count's variance is mean + mean² / theta; below 1e6.
    dropout
        Probability that a count is lost, whatever its size.
    composition
        Weights of the types in every batch, shape (batches, types). By default drawn from a
        Dirichlet distribution, so that batches differ.
    attributes
        Names of the levels of every further attribute, such as
        `{"condition": ["ctrl", "stim"], "sex": ["F", "M"]}`. Levels are drawn independently and
        evenly; each but the first shifts the log rates of a tenth of the genes, and the shifts of
        several attributes add up.
    true_mean
        Keep the negative binomial means (before dropout) as well: a dense matrix.
    seed
        Same seed, same data.

    Returns
    -------
    Cells with integer counts in `X` and, as a copy, `layers["counts"]` (CSR, float32), and

    - `obs["cell_type"]`, `obs["batch"]` and one column per attribute, categorical;
    - `obs["true_depth"]`, `obsm["true_latent"]`, `var["true_base"]`, `var["true_theta"]`;
    - `varm["true_loadings"]`, `varm["true_batch_shift"]`, `varm["true_<attribute>_shift"]`: change
      of a gene's log rate per latent dimension, batch and level;
    - `uns["truth"]`: `centres` (types, latent) and `composition` (batches, types), in the order
      `type_0`, `type_1`, ... and `batch_0`, `batch_1`, ...;
    - `layers["true_mean"]` (dense, float32) on request.

    Raises
    ------
    ConfigError
        If a value is out of range, or an attribute has the name of another column.

    Examples
    --------
    >>> cells = simulate_cells(200, 50, n_batches=2, attributes={"condition": ["ctrl", "stim"]})
    >>> cells.shape, list(cells.obs)
    ((200, 50), ['cell_type', 'batch', 'condition', 'true_depth'])
    """
    _require(n_genes >= 1, f"n_genes is {n_genes}; at least one is needed.")
    _require(0 <= batch_strength <= 5, f"batch_strength is {batch_strength}; give 0 to 5.")
    rng = np.random.default_rng(seed)
    cells = _population(rng, n_cells, n_types, n_batches, composition)
    loadings = rng.normal(0, 0.4 / np.sqrt(_N_LATENT), (_N_LATENT, n_genes))
    shifts = {"batch": rng.normal(0, batch_strength, (n_batches, n_genes))}
    for name, levels in (attributes or {}).items():
        _check_attribute(cells, name, levels)
        codes = rng.integers(len(levels), size=n_cells)
        cells.obs[name] = pd.Categorical.from_codes(codes, pd.Index(levels))
        shifts[name] = rng.normal(0, 1, (len(levels), n_genes)) * (rng.random(n_genes) < 0.1)
        shifts[name][0] = 0
    return _sequence(
        rng,
        cells,
        loadings,
        shifts,
        prefix="gene",
        base=rng.normal(0, 1.5, n_genes),
        depth=max(0.2 * n_genes, 100.0) if depth is None else depth,
        dispersion=dispersion,
        dropout=dropout,
        true_mean=true_mean,
    )


@checked
def simulate_citeseq(
    n_cells: int = 1000,
    n_genes: int = 500,
    n_proteins: int = 20,
    *,
    n_types: int = 5,
    n_batches: int = 1,
    batch_strength: float = 0.3,
    absent: Mapping[str, Sequence[str]] | None = None,
    seed: int = 0,
) -> MuData:
    """Simulate RNA and surface protein counts of the same cells, or a mosaic of both.

    Every protein has background counts in all cells and is raised about tenfold in its foreground:
    95 % of the cells of the types that carry it, 2 % of the others.

    Parameters
    ----------
    n_cells, n_genes, n_proteins
        Size of the data.
    n_types, n_batches, batch_strength, seed
        As in `simulate_cells`; a batch also scales the counts of every protein.
    absent
        The batches in which a modality was not measured, such as
        `{"rna": ["batch_1"], "adt": ["batch_0"]}`: it has no row for their cells.

    Returns
    -------
    Modalities `rna` (as of `simulate_cells`) and `adt`: integer counts in `X` and
    `layers["counts"]` (CSR, float32), `layers["true_foreground"]` (dense, bool),
    `var["true_background"]` and `var["true_gain"]` (the mean outside the foreground, and by what
    the foreground multiplies it), `var["true_theta"]`, `varm["true_batch_shift"]` (change of the
    log mean) and `varm["true_carriers"]` (bool per type). `obs["cell_type"]` and `obs["batch"]`
    stand in each modality and in the whole.

    Raises
    ------
    ConfigError
        If a value is out of range, `absent` names what is not there, or a batch has no modality.

    Examples
    --------
    >>> cells = simulate_citeseq(100, 50, n_batches=2, absent={"adt": ["batch_0"]})
    >>> cells.shape, cells["adt"].shape
    ((100, 70), (50, 20))
    """
    _require(n_proteins >= 1, f"n_proteins is {n_proteins}; at least one is needed.")
    rna = simulate_cells(
        n_cells,
        n_genes,
        n_types=n_types,
        n_batches=n_batches,
        batch_strength=batch_strength,
        seed=seed,
    )
    rng = np.random.default_rng([seed, 1])
    cell_type, batch = (rna.obs[name].cat.codes.to_numpy() for name in ("cell_type", "batch"))
    carriers = rng.random((n_types, n_proteins)) < 0.3
    shape = (n_cells, n_proteins)
    foreground = rng.random(shape) < np.where(carriers, 0.95, 0.02)[cell_type]
    background = rng.lognormal(np.log(5), 0.5, n_proteins)
    gain = 1 + rng.lognormal(np.log(9), 0.4, n_proteins)
    shift = rng.normal(0, batch_strength, (n_batches, n_proteins))
    theta = rng.lognormal(np.log(5), 0.3, n_proteins)
    mean = background * np.exp(shift)[batch] * np.where(foreground, gain, 1.0)
    mean *= rng.lognormal(0, 0.3, (n_cells, 1))
    counts = sparse.csr_matrix(_negative_binomial(rng, mean, theta), dtype=np.float32)
    adt = AnnData(
        counts,
        obs=rna.obs[["cell_type", "batch"]],
        var=pd.DataFrame(
            {"true_background": background, "true_gain": gain, "true_theta": theta},
            index=_names("protein", n_proteins),
        ),
        varm={"true_batch_shift": shift.T, "true_carriers": carriers.T},
        layers={"counts": counts.copy(), "true_foreground": foreground},
    )
    return _mosaic({"rna": rna, "adt": adt}, absent or {})


@checked
def simulate_multiome(
    n_cells: int = 1000,
    n_genes: int = 500,
    n_peaks: int = 1000,
    *,
    n_types: int = 5,
    n_batches: int = 1,
    batch_strength: float = 0.3,
    absent: Mapping[str, Sequence[str]] | None = None,
    seed: int = 0,
) -> MuData:
    """Simulate RNA counts and accessible peaks of the same cells, half of the peaks tied to a gene.

    A linked peak opens with its gene: along the latent dimensions both log rates change alike. The
    other peaks differ between cells by depth and batch only.

    Parameters
    ----------
    n_cells, n_genes, n_peaks
        Size of the data.
    n_types, n_batches, batch_strength, seed
        As in `simulate_cells`; a batch shifts the peaks too, apart from the genes.
    absent
        As in `simulate_citeseq`.

    Returns
    -------
    Modalities `rna` (as of `simulate_cells`) and `atac`, which has the same slots: fragment
    counts, 5 % of them nonzero and few above 1, and `var["true_gene"]`, the linked gene or NaN.
    `obs["cell_type"]` and `obs["batch"]` stand in each modality and in the whole.

    Raises
    ------
    ConfigError
        If a value is out of range, `absent` names what is not there, or a batch has no modality.

    Examples
    --------
    >>> simulate_multiome(50, 20, 30)["atac"].var["true_gene"].head(3).tolist()
    ['gene_10', nan, 'gene_19']
    """
    _require(n_peaks >= 1, f"n_peaks is {n_peaks}; at least one is needed.")
    rna = simulate_cells(
        n_cells,
        n_genes,
        n_types=n_types,
        n_batches=n_batches,
        batch_strength=batch_strength,
        seed=seed,
    )
    rng = np.random.default_rng([seed, 1])
    gene = rng.integers(n_genes, size=n_peaks)
    linked = rng.random(n_peaks) < 0.5
    atac = _sequence(
        rng,
        AnnData(obs=rna.obs[["cell_type", "batch"]], obsm=rna.obsm.copy(), uns=rna.uns.copy()),
        rna.varm["true_loadings"].T[:, gene] * linked,
        {"batch": rng.normal(0, batch_strength, (n_batches, n_peaks))},
        prefix="peak",
        base=rng.normal(0, 0.5, n_peaks),
        depth=max(0.05 * n_peaks, 50.0),
        dispersion=0.1,
    )
    atac.var["true_gene"] = pd.Categorical.from_codes(np.where(linked, gene, -1), rna.var_names)
    return _mosaic({"rna": rna, "atac": atac}, absent or {})


@checked
def simulate_linear_gaussian(
    n: int = 500,
    d: int = 20,
    k: int = 3,
    noise: float | Sequence[float] | Float[np.ndarray, " d"] = 0.5,
    seed: int = 0,
    missing: float = 0.0,
) -> AnnData:
    """Simulate the model of probabilistic PCA and factor analysis, x = mean + W z + noise.

    Parameters
    ----------
    n, d, k
        Number of cells, features and factors.
    noise
        Standard deviation of the noise: one for all features (probabilistic PCA) or one for each
        (factor analysis).
    seed
        Same seed, same data.
    missing
        Probability that an entry is not measured (NaN).

    Returns
    -------
    Continuous values in `X` (dense, float32), standard normal `obsm["true_latent"]` (n, k),
    `varm["true_loadings"]` (d, k), `var["true_mean"]` and `var["true_noise"]`.

    Raises
    ------
    ConfigError
        If a size, the noise or `missing` is out of range.

    References
    ----------
    Tipping & Bishop, Probabilistic Principal Component Analysis, JRSS B 61:611, 1999.

    Examples
    --------
    >>> simulate_linear_gaussian(100, d=8, k=2).varm["true_loadings"].shape
    (8, 2)
    """
    _require(min(n, d, k) >= 1, f"n, d and k are {n}, {d} and {k}; each must be 1 or more.")
    _require(0 <= missing < 1, f"missing is {missing}; it is a probability below 1.")
    scale = np.asarray(noise, dtype=np.float64)
    _require(scale.shape in ((), (d,)), f"noise has shape {scale.shape}; give one number or {d}.")
    _require((scale >= 0).all(), "noise has a negative value; it is a standard deviation.")
    rng = np.random.default_rng(seed)
    latent, loadings, mean = rng.normal(size=(n, k)), rng.normal(size=(d, k)), rng.normal(size=d)
    x = mean + latent @ loadings.T + scale * rng.normal(size=(n, d))
    x[rng.random(x.shape) < missing] = np.nan
    return AnnData(
        x.astype(np.float32),
        obs=pd.DataFrame(index=_names("cell", n)),
        var=pd.DataFrame(
            {"true_mean": mean, "true_noise": np.broadcast_to(scale, d)},
            index=_names("feature", d),
        ),
        obsm={"true_latent": latent},
        varm={"true_loadings": loadings},
    )


def _require(holds: object, message: str) -> None:
    if not holds:
        raise ConfigError(message)


def _check_attribute(cells: AnnData, name: str, levels: Sequence[str]) -> None:
    free = name not in {*cells.obs, "true_depth"}
    _require(free, f"The attribute {name!r} has the name of another obs column; rename it.")
    unlike = not isinstance(levels, str) and len(set(levels)) == len(levels) > 0
    _require(unlike, f"The levels of {name!r} are {levels!r}; give a list of different names.")


def _names(prefix: str, n: int) -> pd.Index:
    return pd.Index([f"{prefix}_{i}" for i in range(n)])


def _population(
    rng: np.random.Generator,
    n_cells: int,
    n_types: int,
    n_batches: int,
    composition: Sequence[Sequence[float | int]] | Float[np.ndarray, "batches types"] | None,
) -> AnnData:
    """Cells with a type, a batch and a latent position, and no features yet."""
    _require(n_types >= 1, f"n_types is {n_types}; at least one is needed.")
    _require(
        1 <= n_batches <= n_cells, f"{n_batches} batches of {n_cells} cells; each needs a cell."
    )
    if composition is None:
        composition = rng.dirichlet(np.full(n_types, 5.0), size=n_batches)
    try:
        weights = np.asarray(composition, dtype=np.float64)
    except ValueError as error:
        raise ConfigError("composition has rows of different lengths.") from error
    shape = (n_batches, n_types)
    _require(weights.shape == shape, f"composition has shape {weights.shape}, not {shape}.")
    valid = (weights >= 0).all() and (weights.sum(axis=1) > 0).all()
    _require(valid, "composition has a negative weight, or a batch without any.")
    weights = weights / weights.sum(axis=1, keepdims=True)

    batch = rng.permutation(np.arange(n_cells) % n_batches)
    steps = weights.cumsum(axis=1)[batch, :-1]
    cell_type = (rng.random((n_cells, 1)) >= steps).sum(axis=1)
    centres = rng.normal(0, 2, (n_types, _N_LATENT))
    obs = pd.DataFrame(
        {
            "cell_type": pd.Categorical.from_codes(cell_type, _names("type", n_types)),
            "batch": pd.Categorical.from_codes(batch, _names("batch", n_batches)),
        },
        index=_names("cell", n_cells),
    )
    return AnnData(
        obs=obs,
        obsm={"true_latent": centres[cell_type] + rng.normal(size=(n_cells, _N_LATENT))},
        uns={"truth": {"centres": centres, "composition": weights}},
    )


def _sequence(
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
    _require(0 < depth < 1e9, f"depth is {depth}; it must be positive, and below 1e9.")
    _require(
        0 < dispersion < 1e6,
        f"dispersion is {dispersion}; it must be positive (1e-6 for Poisson), and below 1e6.",
    )
    _require(0 <= dropout < 1, f"dropout is {dropout}; it is a probability below 1.")
    n_cells, n_features = cells.n_obs, len(base)
    cell_depth = rng.lognormal(np.log(depth), 0.4, n_cells)
    theta = rng.lognormal(-np.log(dispersion), 0.3, n_features)
    # Latent positions and levels side by side, so that one product adds up every effect.
    features = np.hstack(
        [cells.obsm["true_latent"], *(pd.get_dummies(cells.obs[s]) for s in shifts)]
    )
    weights = np.vstack([loadings, *shifts.values()])
    blocks, means = [], []
    step = max(1, _BLOCK // n_features)
    for start in range(0, n_cells, step):
        rows = slice(start, start + step)
        mean = np.exp(base + features[rows] @ weights)
        mean *= cell_depth[rows, None] / mean.sum(axis=1, keepdims=True)
        x = _negative_binomial(rng, mean, theta) * (rng.random(mean.shape) >= dropout)
        blocks.append(sparse.csr_matrix(x, dtype=np.float32))
        means.extend([mean.astype(np.float32)] if true_mean else [])
    counts = sparse.vstack(blocks, format="csr")
    return AnnData(
        counts,
        obs=cells.obs.assign(true_depth=cell_depth),
        var=pd.DataFrame(
            {"true_base": base, "true_theta": theta}, index=_names(prefix, n_features)
        ),
        obsm=cells.obsm.copy(),
        varm={"true_loadings": loadings.T} | {f"true_{s}_shift": shifts[s].T for s in shifts},
        layers={"counts": counts.copy()} | ({"true_mean": np.vstack(means)} if means else {}),
        uns=cells.uns.copy(),
    )


def _negative_binomial(
    rng: np.random.Generator, mean: Float[np.ndarray, "b g"], theta: Float[np.ndarray, " g"]
) -> Integer[np.ndarray, "b g"]:
    return rng.poisson(rng.gamma(theta, mean / theta))


def _mosaic(modalities: Mapping[str, AnnData], absent: Mapping[str, Sequence[str]]) -> MuData:
    """Join modalities of the same cells, each without the batches where it is absent."""
    obs = next(iter(modalities.values())).obs
    for name, batches in absent.items():
        _require(name in modalities, f"absent names {name!r}.{near(name, modalities)}")
        for batch in batches:
            known = obs["batch"].cat.categories
            _require(batch in known, f"absent names {batch!r}.{near(batch, known)}")
    kept = {name: ~obs["batch"].isin(absent.get(name, ())).to_numpy() for name in modalities}
    seen = np.any(list(kept.values()), axis=0)
    _require(seen.all(), "absent leaves a batch without any modality; keep one of them.")
    # mudata 0.3 would copy columns of obs under prefixed names, and warn that 0.4 will not.
    with mudata.set_options(pull_on_update=False):
        joined = MuData({name: data[kept[name]].copy() for name, data in modalities.items()})
    joined.obs[["cell_type", "batch"]] = obs[["cell_type", "batch"]]  # aligned by name
    return joined
