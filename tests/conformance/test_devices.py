"""Every model learns on another device than the CPU, where none is: see `conformance.devices`."""

from __future__ import annotations

import mudata
import numpy as np
import pytest
import torch
from conformance.devices import OtherDevice, is_there
from conformance.test_every_model import over_time

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


@pytest.fixture
def other(monkeypatch):
    """Let ``device="cuda"`` be chosen, and see that it was used."""
    monkeypatch.setattr("chreode.model.choose_device", lambda wish, **_: wish)
    monkeypatch.setattr(counts.compiled, "works", False)  # which needs Triton
    with OtherDevice() as mode:
        yield mode


def fit_there(model, data, schema, mode, **more):
    fitted = model.fit(data, schema, device="cuda", progress=False, **more)
    assert mode.moved
    assert mode.computed > mode.moved
    assert not any(is_there(t) for t in fitted.module.state_dict().values())
    return fitted


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:User provided device_type:UserWarning")
@pytest.mark.parametrize(
    ("cls", "options"),
    [
        pytest.param(cls, options, id=f"{cls.__name__}-{number}")
        for cls in CLASSES
        for number, options in enumerate([{}, *OTHERWISE.get(cls.__name__, [])])
    ],
)
def test_a_fit_mixes_no_devices(cls, options, quick, cells, schema, other):
    few = cells[:120, :40].copy()
    if cls.__name__ == "SCVI" and options.get("likelihood") == "zinb":
        few.obs["size"] = 1.0
    schema = schema.with_(**over_time(cls))
    fitted = fit_there(quick(cls, **options), few, schema, other)
    assert np.isfinite(fitted.embed(few)).all()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:User provided device_type:UserWarning")
@pytest.mark.parametrize("peaks", ["bernoulli", "poisson"])
@pytest.mark.parametrize("lacking", ["some", "none"])
def test_a_fit_of_several_modalities_mixes_no_devices(quick, other, peaks, lacking):
    with mudata.set_options(pull_on_update=False):
        absent = {"atac": ["batch_1"]} if lacking == "some" else None
        data = simulate_multiome(120, 30, 20, n_batches=2, absent=absent, seed=0)
    schema = ch.Schema(counts="rna:X", accessibility="atac:X", batch="obs/batch")
    fit_there(quick(ch.CFGen, hidden=(8, 8), peaks=peaks), data, schema, other)


def test_the_mode_refuses_what_cuda_would(other):
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
