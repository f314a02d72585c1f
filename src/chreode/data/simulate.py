"""Simulated cells whose truth is known and stored beside the counts, in slots named `true_...`.

RNA and ATAC counts come from one story. A cell of type t has a latent position z ~ N(centre_t, I);

    log rate = base + z W + shift of its batch + shifts of its attributes,
    mean     = depth x softmax of the log rates over features,
    count    ~ negative binomial(mean, theta).

The seed alone decides what comes out, and the dense matrix is never held as a whole.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from anndata import AnnData
from jaxtyping import Float
from mudata import MuData
from scipy import sparse

from ..config.arguments import checked
from .draws import (
    N_LATENT,
    mosaic,
    negative_binomial,
    numbered_names,
    population,
    require,
    sequence,
)
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
    require(n_genes >= 1, f"n_genes is {n_genes}; at least one is needed.")
    require(0 <= batch_strength <= 5, f"batch_strength is {batch_strength}; give 0 to 5.")
    rng = np.random.default_rng(seed)
    cells = population(rng, n_cells, n_types, n_batches, composition)
    loadings = rng.normal(0, 0.4 / np.sqrt(N_LATENT), (N_LATENT, n_genes))
    shifts = {"batch": rng.normal(0, batch_strength, (n_batches, n_genes))}
    for name, levels in (attributes or {}).items():
        _check_attribute(cells, name, levels)
        codes = rng.integers(len(levels), size=n_cells)
        cells.obs[name] = pd.Categorical.from_codes(codes, pd.Index(levels))
        shifts[name] = rng.normal(0, 1, (len(levels), n_genes)) * (rng.random(n_genes) < 0.1)
        shifts[name][0] = 0
    return sequence(
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
    require(n_proteins >= 1, f"n_proteins is {n_proteins}; at least one is needed.")
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
    counts = sparse.csr_matrix(negative_binomial(rng, mean, theta), dtype=np.float32)
    adt = AnnData(
        counts,
        obs=rna.obs[["cell_type", "batch"]],
        var=pd.DataFrame(
            {"true_background": background, "true_gain": gain, "true_theta": theta},
            index=numbered_names("protein", n_proteins),
        ),
        varm={"true_batch_shift": shift.T, "true_carriers": carriers.T},
        layers={"counts": counts.copy(), "true_foreground": foreground},
    )
    return mosaic({"rna": rna, "adt": adt}, absent or {})


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
    require(n_peaks >= 1, f"n_peaks is {n_peaks}; at least one is needed.")
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
    atac = sequence(
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
    return mosaic({"rna": rna, "atac": atac}, absent or {})


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
    require(min(n, d, k) >= 1, f"n, d and k are {n}, {d} and {k}; each must be 1 or more.")
    require(0 <= missing < 1, f"missing is {missing}; it is a probability below 1.")
    scale = np.asarray(noise, dtype=np.float64)
    require(scale.shape in ((), (d,)), f"noise has shape {scale.shape}; give one number or {d}.")
    require((scale >= 0).all(), "noise has a negative value; it is a standard deviation.")
    rng = np.random.default_rng(seed)
    latent, loadings, mean = rng.normal(size=(n, k)), rng.normal(size=(d, k)), rng.normal(size=d)
    x = mean + latent @ loadings.T + scale * rng.normal(size=(n, d))
    x[rng.random(x.shape) < missing] = np.nan
    return AnnData(
        x.astype(np.float32),
        obs=pd.DataFrame(index=numbered_names("cell", n)),
        var=pd.DataFrame(
            {"true_mean": mean, "true_noise": np.broadcast_to(scale, d)},
            index=numbered_names("feature", d),
        ),
        obsm={"true_latent": latent},
        varm={"true_loadings": loadings},
    )


def _check_attribute(cells: AnnData, name: str, levels: Sequence[str]) -> None:
    free = name not in {*cells.obs, "true_depth"}
    require(free, f"The attribute {name!r} has the name of another obs column; rename it.")
    unlike = not isinstance(levels, str) and len(set(levels)) == len(levels) > 0
    require(unlike, f"The levels of {name!r} are {levels!r}; give a list of different names.")
