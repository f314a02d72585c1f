"""The spike of ADR 2: unlike methods through one contract, in a few lines each, none of them a model yet.

SCVI (a warm-up on the clock) is a real model and tested as one. Here: BYOL (an EMA target), an
adversary (a second player), two phases (a part that learns while another rests), and a factor
model whose cells lack a view.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import chreode as ch
from chreode.config import config, param
from chreode.data.sampler import Balanced, Shuffled
from chreode.data.simulate import simulate_citeseq
from chreode.learn import EM, SGD, Phase, Rng
from chreode.model import Model
from chreode.module import Loss, Module, Player


class BYOLModule(Module):
    """Online and target encoder; the target follows by momentum, not by gradient."""

    def __init__(self, n, z):
        super().__init__()
        self.online = nn.Sequential(nn.Linear(n, 32), nn.ReLU(), nn.Linear(32, z))
        self.target = nn.Sequential(nn.Linear(n, 32), nn.ReLU(), nn.Linear(32, z))
        self.target.load_state_dict(self.online.state_dict())
        self.predictor = nn.Linear(z, z)

    def players(self):
        return {"model": Player([*self.online.parameters(), *self.predictor.parameters()])}

    def loss(self, batch, step):
        x = batch.log_expression()
        one, two = (F.dropout(x, 0.3) for _ in range(2))
        with torch.no_grad():
            goal = self.target(two)
        return Loss({"model": -F.cosine_similarity(self.predictor(self.online(one)), goal).mean()})

    def after_step(self, step):
        momentum = 1 - (1 - 0.9) * (1 - step.progress)
        for slow, fast in zip(self.target.parameters(), self.online.parameters(), strict=True):
            slow.data.lerp_(fast.data, 1 - momentum)

    def embed(self, batch):
        return self.online(batch.log_expression())


@config
class Byol(Model):
    """Toy."""

    needs: ClassVar = ("counts",)
    n_latent: int = param(8, "Dimensions.")

    def build(self, spec):
        return BYOLModule(spec.n_features("counts"), self.n_latent)

    def phases(self):
        return [Phase(SGD(lr=1e-3, max_epochs=5, weight_decay=0.0), data=Balanced(100, "label"))]

    uses: ClassVar = ("label",)


class AdversarialModule(Module):
    """An encoder that hides the batch from a classifier, which is a second player."""

    def __init__(self, n, z, batches, strength):
        super().__init__()
        self.encoder, self.decoder = nn.Linear(n, z), nn.Linear(z, n)
        self.classifier, self.strength = nn.Linear(z, batches), strength

    def players(self):
        own = [*self.encoder.parameters(), *self.decoder.parameters()]
        return {"model": Player(own), "adversary": Player(self.classifier.parameters())}

    def loss(self, batch, step):
        x = batch.log_expression()
        z = self.encoder(x)
        guess = F.cross_entropy(self.classifier(z), batch["batch"])
        error = F.mse_loss(self.decoder(z), x)
        return Loss({"model": error - self.strength * guess, "adversary": guess}, {"error": error})

    def embed(self, batch):
        return self.encoder(batch.log_expression())


@config
class Adversarial(Model):
    """Toy."""

    needs: ClassVar = ("counts", "batch")
    strength: float = param(0.0, "Weight of the adversary.")

    def build(self, spec):
        n, batches = spec.n_features("counts"), len(spec.categories["batch"])
        return AdversarialModule(n, 5, batches, self.strength)

    def phases(self):
        return [Phase(SGD(lr=1e-2, max_epochs=60), data=Shuffled(100))]


class FlowPart(Module):
    """Learns on the latents of an encoder that it can see but does not own."""

    def __init__(self, encoder, z):
        super().__init__()
        self.velocity = nn.Linear(z + 1, z)
        self.register_buffer("scale", torch.ones(()))
        self._seen = (encoder,)  # in a tuple: not a submodule, so not moved, saved or counted twice

    def prepare(self, source, rows, rng):
        with torch.no_grad():
            z = torch.cat([self._seen[0].embed(b) for b in source.batches(rows)])
        self.scale.copy_(z.std())

    def loss(self, batch, step):
        with torch.no_grad():
            z = self._seen[0].embed(batch) / self.scale
        noise, t = torch.randn_like(z), torch.rand(len(z), 1)
        guess = self.velocity(torch.cat([(1 - t) * noise + t * z, t], 1))
        return Loss({"model": F.mse_loss(guess, z - noise)})


class TwoStages(Module):
    """CFGen's shape: an autoencoder, then a flow in its latent space."""

    def __init__(self, n):
        super().__init__()
        self.autoencoder = AdversarialModule(n, 5, 3, 0.0)
        self.flow = FlowPart(self.autoencoder, 5)

    def embed(self, batch):
        return self.autoencoder.embed(batch)


@config
class Staged(Model):
    """Toy."""

    needs: ClassVar = ("counts", "batch")

    def build(self, spec):
        return TwoStages(spec.n_features("counts"))

    def phases(self):
        def stage(part):
            return Phase(SGD(lr=1e-3, max_epochs=3), part=part, data=Shuffled(100), name=part)

        return [stage("autoencoder"), stage("flow")]


class ViewsModule(Module):
    """Factor analysis of several views; a cell without a view is told by the others (isotropic noise)."""

    def __init__(self, widths, k):
        super().__init__()
        self.widths, self.k = widths, k
        for name, n in widths.items():
            key = name.replace(":", "_").replace("/", "_")
            self.register_buffer(f"w_{key}", torch.randn(n, k, dtype=torch.float64))
            self.register_buffer(f"noise_{key}", torch.ones((), dtype=torch.float64))

    def view(self, batch, name):
        key = name.replace(":", "_").replace("/", "_")
        x = torch.log1p(batch[name].double())
        there = batch.present[name].double() if name in batch.present else torch.ones(len(batch))
        return x, there[:, None], getattr(self, f"w_{key}"), getattr(self, f"noise_{key}")

    def posterior_of(self, batch):
        precision = torch.eye(self.k, dtype=torch.float64).expand(len(batch), -1, -1)
        pull = torch.zeros(len(batch), self.k, dtype=torch.float64)
        for name in self.widths:
            x, there, w, noise = self.view(batch, name)
            precision = precision + there[:, :, None] * (w.T @ w / noise)
            pull = pull + there * (x @ w) / noise
        covariance = torch.linalg.inv(precision)
        return torch.einsum("bij,bj->bi", covariance, pull), covariance

    def collect(self, batch):
        mean, covariance = self.posterior_of(batch)
        ll = -0.5 * (mean.square().sum(1) + covariance.diagonal(dim1=1, dim2=2).sum(1))
        ll = ll + 0.5 * torch.logdet(covariance)
        sums = {}
        for name in self.widths:
            x, there, w, noise = self.view(batch, name)
            zz = torch.einsum("bi,bj->bij", mean, mean) + covariance
            error = (x - mean @ w.T).square().sum(1) + torch.einsum(
                "ij,bij->b", w.T @ w, covariance
            )
            n = x.shape[1]
            ll = ll - 0.5 * there[:, 0] * (error / noise + n * torch.log(2 * np.pi * noise))
            sums |= {
                f"zz {name}": (there[:, :, None] * zz).sum(0), f"xz {name}": (there * x).T @ mean,
                f"xx {name}": (there * x.square()).sum(), f"n {name}": there.sum() * n,
            }  # fmt: skip
        return {"log_likelihood": ll.sum() + len(batch) * self.k / 2, **sums}

    def update(self, statistics):
        for name in self.widths:
            key = name.replace(":", "_").replace("/", "_")
            w = torch.linalg.solve(statistics[f"zz {name}"], statistics[f"xz {name}"].T).T
            getattr(self, f"w_{key}").copy_(w)
            left = statistics[f"xx {name}"] - (w * statistics[f"xz {name}"]).sum()
            getattr(self, f"noise_{key}").copy_(left / statistics[f"n {name}"])

    def embed(self, batch):
        return self.posterior_of(batch)[0].float()


@config
class Views(Model):
    """Toy."""

    needs: ClassVar = ("views",)
    tolerates: ClassVar = ("views",)
    partial: ClassVar = True

    def build(self, spec):
        return ViewsModule({name: len(f) for name, f in spec.features.items()}, 4)

    def phases(self):
        return [Phase(EM(max_epochs=40, tol=1e-4))]


def test_an_ema_target_follows_the_encoder_and_takes_no_gradient(cells, schema):
    fitted = Byol().fit(cells, schema)
    start = Byol().build(fitted.spec)
    with Rng(0).scope("init"):
        start = Byol().build(fitted.spec)
    online, target = fitted.module.online[0].weight, fitted.module.target[0].weight
    moved, followed = (
        (online - start.online[0].weight).norm(),
        (target - start.target[0].weight).norm(),
    )
    assert 0 < followed < moved
    assert (online - target).norm() < moved
    assert fitted.embed(cells).shape == (500, 8)


@pytest.mark.slow
def test_an_adversary_and_the_model_pull_apart(cells, schema):
    """The classifier does well against an encoder that helps it, badly against one that hides the batch."""
    helped, fought = (Adversarial(strength=s).fit(cells, schema).history for s in (-1.0, 1.0))
    last = [h["train_adversary_objective"].iloc[-1] for h in (helped, fought)]
    assert last[0] < 0.5 * last[1]
    assert fought["train_error"].iloc[-1] < fought["train_error"].iloc[0]


def test_a_phase_moves_its_own_part_alone(cells, schema):
    fitted = Staged().fit(cells, schema)
    assert fitted.history["phase"].unique().tolist() == ["autoencoder", "flow"]
    names = list(fitted.module.state_dict())
    assert (
        sum("encoder.weight" in n for n in names) == 1
    )  # the flow's view of it is not saved twice


def test_the_resting_part_does_not_change(cells, schema, monkeypatch):
    snapshots = []
    plain = SGD.learn

    def learn(self, module, phase, *rest):
        before = {k: v.clone() for k, v in module.state_dict().items()}
        trace = plain(self, module, phase, *rest)
        changed = {k for k, v in module.state_dict().items() if not torch.equal(v, before[k])}
        snapshots.append((phase.part, changed))
        return trace

    monkeypatch.setattr(SGD, "learn", learn)
    fitted = Staged().fit(cells, schema)
    for part, changed in snapshots:
        assert changed
        assert all(name.startswith(part) for name in changed), part
    assert float(fitted.module.flow.scale) != 1.0


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_cells_that_lack_a_view_are_placed_by_the_others():
    data = simulate_citeseq(
        400, 60, 20, n_types=3, n_batches=3, absent={"adt": ["batch_0"], "rna": ["batch_1"]}, seed=0
    )
    roles = ch.Schema(views=("rna:X", "adt:X"))
    fitted = Views().fit(data, roles)
    z = fitted.embed(data)
    assert z.shape == (400, 4)
    assert np.isfinite(z).all()
    ll = fitted.history["train_log_likelihood"]
    assert (ll.diff().dropna() > -1e-6).all()
    assert ll.iloc[-1] > ll.iloc[0] + 1
