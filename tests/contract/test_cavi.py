"""Coordinate ascent on the ELBO as a learner, proved by a small MOFA (`contract.factors`, 125 lines)."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from contract.factors import (
    PRIORS,
    FactorModule,
    Factors,
    X,
    blood,  # noqa: F401 (a fixture)
    elbo,
    simulated,
)
from sklearn.decomposition import FactorAnalysis

import chreode as ch
from chreode.data import source as source_
from chreode.data.batch import CellBatch
from chreode.module import Module


def test_the_elbo_of_real_cells_rises_to_rest(blood):  # noqa: F811
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


@pytest.mark.slow
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


def test_ctrl_c_within_an_update_leaves_the_one_before(monkeypatch):
    cells, _ = simulated(150, 12)
    before = Factors(max_epochs=3).fit(cells, X)
    whole, views = FactorModule.update, []

    def stop(self, statistics):
        views.append(1)
        if len(views) == 4:
            self.views[0].w.zero_()
            raise KeyboardInterrupt
        whole(self, statistics)

    monkeypatch.setattr(FactorModule, "update", stop)
    with pytest.warns(UserWarning, match="interrupted in epoch 3; the last update is kept"):
        cut = Factors(max_epochs=9).fit(cells, X)
    assert torch.equal(cut.module.views[0].w, before.module.views[0].w)


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


def test_an_answer_is_at_rest_and_depends_on_no_neighbour(blood):  # noqa: F811
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
import os
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import torch
from contract.factors import Factors, X, simulated
torch.set_num_threads(1)
fitted = Factors(max_epochs=10, tol=0.0, n_restarts=2).fit(simulated(101)[0], X, distributed=True)
values = [*fitted.history["train_elbo"], float(fitted.module.views[0].w.sum())]
Path(__file__).with_name(os.environ["RANK"]).write_text(" ".join(map(str, values)))
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
        [*launch, str(tmp_path / "run.py"), str(Path(__file__).parents[1]), str(tmp_path)],
        env=quiet, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    values = [(tmp_path / rank).read_text().split() for rank in "01"]
    assert values[0] == values[1]
    alone = Factors(max_epochs=10, tol=0.0, n_restarts=2).fit(simulated(101)[0], X)
    assert len(alone.history) == 20
    expected = [*elbo(alone), float(alone.module.views[0].w.sum())]
    np.testing.assert_allclose(np.array(values[0], float), expected, rtol=1e-6)


def test_a_module_without_such_posteriors_says_so():
    batch = CellBatch(torch.arange(2), {"views/X": torch.zeros(2, 3)})
    for ask in (lambda: Module().start(batch), lambda: Module().global_elbo()):
        with pytest.raises(NotImplementedError, match="not trained by CAVI"):
            ask()
