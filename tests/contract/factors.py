"""A small MOFA: several views, ARD, cells that lack some; with restarts. Subject of tests, and no model yet.

The equations are 105 lines (`View`, `FactorModule`), the options 20 (`Factors`).
"""

from __future__ import annotations

import dataclasses
import math
from typing import ClassVar

import anndata as ad
import numpy as np
import pytest
import scipy.sparse as sp
import torch
from torch.distributions import Gamma, kl_divergence

import chreode as ch
from chreode.config import config, param
from chreode.learn import CAVI, Ensemble, Phase, found_again, settle
from chreode.model import Model
from chreode.module import Module

PRIORS = {"alpha": (1e-14, 1e-14), "tau": (1e-3, 1e-3)}


def entries(batch, role):
    x, there = batch.measured(role)
    return x.double(), there.double().expand(x.shape)


class View(torch.nn.Module):
    """q(W) of a view: means and variances; q(α) of its factors, q(τ) of its features: shapes and rates."""

    def __init__(self, g, k):
        super().__init__()
        start = {"centre": torch.zeros(g), "w": torch.randn(g, k) / k**0.5, "s": torch.full((g, k), 1e-2),
                 "alpha": torch.ones(2, k), "tau": torch.ones(2, g)}  # fmt: skip
        for name, value in start.items():
            self.register_buffer(name, value.double())

    def second(self):
        """Return E[w wᵀ] of each feature."""
        return self.w[:, :, None] * self.w[:, None, :] + torch.diag_embed(self.s)

    def q(self, name):
        return Gamma(*getattr(self, name))

    def log(self, name):
        shape, rate = getattr(self, name)
        return torch.digamma(shape) - rate.log()

    def lost(self, xx, xz, zz):
        """Return E Σ (x − w·z)² of each feature, from sums over cells."""
        return xx - 2 * (self.w * xz).sum(1) + (self.second() * zz).sum((1, 2))

    def update(self, n, xx, xz, zz):
        for k in range(self.w.shape[1]):
            tau, own = self.q("tau").mean, zz[:, k, k]
            self.s[:, k] = 1 / (self.q("alpha").mean[k] + tau * own)
            others = (zz[:, k] * self.w).sum(1) - own * self.w[:, k]
            self.w[:, k] = self.s[:, k] * tau * (xz[:, k] - others)
        squares = (self.w.square() + self.s).sum(0)
        (a, b), (c, d) = PRIORS["alpha"], PRIORS["tau"]
        self.alpha.copy_(torch.stack([a + len(self.w) / 2 + 0 * squares, b + squares / 2]))
        self.tau.copy_(torch.stack([c + n / 2, d + self.lost(xx, xz, zz) / 2]))

    def elbo(self):
        squares, alpha = self.w.square() + self.s, self.q("alpha").mean
        of_w = 0.5 * (self.log("alpha") - alpha * squares + 1 + self.s.log()).sum()
        priors = {n: Gamma(*torch.tensor(p).double()) for n, p in PRIORS.items()}
        return of_w - sum(kl_divergence(self.q(n), prior).sum() for n, prior in priors.items())


class FactorModule(Module):
    """x_g ~ N(w_g · z, 1/τ_g) in every view, all factorised (Argelaguet et al. 2018, without spikes)."""

    def __init__(self, widths, k, n_members=0):
        super().__init__()
        self.widths, self.k = widths, k
        self.views = torch.nn.ModuleList(View(g, k) for g in widths.values())
        self.members = torch.nn.ModuleList(FactorModule(widths, k) for _ in range(n_members))
        self.register_buffer("confidence", torch.full((k,), torch.nan))
        self.unknown = ("confidence",)

    def prepare(self, source, rows, rng):
        for role, view in zip(self.widths, self.views, strict=True):
            both = [entries(batch, role) for batch in source.batches(rows)]
            x, there = (torch.cat(t) for t in zip(*both, strict=True))
            n = there.sum(0).clamp_min(1)
            view.centre.copy_(x.sum(0) / n)
            view.tau[1] = ((x - view.centre).square() * there).sum(0) / n + 1e-3
            view.w.mul_(view.tau[1].sqrt()[:, None])

    def seen(self, batch):
        """Yield each view, its centred values (0: not measured), and what was measured."""
        for role, view in zip(self.widths, self.views, strict=True):
            x, there = entries(batch, role)
            yield view, (x - view.centre) * there, there

    def start(self, batch):
        zero = torch.zeros(len(batch), self.k, dtype=torch.float64)
        return {"mean": zero, "variance": zero + 1}

    def collect(self, batch, local):
        z, views = local["mean"].double().clone(), list(self.seen(batch))
        pull = sum(x @ (view.w * view.q("tau").mean[:, None]) for view, x, _ in views)
        products = sum(
            ((there * view.q("tau").mean) @ view.second().flatten(1)).unflatten(1, (self.k, self.k))
            for view, _, there in views
        )
        own = products.diagonal(dim1=1, dim2=2)
        v = 1 / (1 + own)
        for k in range(self.k):  # E[w w'] is that of means beside the diagonal
            others = (products[:, k] * z).sum(1) - own[:, k] * z[:, k]
            z[:, k] = v[:, k] * (pull[:, k] - others)
        zz = z[:, :, None] * z[:, None, :] + torch.diag_embed(v)
        sums = {"elbo": -0.5 * (v + z.square() - 1 - v.log()).sum()}
        for i, (view, x, there) in enumerate(views):
            seconds = (there.T @ zz.flatten(1)).unflatten(1, (self.k, self.k))
            part = there.sum(0), x.square().sum(0), x.T @ z, seconds
            noise = view.log("tau") - math.log(2 * math.pi)
            lost = view.q("tau").mean * view.lost(*part[1:])
            sums["elbo"] = sums["elbo"] + 0.5 * (part[0] * noise - lost).sum()
            sums |= {f"{name}{i}": t for name, t in zip(("n", "xx", "xz", "zz"), part, strict=True)}
        return sums, {"mean": z, "variance": v}

    def update(self, statistics):
        for i, view in enumerate(self.views):
            view.update(*(statistics[f"{name}{i}"] for name in ("n", "xx", "xz", "zz")))

    def global_elbo(self):
        return sum(view.elbo() for view in self.views)

    def embed(self, batch):
        return settle(self, batch)["mean"].float()

    def loadings(self):
        return {role: view.w for role, view in zip(self.widths, self.views, strict=True)}

    def variance_explained(self, batch):
        z, found = settle(self, batch)["mean"], {}
        for role, (view, x, there) in zip(self.widths, self.seen(batch), strict=True):
            alone = [z[:, k : k + 1] @ view.w[:, k : k + 1].T for k in range(self.k)]
            guesses = [torch.zeros_like(x), *alone, z @ view.w.T]
            found[role] = torch.stack([((x - guess) * there).square().sum() for guess in guesses])
        return found

    def fresh(self):
        return FactorModule(self.widths, self.k)

    def keep_members(self, others):
        own, *found = (torch.cat([v.w for v in m.views]) for m in (self, *others))
        self.confidence.copy_(found_again(own, found))


@config
class Factors(Model):
    """Toy."""

    needs: ClassVar = ("views",)
    tolerates: ClassVar = ("views",)
    partial: ClassVar = True
    n_factors: int = param(5, "Factors.")
    n_restarts: int = param(0, "Fits of which the best is kept.")
    tol: float = param(1e-4, "When to stop.")
    max_epochs: int = param(200, "Most passes.")
    rows: str = param("all", "Of a restart.")

    def build(self, spec):
        widths = {role: len(names) for role, names in spec.features.items()}
        return FactorModule(widths, self.n_factors, self.n_restarts)

    def phases(self):
        one = Phase(CAVI(max_epochs=self.max_epochs, tol=self.tol), name="factors")
        best = lambda _, traces: traces[-1].history["train_elbo"].iloc[-1]  # noqa: E731
        many = Ensemble(self.n_restarts, (one,), self.rows, best)
        return [Phase(many, name="restarts") if self.n_restarts else one]

    def alone(self):
        return dataclasses.replace(self, n_restarts=0)


X = ch.Schema(views=("X",))


def simulated(n=400, g=40, k=3, seed=0):
    """Cells of k factors, uneven noise, and the factors."""
    rng = np.random.default_rng(seed)
    z, w = rng.normal(size=(n, k)), rng.normal(size=(g, k)) * np.array([1.5, 1.0, 0.7])[:k]
    x = 2 + z @ w.T + rng.normal(size=(n, g)) * np.linspace(0.5, 1.5, g)
    return ad.AnnData(x.astype("f4")), z


def variable(file, n_cells, n_genes, seed=0):
    """Some cells of a file, log1p of counts per 10,000 of their most variable genes."""
    cells = ad.read_h5ad(file)
    rows = np.sort(np.random.default_rng(seed).choice(cells.n_obs, n_cells, replace=False))
    x = sp.csr_matrix(cells.X[rows]).toarray().astype("f8")
    x = np.log1p(x / x.sum(1, keepdims=True) * 1e4)
    genes = np.sort(np.argsort(x.var(0))[-n_genes:])
    return ad.AnnData(x[:, genes].astype("f4"), obs=cells.obs.iloc[rows], var=cells.var.iloc[genes])


@pytest.fixture(scope="module")
def blood(real):
    return variable(real("pbmc3k/pbmc3k_2700.h5ad"), 300, 100)


def elbo(fitted):
    return fitted.history["train_elbo"].to_numpy()
