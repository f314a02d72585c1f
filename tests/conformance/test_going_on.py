"""What every model does with a fit to start from: it goes on, or says what stands in the way."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from conformance.test_every_model import _other_value, needed

import chreode as ch
from chreode import models
from chreode.learn import SGD, Exact

CLASSES = [models.find(key) for key in models.keys()]  # noqa: SIM118 (a function)


@pytest.fixture
def old(fitted_once):
    """Return the fit of a model on the simulated cells, made once, and its schema."""
    roles = {"batch": "obs/batch", "label": "obs/cell_type", "categorical": ("obs/plate",)}

    def fit(cls):
        schema = ch.Schema(
            counts="layers/counts", **{**roles, **needed(cls)}, continuous=("obs/age",)
        )
        return fitted_once(cls, schema), schema

    return fit


def closed(model):
    return all(isinstance(phase.learner, Exact) for phase in model.phases())


def form(model, spec):
    with torch.device("meta"):
        return {name: t.shape for name, t in model.build(spec).state_dict().items()}


@pytest.mark.parametrize("cls", CLASSES)
def test_a_network_of_another_form_is_refused_by_option(cls, quick, old, cells):
    first, schema = old(cls)
    others = [(f.name, quick(cls, **_other_value(cls, f)[0])) for f in dataclasses.fields(cls)]
    same = form(first.model, first.spec)
    of_other_form = {
        name: model
        for name, model in others
        if not closed(model) and (form(model, first.spec) != same or name in cls.rescores)
    }  # the same shapes may be of another likelihood
    assert of_other_form or closed(first.model) or "time" in cls.needs
    for name, other in of_other_form.items():
        with pytest.raises(ch.ConfigError, match=rf"another form.*\b{name} \("):
            other.fit(cells, schema, from_=first)


@pytest.mark.parametrize("cls", CLASSES)
def test_other_roles_are_refused_by_name(cls, old, cells):
    first, schema = old(cls)
    if closed(first.model):
        with pytest.raises(ch.ConfigError, match="closed form"):
            first.model.fit(cells, schema, from_=first)
        return
    for role in ("batch", "label", "categorical", "continuous"):
        if role in first.model.uses:
            without = schema.with_(**{role: () if role in ("categorical", "continuous") else None})
            with pytest.raises(
                ch.ConfigError, match=f"from_ reads {role}, which this fit does not"
            ):
                first.model.fit(cells, without, from_=first)
    if "categorical" in first.model.uses:
        swapped = schema.with_(categorical=("obs/donor",))
        with pytest.raises(ch.ConfigError, match="covariates plate; this fit has donor"):
            first.model.fit(cells, swapped, from_=first)


def test_a_role_that_is_new_is_refused_and_so_is_no_fit(cells, schema):
    bare = ch.Schema(counts="layers/counts")
    first = ch.SCVI(max_epochs=1, n_hidden=8).fit(cells, bare)
    cells.obs["size"] = 1.0
    for more in ({"batch": "obs/batch"}, {"size_factor": "obs/size"}):
        with pytest.raises(ch.ConfigError, match=f"this fit reads {next(iter(more))}"):
            first.model.fit(cells, bare.with_(**more), from_=first)
    with pytest.raises(ch.ConfigError, match="as ch.load returns"):
        first.model.fit(cells, bare, from_="runs/scvi")


@pytest.mark.parametrize(
    "cls",
    [c for c in CLASSES if any(isinstance(p.learner, SGD) for p in c().phases())],
)
def test_a_fit_that_goes_on_learns_every_weight(cls, quick, old, cells):
    first, schema = old(cls)
    lr = {"lr": 0.01} | ({"flow_lr": 0.01} if cls.__name__ == "CFGen" else {})
    model = quick(cls, **lr)
    spec, before = first.spec, first.module.state_dict()
    more = model.fit(cells, schema, from_=first)
    assert more.spec.blocks == spec.blocks
    gradients = {name for name, p in model.build(spec).named_parameters() if p.requires_grad}
    still = [
        n for n, v in more.module.state_dict().items() if n in gradients and v.equal(before[n])
    ]
    # but for a vector for a modality that every cell has, and for what was pruned
    assert not [n for n in still if "missing" not in n and before[n].any()]


def test_what_a_model_keeps_still_does_not_stop_the_rest():
    """Dropout and batch norm learn beside a frozen part, which is frozen afterwards too."""
    from chreode.config import config, param
    from chreode.data.sampler import Shuffled
    from chreode.learn import Phase
    from chreode.model import Model
    from chreode.module import Loss, Module

    class Distilled(Module):
        def __init__(self, n, *, frozen):
            super().__init__()
            self.online = torch.nn.Sequential(torch.nn.Linear(n, 8), torch.nn.BatchNorm1d(8))
            self.target = torch.nn.Linear(n, 8).requires_grad_(not frozen)

        def loss(self, batch, step):
            x = batch.log_expression()
            return Loss({"model": (self.online(x) - self.target(x).detach()).square().mean()})

        def embed(self, batch):
            return self.online(batch.log_expression())

    @config
    class Toy(Model):
        """A toy."""

        needs = ("counts",)
        frozen: bool = param(True, "Keep the target still.")

        def build(self, spec):
            return Distilled(spec.n_features("counts"), frozen=self.frozen)

        def phases(self):
            return [Phase(SGD(lr=1e-3, max_epochs=2), data=Shuffled(50))]

    cells = ch.simulate.simulate_cells(100, 20, seed=0)
    for frozen in (True, False):
        first = Toy(frozen=frozen).fit(cells, ch.Schema(counts="layers/counts"))
        again = Toy(frozen=frozen).fit(cells, ch.Schema(counts="layers/counts"), from_=first)
        for n, module in ((4, first.module), (8, again.module)):
            assert int(module.online[1].num_batches_tracked) == n
            assert module.target.weight.requires_grad is not frozen
