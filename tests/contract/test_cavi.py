"""Coordinate ascent on the ELBO as a learner, proved by a small MOFA: views, ARD, cells that lack some.

The model (`FactorModule` and `Factors`, with restarts) is 98 lines; `test_views`, `test_loadings` and
`test_members` use it too.
"""

from __future__ import annotations

import dataclasses
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import ClassVar

import anndata as ad
import numpy as np
import pytest
import scipy.sparse as sp
import torch
from sklearn.decomposition import FactorAnalysis
from torch.distributions import Gamma, kl_divergence

import chreode as ch
from chreode.config import config, param
from chreode.data import source as source_
from chreode.data.batch import CellBatch
from chreode.learn import CAVI, Ensemble, Phase, found_again, settle
from chreode.model import Model
from chreode.module import Members, Module

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
        self.members = Members(FactorModule(widths, k) for _ in range(n_members))
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


def test_the_elbo_of_real_cells_rises_to_rest(blood):
    fitted = Factors(max_epochs=500).fit(blood, X)
    values = elbo(fitted)
    assert (np.diff(values) >= -1e-8 * np.abs(values[1:])).all()
    assert fitted.provenance["state"] == "rested"
    assert 10 < len(values) < 500
    short = Factors(max_epochs=4).fit(blood, X)
    assert short.provenance["state"] == "still improving"
    np.testing.assert_array_equal(elbo(short), values[:4])  # the same seed, the same bits


def reference(x, w, tau, epochs):
    """Return the ELBO after every update of cells, by entries, in NumPy: the equations of Argelaguet 2018."""
    from scipy.special import digamma, gammaln

    (n, g), k = x.shape, w.shape[1]
    w, s, z, v = w.copy(), np.full((g, k), 1e-2), np.zeros((n, k)), np.ones((n, k))
    gammas = {"alpha": (np.ones(k), np.ones(k)), "tau": tau}
    found = []
    for _ in range(epochs):
        (a, b), (c, d) = gammas["alpha"], gammas["tau"]
        for j in range(k):
            rest = x - z @ w.T + np.outer(z[:, j], w[:, j])
            v[:, j] = 1 / (1 + ((c / d) * (w[:, j] ** 2 + s[:, j])).sum())
            z[:, j] = v[:, j] * (rest @ (w[:, j] * c / d))
        off = ((z**2 + v) @ (w**2 + s).T) - (z**2) @ (w**2).T
        error = ((x - z @ w.T) ** 2 + off).sum(0)
        bound = 0.5 * (n * (digamma(c) - np.log(d) - np.log(2 * np.pi)) - c / d * error).sum()
        bound -= 0.5 * (v + z**2 - 1 - np.log(v)).sum()
        bound += 0.5 * (digamma(a) - np.log(b) - a / b * (w**2 + s) + 1 + np.log(s)).sum()
        for name, (p, q) in gammas.items():
            p0, q0 = PRIORS[name]
            bound -= ((p - p0) * digamma(p) - gammaln(p) + gammaln(p0)
                      + p0 * (np.log(q) - np.log(q0)) + p * (q0 - q) / q).sum()  # fmt: skip
        found.append(bound / n)
        for j in range(k):
            rest = x - z @ w.T + np.outer(z[:, j], w[:, j])
            s[:, j] = 1 / (a[j] / b[j] + c / d * (z[:, j] ** 2 + v[:, j]).sum())
            w[:, j] = s[:, j] * c / d * (rest.T @ z[:, j])
        off = ((z**2 + v) @ (w**2 + s).T) - (z**2) @ (w**2).T
        error = ((x - z @ w.T) ** 2 + off).sum(0)
        squares = (w**2 + s).sum(0)
        gammas = {"alpha": (1e-14 + g / 2 + 0 * squares, 1e-14 + squares / 2),
                  "tau": (1e-3 + n / 2 + 0 * error, 1e-3 + error / 2)}  # fmt: skip
    return np.array(found)


@pytest.mark.parametrize("chunk", [16, 4096])
def test_it_is_the_plain_algorithm_however_cells_are_streamed(monkeypatch, chunk):
    """A learner that begun cells anew in every pass, or summed wrongly, would be elsewhere by the second."""
    cells, _ = simulated()
    monkeypatch.setattr(source_, "CHUNK_VALUES", chunk * cells.n_vars)
    first, begun = [], FactorModule.prepare

    def prepare(self, *args):
        begun(self, *args)
        first.append((self.views[0].w.numpy().copy(), self.views[0].tau.numpy().copy()))

    monkeypatch.setattr(FactorModule, "prepare", prepare)
    found = elbo(Factors(max_epochs=12, tol=0.0).fit(cells, X))
    x = cells.X.astype("f8")
    expected = reference(x - x.mean(0), *first[0], epochs=12)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert np.ptp(expected[2:]) > 1e-2 * abs(expected[-1])


def test_it_agrees_with_factor_analysis_and_switches_off_what_is_not_there():
    cells, z = simulated(800, seed=1)
    fitted = Factors(n_factors=6, tol=1e-6, max_epochs=2000).fit(cells, X)
    view = fitted.module.views[0]
    size = view.w.norm(dim=0).numpy()
    on = size > 1e-2 * size.max()
    assert on.sum() == 3
    exact = FactorAnalysis(3, tol=1e-8, max_iter=5000, svd_method="lapack").fit(
        cells.X.astype("f8")
    )
    w = view.w.numpy()[:, on]
    bases = [np.linalg.qr(b)[0] for b in (w, exact.components_.T)]
    assert np.linalg.svd(bases[0].T @ bases[1])[1].min() > 0.9995  # the same plane, however turned
    ours = fitted.module.views[0]
    implied = w @ w.T + np.diag((ours.tau[1] / ours.tau[0]).numpy())
    far = np.linalg.norm(implied - exact.get_covariance()) / np.linalg.norm(exact.get_covariance())
    assert far < 0.03
    found = fitted.embed(cells)[:, on]
    kept = found @ np.linalg.lstsq(found, z, rcond=None)[0]
    assert 1 - (z - kept).var() / z.var() > 0.9


def test_an_elbo_that_falls_is_refused(monkeypatch):
    cells, _ = simulated(100)
    whole, calls = FactorModule.update, []

    def wrong(self, statistics):
        whole(self, statistics)
        calls.append(1)
        if len(calls) == 9:
            self.views[0].tau[1].mul_(3)

    monkeypatch.setattr(FactorModule, "update", wrong)
    with pytest.raises(ch.errors.FitError, match="ELBO fell from .* in epoch 9: coordinate ascent"):
        Factors().fit(cells, X)


def test_ctrl_c_keeps_the_last_update(monkeypatch):
    cells, _ = simulated(100)
    three = Factors(max_epochs=3).fit(cells, X)
    whole, passes = FactorModule.collect, []

    def stop(self, batch, local):
        passes.append(1)
        if len(passes) == 4:
            raise KeyboardInterrupt
        return whole(self, batch, local)

    monkeypatch.setattr(FactorModule, "collect", stop)
    with pytest.warns(UserWarning, match="interrupted in epoch 3; the last update is kept"):
        cut = Factors().fit(cells, X)
    assert torch.equal(cut.module.views[0].w, three.module.views[0].w)
    assert cut.provenance["state"] == "still improving"


def test_posteriors_of_cells_are_small_and_of_training_rows_alone(monkeypatch):
    cells, _ = simulated(100)
    seen = []
    whole = FactorModule.collect

    def spy(self, batch, local):
        seen.append({name: (values.dtype, values.shape) for name, values in local.items()})
        return whole(self, batch, local)

    monkeypatch.setattr(FactorModule, "collect", spy)
    fitted = Factors(max_epochs=2).fit(cells, X, rows=np.arange(60))
    assert set(seen[1].values()) == {(torch.float32, (60, 5))}
    assert not [t for t in fitted.module.state_dict().values() if 60 in t.shape]


def test_an_answer_is_at_rest_and_depends_on_no_neighbour(blood):
    fitted = Factors(max_epochs=30).fit(blood, X)
    z = fitted.embed(blood)
    alone = np.concatenate([fitted.embed(blood[[i]].copy()) for i in range(0, 300, 50)])
    np.testing.assert_allclose(z[::50], alone, rtol=1e-6, atol=1e-7)
    view, x = fitted.module.views[0], blood.X.astype("f8")
    w, tau = view.w.numpy(), (view.tau[0] / view.tau[1]).numpy()
    precision = np.eye(5) + (w.T * tau) @ w + np.diag(tau @ view.s.numpy())
    exact = np.linalg.solve(precision, (w.T * tau) @ (x - view.centre.numpy()).T).T
    np.testing.assert_allclose(z, exact, atol=2e-3 * np.abs(exact).max())


SCRIPT = """
import sys
sys.path.insert(0, sys.argv[1])
import torch
from contract.test_cavi import Factors, X, simulated
torch.set_num_threads(1)
fitted = Factors(max_epochs=10, tol=0.0, n_restarts=2).fit(simulated(101)[0], X, distributed=True)
print("values", *fitted.history["train_elbo"], float(fitted.module.views[0].w.sum()))
"""


@pytest.mark.slow
def test_processes_share_the_cells(tmp_path):
    (tmp_path / "run.py").write_text(SCRIPT)
    launch = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
    ]
    quiet = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [*launch, str(tmp_path / "run.py"), str(Path(__file__).parents[1])],
        env=quiet, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    told = [line.split()[1:] for line in done.stdout.splitlines() if line.startswith("values")]
    assert len(told) == 2
    assert told[0] == told[1]
    alone = Factors(max_epochs=10, tol=0.0, n_restarts=2).fit(simulated(101)[0], X)
    assert len(alone.history) == 20
    expected = [*elbo(alone), float(alone.module.views[0].w.sum())]
    np.testing.assert_allclose(np.array(told[0], float), expected, rtol=1e-6)


def test_a_module_without_such_posteriors_says_so():
    batch = CellBatch(torch.arange(2), {"views/X": torch.zeros(2, 3)})
    for ask in (lambda: Module().start(batch), lambda: Module().global_elbo()):
        with pytest.raises(NotImplementedError, match="not trained by CAVI"):
            ask()
