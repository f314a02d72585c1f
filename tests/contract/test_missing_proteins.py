"""Proteins that one batch was not stained for: NaN, told entry by entry, and imputed.

The model is 31 lines: an encoder of RNA and of the proteins that were measured, and a decoder of both, that
learns from measured entries alone. Cells: 10k PBMC with 14 proteins; three of them are taken out of one of
two halves, which are the batches.
"""

from __future__ import annotations

from typing import ClassVar

import anndata as ad
import mudata
import numpy as np
import pytest
import scipy.sparse as sp
import torch
import torch.nn.functional as F
from torch import nn

import chreode as ch
from chreode.config import config, param
from chreode.data.align import open_query
from chreode.data.cells import Cells
from chreode.data.sampler import Shuffled
from chreode.learn import SGD, Phase
from chreode.model import Model
from chreode.module import Loss, Module

FILE = "pbmc10k_citeseq/pbmc10k_cite_6855x4000_14prot.h5ad"
ROLES = ch.Schema(counts="X", protein="obsm/protein", batch="obs/half")


class PairedModule(Module):
    """One latent state of both; what was not measured is neither read nor learned from."""

    drawn = ("counts", "protein")

    def __init__(self, genes, proteins, width):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(genes + 2 * proteins, width), nn.ReLU())
        self.decoder = nn.ModuleDict(
            {"counts": nn.Linear(width, genes), "protein": nn.Linear(width, proteins)}
        )

    def state(self, batch, shown):
        x, known = batch.measured("protein")
        seen = (known * shown).expand(x.shape)
        return self.encoder(torch.cat([batch.log_expression(), x.log1p() * seen, seen], 1))

    def loss(self, batch, step):
        x, known = batch.measured("protein")
        h = self.state(batch, torch.rand_like(x) < 0.5)  # so that it learns to do without
        error = (self.decoder["protein"](h) - x.log1p()).square() * known
        genes = F.mse_loss(self.decoder["counts"](h), batch.log_expression())
        return Loss({"model": step.mean(error, known.expand(x.shape)) + genes})

    def reconstruct(self, batch, to, role="counts"):
        return self.decoder[role](self.state(batch, torch.ones(1, 1))).expm1().clamp_min(0)


@config
class Paired(Model):
    """Toy."""

    needs: ClassVar = ("counts", "protein")
    tolerates: ClassVar = ("protein",)
    max_epochs: int = param(15, "Passes.")

    def build(self, spec):
        return PairedModule(spec.n_features("counts"), spec.n_features("protein"), 64)

    def phases(self):
        return [Phase(SGD(lr=1e-3, max_epochs=self.max_epochs), data=Shuffled(64))]


@pytest.fixture(scope="module")
def cite(real):
    """Return 1,500 cells with 300 variable genes; `obsm` has all proteins, and those that are left."""
    cells = ad.read_h5ad(real(FILE))[::4][:1500].copy()
    x = np.asarray(sp.csr_matrix(cells.X).toarray(), np.float32)
    spread = np.log1p(x * 1e4 / x.sum(1, keepdims=True)).var(0)
    kept = np.sort(spread.argsort()[-300:])
    cells = cells[:, kept].copy()
    protein = cells.obsm.pop("protein_counts")
    full = protein.to_numpy(np.float32) if hasattr(protein, "to_numpy") else np.asarray(protein)
    second = np.arange(cells.n_obs) % 2 == 1
    cells.obs["half"] = np.where(second, "second", "first")
    taken = np.argsort(np.log1p(full).var(0))[-3:]  # that differ most between cells
    cells.obsm["full"] = full.astype(np.float32)
    cells.obsm["protein"] = cells.obsm["full"].copy()
    cells.obsm["protein"][np.ix_(second, taken)] = np.nan
    return cells


def errors(found, cells):
    """Return squared errors of log1p of the entries that were taken out, by protein: ours, the mean's."""
    gone = np.isnan(cells.obsm["protein"])
    truth, left = np.log1p(cells.obsm["full"]), np.log1p(cells.obsm["protein"])
    which = np.flatnonzero(gone.any(0))
    mean = np.nanmean(left, 0)
    guess = np.log1p(found.X)
    return [
        np.array([np.square(g - truth)[gone[:, j], j].mean() for j in which])
        for g in (guess, np.broadcast_to(mean, truth.shape))
    ]


@pytest.mark.slow
def test_proteins_that_a_batch_lacks_are_imputed_better_than_by_their_mean(cite):
    fitted = Paired().fit(cite, ROLES, validation=0)
    ours, theirs = errors(fitted.reconstruct(cite, role="protein"), cite)
    assert len(ours) == 3
    assert (ours < 0.5 * theirs).all()
    zeros = cite.copy()  # what is taken for a count of 0 is learned as one
    zeros.obsm["protein"] = np.nan_to_num(zeros.obsm["protein"])
    fooled = Paired().fit(zeros, ROLES, validation=0)
    wrong, _ = errors(fooled.reconstruct(zeros, role="protein"), cite)
    assert (wrong > 2 * ours).all()


def test_a_batch_tells_entry_by_entry_what_was_measured(cite, tmp_path):
    some = cite[:200].copy()
    known = ~np.isnan(some.obsm["protein"])
    stored = some.copy()
    stored.obsm["protein"] = sp.csr_matrix(some.obsm["protein"])
    some.write_h5ad(tmp_path / "cells.h5ad")
    spec = Paired(max_epochs=1).fit(some, ROLES).spec
    for data in (some, stored, tmp_path / "cells.h5ad", ch.open(tmp_path / "cells.h5ad")):
        source = open_query(Cells.of(data, ROLES), spec, ["counts", "protein"])
        rows = np.arange(0, 200, 3)[::-1].copy()
        x, measured = source.batch(rows).measured("protein")
        assert np.array_equal(measured.expand(x.shape).numpy(), known[rows])
        assert np.array_equal(x.numpy(), np.nan_to_num(some.obsm["protein"][rows]))


def test_neither_cells_nor_features_that_are_absent_count_as_measured(cite):
    """Cells without a stain, proteins of another panel, and NaN, all at once."""
    some = cite[:60].copy()
    names = [f"p{i}" for i in range(some.obsm["protein"].shape[1])]
    adt = ad.AnnData(some.obsm["protein"].copy(), obs=some.obs[[]].copy())
    adt.var_names = names
    rna = some.copy()
    rna.obsm.clear()
    with mudata.set_options(pull_on_update=False):
        whole = mudata.MuData({"rna": rna, "adt": adt})
        part = mudata.MuData({"rna": rna, "adt": adt[20:, 2:].copy()})
    roles = ch.Schema(counts="rna:X", protein="adt:X")
    spec = Paired(max_epochs=1).fit(whole, roles).spec
    with pytest.warns(UserWarning, match="lacks 2 of 14 trained features"):
        source = open_query(Cells.of(part, roles), spec, ["counts", "protein"])
    x, measured = source.batch(np.arange(60)).measured("protein")
    known = ~np.isnan(some.obsm["protein"])
    known[:20], known[:, :2] = False, False
    assert np.array_equal(measured.expand(x.shape).numpy(), known)
    wanted = np.where(known, some.obsm["protein"], 0)
    assert np.array_equal(x.numpy(), wanted)


def test_models_that_take_counts_of_all_refuse_them(cite, quick):
    with pytest.raises(ch.DataError, match=r"protein holds NaN \(not measured\)"):
        quick(ch.CFGen).fit(cite, ROLES)
