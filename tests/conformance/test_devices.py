"""Every model learns on another device than the CPU: on a CUDA card where there is one, and everywhere
under the mode of `conformance.devices`."""

from __future__ import annotations

import mudata
import numpy as np
import pytest
import scipy.sparse as sp
import torch
from conformance.devices import OtherDevice, is_there
from conformance.test_every_model import needed

import chreode as ch
from chreode import models
from chreode.data.simulate import simulate_multiome
from chreode.losses import counts

CLASSES = [models.find(key) for key in models.keys()]  # noqa: SIM118 (a function)
#: Options that lead through other code, beside the defaults.
OTHERWISE = {
    "SCVI": [
        {"likelihood": "zinb", "dispersion": "gene-batch", "latent_library": True},
        {"likelihood": "poisson", "linear_decoder": True, "encode_covariates": True},
    ],
    "CFGen": [
        {"preset": "paper", "hidden": (8, 8), "dispersion": "gene-batch"},
        {"coupling": "ot", "conditioning": "joint", "drop_by": "minibatch", "depth": "lognormal"},
    ],
    "VAE": [{"n_layers": 0, "noise": "shared"}],
    "NeuralODE": [{"population_steps": 4, "n_refits": 2}],
    "PathReg": [{"strength": 0.1, "n_refits": 2, "targets": "smoothed"}],
}


CARD = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA card")


@pytest.fixture
def mode(monkeypatch):
    """Let ``device="cuda"`` be chosen where there is none."""
    for place in ("chreode.model", "chreode.verbs.answering"):
        monkeypatch.setattr(
            f"{place}.choose_device", lambda wish, **_: "cpu" if wish == "auto" else wish
        )
    monkeypatch.setattr(counts.compiled, "works", False)  # which needs Triton
    with OtherDevice() as mode:
        yield mode


@pytest.fixture(params=["mode", pytest.param("card", marks=CARD)])
def fit_there(request):
    """Fit a model on the other device, and see that it was used: ``fit_there(model, data, schema)``."""
    mode = request.getfixturevalue("mode") if request.param == "mode" else None

    def fit(model, data, schema):
        if mode is None:
            torch.cuda.reset_peak_memory_stats()
        fitted = model.fit(data, schema, device="cuda", progress=False)
        state = fitted.module.state_dict().values()
        if mode is None:
            assert torch.cuda.max_memory_allocated() > sum(t.nbytes for t in state)
            assert not any(t.is_cuda for t in state)
        else:
            assert mode.moved
            assert mode.computed > mode.moved
            assert not any(map(is_there, state))
        return fitted

    return fit


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::chreode.data.horizon.ForecastWarning")
@pytest.mark.filterwarnings("ignore:User provided device_type:UserWarning")
@pytest.mark.parametrize(
    ("cls", "options"),
    [
        pytest.param(cls, options, id=f"{cls.__name__}-{number}")
        for cls in CLASSES
        for number, options in enumerate([{}, *OTHERWISE.get(cls.__name__, [])])
    ],
)
def test_a_fit_mixes_no_devices(cls, options, quick, cells, schema, fit_there):
    few = cells[:120, :40].copy()
    if cls.__name__ == "SCVI" and options.get("likelihood") == "zinb":
        few.obs["size"] = 1.0
    schema = schema.with_(**needed(cls))
    fitted = fit_there(quick(cls, **options), few, schema)
    assert np.isfinite(fitted.embed(few)).all()
    answers = asked(fitted, few, ch.Run(device="cuda", progress=False))
    expected = asked(fitted, few, ch.Run(device="cpu", progress=False))
    for verb, found in answers.items():
        assert np.isfinite(found).all(), verb
        if verb in (
            "embed",
            "reconstruct",
            "trajectory",
            "rank",
        ):  # draws of another device are others
            np.testing.assert_allclose(found, expected[verb], rtol=1e-4, atol=1e-5, err_msg=verb)


def asked(fitted, cells, run):
    """Return what every verb that computes says, as an array."""
    ask = {
        "embed": lambda: fitted.embed(cells, run=run),
        "posterior": lambda: fitted.posterior(cells, run=run),
        "reconstruct": lambda: fitted.reconstruct(cells, run=run).X,
        "predict": lambda: fitted.predict(cells, to={}, run=run).X,
        "generate": lambda: fitted.generate(7, run=run).X,
        "score": lambda: fitted.score(cells, run=run),
        "trajectory": lambda: fitted.trajectory(cells[:3].copy(), run=run).X,
        "rank": lambda: ranked(fitted, cells, run),
    }
    found = {verb: call() for verb, call in ask.items() if verb in fitted.verbs}
    return {v: x.toarray() if sp.issparse(x) else np.asarray(x) for v, x in found.items()}


def ranked(fitted, cells, run):
    """Return the score of every feature, which is 0 where the table has no edge."""
    fitted.rank(cells, run=run)
    return cells.var[f"{fitted.model.key}_score"]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:User provided device_type:UserWarning")
@pytest.mark.parametrize("peaks", ["bernoulli", "poisson"])
@pytest.mark.parametrize("lacking", ["some", "none"])
def test_a_fit_of_several_modalities_mixes_no_devices(quick, fit_there, peaks, lacking):
    with mudata.set_options(pull_on_update=False):
        absent = {"atac": ["batch_1"]} if lacking == "some" else None
        data = simulate_multiome(120, 30, 20, n_batches=2, absent=absent, seed=0)
    schema = ch.Schema(counts="rna:X", accessibility="atac:X", batch="obs/batch")
    fit_there(quick(ch.CFGen, hidden=(8, 8), peaks=peaks), data, schema)


@CARD
@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_card_learns_what_the_cpu_learns(cls, precision, quick, cells, schema):
    """Its noise is another: the objective is alike, and only of exact learners the same.

    Four steps on pieces of courses that were drawn anew tell nothing, so dynamics are held to what comes
    before.
    """
    schema = schema.with_(**needed(cls))
    fits = {
        device: quick(cls).fit(
            cells, schema, validation=0, device=device, precision=precision, progress=False
        )
        for device in ("cpu", "cuda")
    }
    ends = {
        device: fitted.history.groupby("phase", sort=False)["train_objective"].last()
        for device, fitted in fits.items()
        if "train_objective" in fitted.history
    }
    if ends:
        known = slice(None, -1 if "time" in cls.needs else None)
        np.testing.assert_allclose(ends["cuda"][known], ends["cpu"][known], rtol=0.05)
    else:
        here, there = (fitted.embed(cells) for fitted in fits.values())
        np.testing.assert_allclose(there, here, rtol=1e-3, atol=1e-3 * np.abs(here).max())


def test_the_mode_refuses_what_cuda_would(mode):
    here, there = torch.randn(3, 4), torch.randn(3, 4).to("cuda")
    assert (there + 1).device == there.T[0].device == torch.zeros(2, device=there.device).device
    assert there.cpu().device == here.device == torch.zeros_like(here).device
    assert (there * torch.tensor(2.0)).is_cuda  # a number may be anywhere
    assert there[torch.tensor([0, 1])].is_cuda  # and so may positions
    for mixed in (
        lambda: here + there,
        lambda: torch.cat([here, there]),
        lambda: torch.nn.functional.linear(here, there),
        lambda: here[there[0].long()],
        lambda: there.index_add_(0, torch.tensor([0]), there[:1]),
        lambda: there.__setitem__(torch.tensor([0]), here[:1]),
    ):
        with pytest.raises(RuntimeError, match="all tensors on one device"):
            mixed()
    with pytest.raises(TypeError, match="becomes numpy"):
        there.numpy()
    layer = torch.nn.Linear(4, 2).to("cuda")
    gradient = torch.autograd.grad(layer(there).sum(), list(layer.parameters()))
    assert all(g.is_cuda for g in gradient)
