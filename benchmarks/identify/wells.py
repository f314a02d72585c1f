"""Wells whose factors are known because a hand mixed them (sc_mixology), and how well vectors tell them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
from jaxtyping import Float
from sklearn.linear_model import LinearRegression
from sklearn.model_selection import GroupKFold, cross_val_predict
from sklearn.neighbors import KNeighborsRegressor

import chreode as ch

GENES = 2000
FOLDS = 5
NEIGHBOURS = 10
#: How a factor is read off an embedding.
READERS = {
    "linear": LinearRegression(),
    "kNN": KNeighborsRegressor(NEIGHBOURS),
}
#: Drawn anew for each, and averaged over.
SPLITS = 5


#: Factors of joined files that nobody mixed: which file (0 or 1), and log10 of the counts of all genes.
BATCH, DEPTH = "batch", "depth"
#: Replicates of a well have the same.
GROUPS = "cell_id"


@dataclass(frozen=True)
class Mixtures:
    """Wells of some files, and what is known of them.

    Attributes
    ----------
    files
        They are joined by the genes that they share.
    batch
        Column that tells the files apart.
    mixed
        Columns of what a hand mixed.
    genes
        How many to take, of those that vary most; None: all.
    """

    files: tuple[str, ...]
    batch: str
    mixed: tuple[str, ...]
    genes: int | None = GENES

    @property
    def factors(self) -> tuple[str, ...]:
        return (*self.mixed, BATCH, DEPTH) if len(self.files) > 1 else self.mixed

    @property
    def schema(self) -> ch.Schema:
        return ch.Schema(counts="X", batch=f"obs/{self.batch}")


RNA, CELLS = "RNA mixtures", "cell mixtures"
_FILES = {
    RNA: ("sc_mixology_rnamix/rnamix_celseq2.h5ad", "sc_mixology_rnamix/rnamix_sortseq.h5ad"),
    CELLS: ("sc_mixology_cellmix/cellmix1.h5ad", "sc_mixology_cellmix/cellmix2.h5ad"),
}
_KNOWN = {
    RNA: ("protocol", ("h2228_prop", "h1975_prop", "hcc827_prop", "mrna_amount")),
    CELLS: ("plate", ("n_h2228", "n_h1975", "n_hcc827")),
}
#: Both files of each: augmentations that mix batches need two, and the factors have the same spread in both.
DATA = {name: Mixtures(files, *_KNOWN[name]) for name, files in _FILES.items()}
#: Each file alone with all genes, where others have measured what PCA tells.
ALONE = {
    Path(file).stem: Mixtures((file,), *_KNOWN[name], genes=None)
    for name, files in _FILES.items()
    for file in files
}
EVERY = {**DATA, **ALONE}


def read(name: str, folder: Path) -> anndata.AnnData:
    """Return wells with their factors in ``obs``.

    Spike-ins are left out, since their share of the counts tells the amount of RNA, and so are wells that
    the authors flag as poor.
    """
    of = EVERY[name]
    wells = anndata.concat([anndata.read_h5ad(folder / file) for file in of.files], join="inner")
    wells = wells[:, ~wells.var_names.str.startswith("ERCC")]
    if "poor_quality" in wells.obs:
        wells = wells[~wells.obs["poor_quality"].to_numpy(bool)]
    wells = wells.copy()
    wells.obs[DEPTH] = np.log10(np.asarray(wells.X.sum(1)).ravel())
    wells.obs[BATCH] = pd.factorize(wells.obs[of.batch])[0].astype(float)
    if of.genes is None:
        return wells
    return wells[:, ch.pp.select_genes(wells, of.schema, of.genes)].copy()


def r2(
    x: Float[np.ndarray, "n z"], obs: pd.DataFrame, factors: Sequence[str]
) -> dict[str, dict[str, float]]:
    """Return R² of each factor by each reader, for wells that the reader has not seen."""
    y = obs[list(factors)].to_numpy(float)
    spread = np.square(y - y.mean(0)).sum(0)
    found = {}
    for name, reader in READERS.items():
        missed = [
            np.square(y - cross_val_predict(reader, x, y, cv=folds(obs[GROUPS], seed))).sum(0)
            for seed in range(SPLITS)
        ]
        told = 1 - np.mean(missed, axis=0) / spread
        found[name] = dict(zip(factors, np.round(told, 5).tolist(), strict=True))
    return found


def folds(wells: pd.Series, seed: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return the rows to learn from and to judge, for each fold; wells of one name are in the same.

    In the cell mixtures these are the same lysate twice, and in the RNA mixtures the same design.
    """
    cut = GroupKFold(FOLDS, shuffle=True, random_state=seed)
    return list(cut.split(wells, groups=wells.astype(str)))
