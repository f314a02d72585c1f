"""The generic self-supervised models: what each trick does, and what is lost without it."""

from __future__ import annotations

import dataclasses
import json
import math
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import chreode as ch
from chreode.compute.rng import Rng
from chreode.data.align import open_source
from chreode.data.cells import Cells
from chreode.data.simulate import simulate_cells
from chreode.learn.exact import FitBatches
from chreode.learn.phase import Split
from chreode.losses.sphere import uniformity
from chreode.models import byol, moco, nnclr, simsiam
from chreode.module import Step
from chreode.nn.target import Target

MODELS = [
    ch.SimCLR, ch.MoCo, ch.SimSiam, ch.NNCLR, ch.BYOL, ch.VICReg, ch.BarlowTwins,
    ch.MaskedAutoencoder,
]  # fmt: skip
COMPARING = MODELS[:-1]
COUNTS = ch.Schema(counts="layers/counts")
QUICK = {"max_epochs": 3, "batch_size": 64}


@pytest.fixture(scope="module")
def some():
    """240 cells x 120 genes of four types."""
    return simulate_cells(240, 120, n_types=4, n_batches=2, seed=0)


def batch_of(fitted, cells, rows=None):
    source = open_source(Cells(cells, COUNTS), fitted.spec, ["counts"], {})
    return source.batch(np.arange(cells.n_obs) if rows is None else rows)


def projections(fitted, cells):
    """Return what the loss compares of whole cells, in eval mode."""
    module = fitted.module
    with torch.no_grad():
        return module.network(module.views.plain(batch_of(fitted, cells)))[1]


def watched(monkeypatch, cls, read):
    """Return a list that gets what ``read(module, step)`` returns before and after every `after_step`."""
    plain, log = cls.after_step, []

    def after_step(self, step):
        before = read(self, step)
        plain(self, step)
        log.append((before, read(self, step)))

    monkeypatch.setattr(cls, "after_step", after_step)
    return log


@pytest.mark.parametrize("cls", [byol.BYOLModule, moco.MoCoModule])
def test_the_slow_copy_moves_as_the_momentum_says(some, monkeypatch, cls):
    """The published code of the benchmark never moved it."""

    def read(module, step):
        weights = [dict(part.named_parameters()) for part in (module.network, module.slow.network)]
        return [{k: v.detach().clone() for k, v in w.items()} for w in weights], step.progress

    log = watched(monkeypatch, cls, read)
    model = {byol.BYOLModule: ch.BYOL, moco.MoCoModule: ch.MoCo}[cls]
    fitted = model(**QUICK, momentum=0.9).fit(some, COUNTS, validation=0)
    assert len(log) == 3 * 4
    assert fitted.module.slow.training is False
    for ((online, slow), progress), ((_, after), _) in log:
        m = 1 - 0.1 * (math.cos(math.pi * progress) + 1) / 2
        for name, weight in online.items():
            wanted = m * slow[name] + (1 - m) * weight
            np.testing.assert_allclose(after[name], wanted, rtol=1e-5, atol=1e-7)
    (_, start), _ = log[0][0]
    (_, end), _ = log[-1][1]
    # a bias before a batch norm has no gradient
    moved = [(end[name] - start[name]).abs().max() for name in start if start[name].ndim == 2]
    assert min(moved) > 1e-4
    momenta = [1 - 0.1 * (math.cos(math.pi * p) + 1) / 2 for (_, p), _ in log]
    assert momenta[0] == pytest.approx(0.9)
    assert 0.99 < momenta[-1] < 1


def test_a_slow_copy_that_is_held_still_is_another_model(some, monkeypatch):
    moving = ch.BYOL(**QUICK).fit(some, COUNTS)
    monkeypatch.setattr(Target, "follow", lambda *_: None)
    frozen = ch.BYOL(**QUICK).fit(some, COUNTS)
    with Rng(0).scope("init"):
        start = ch.BYOL(**QUICK).build(frozen.spec)
    for name, weight in frozen.module.slow.named_parameters():
        assert torch.equal(weight, start.get_parameter(f"slow.{name}"))
    assert not np.array_equal(moving.embed(some), frozen.embed(some))


@pytest.mark.parametrize(("cls", "part"), [("MoCo", "queue"), ("NNCLR", "bank")])
def test_the_queue_holds_the_last_keys_of_length_1(some, monkeypatch, cls, part):
    of = {"MoCo": moco.MoCoModule, "NNCLR": nnclr.NNCLRModule}[cls]
    log = watched(monkeypatch, of, lambda module, step: step.outputs["keys"].clone())
    module = getattr(ch, cls)(**QUICK).fit(some, COUNTS, validation=0).module
    queue, keys = getattr(module, part), torch.cat([k for k, _ in log])
    assert queue.used == 120  # half of the cells
    assert len(keys) == 3 * 240
    assert torch.equal(torch.roll(queue.held, -int(queue.at), 0), keys[-120:])
    assert keys.norm(dim=1).sub(1).abs().max() < 1e-5


def test_keys_of_moco_are_those_of_the_slow_copy_without_a_gradient(some):
    fitted = ch.MoCo(**QUICK, augment=()).fit(some, COUNTS, validation=0)
    module, batch = fitted.module, batch_of(fitted, some)
    view = module.views.plain(batch)
    loss = module.loss(batch, Step(Rng(0), 0, 0.0))
    slow, online = module.slow.network(view)[1], module.network(view)[1]
    assert torch.equal(loss.outputs["keys"], F.normalize(slow, dim=1))
    assert (F.normalize(online, dim=1) - loss.outputs["keys"]).abs().max() > 1e-4
    loss.objectives["model"].backward()
    assert all(p.grad is None for p in module.slow.parameters())
    assert all(p.grad is not None for p in module.network.parameters())


@pytest.mark.usefixtures("without_types")
@pytest.mark.slow
def test_without_earlier_keys_moco_does_not_spread_cells(some, monkeypatch):
    """Negatives that are random directions push nothing apart: uniformity of projections tells."""
    options = {"max_epochs": 30, "batch_size": 64, "lr": 3e-3}
    fitted = ch.MoCo(**options).fit(some, COUNTS)
    spread_out = uniformity(projections(fitted, some))
    monkeypatch.setattr(
        moco.Queue,
        "push",
        lambda self, _: self.keys.copy_(F.normalize(torch.randn_like(self.keys))),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it may collapse
        without = ch.MoCo(**options).fit(some, COUNTS)
    assert spread_out < uniformity(projections(without, some)) - 0.5


@pytest.mark.usefixtures("without_types")
@pytest.mark.slow
def test_shuffled_neighbours_teach_nnclr_nothing(some, monkeypatch):
    """The neighbour of some other cell finds its prediction no better than by chance, ln(cells)."""
    options = {"max_epochs": 15, "batch_size": 60, "lr": 3e-3}
    ended = []
    from chreode.losses import nnclr as loss

    plain = loss.nearest
    for shuffled in (False, True):
        if shuffled:
            monkeypatch.setattr(
                loss, "nearest", lambda x, bank: plain(x, bank)[torch.randperm(len(x))]
            )
        history = ch.NNCLR(**options).fit(some, COUNTS, validation=0).history
        ended.append(history["train_objective"].dropna().iloc[-1])
    assert ended[0] < math.log(60) - 0.6
    assert ended[1] > math.log(60) - 0.1


def leaky(found, target):
    """Return the loss with a gradient to its target."""
    return -F.cosine_similarity(found, target, dim=1).mean()


def without_stop_gradient(monkeypatch, model):
    if model is ch.SimSiam:
        monkeypatch.setattr(simsiam, "negative_cosine", leaky)
        return
    monkeypatch.setattr(byol, "negative_cosine", leaky)
    start = byol.BYOLModule.__init__

    def init(self, *args):
        start(self, *args)
        network = self.network
        # the network itself is the target, and learns as such
        monkeypatch.setattr(Target, "forward", lambda _, view: network(view))

    monkeypatch.setattr(byol.BYOLModule, "__init__", init)


@pytest.mark.usefixtures("without_types")
@pytest.mark.slow
@pytest.mark.parametrize("model", [ch.SimSiam, ch.BYOL])
def test_without_stop_gradient_it_collapses_and_says_so(some, monkeypatch, model):
    """Warned of, in the notes and in the report; as shipped it does not."""
    views = ("mask", "noise", "swap", "crossover")
    options = {"max_epochs": 40, "batch_size": 64, "lr": 3e-2, "augment": views}
    sound = model(**options).fit(some, COUNTS)
    assert not any("collapsed" in note for note in sound.provenance["notes"])
    without_stop_gradient(monkeypatch, model)
    with pytest.warns(UserWarning, match="the projections have collapsed"):
        fallen = model(**options).fit(some, COUNTS)
    assert any("projections have collapsed" in note for note in fallen.provenance["notes"])
    report = str(ch.report.fit_sections(fallen)[0])
    assert "The projections have collapsed: cells spread" in report
    spreads, ranks = zip(*(f.module.projected.tolist() for f in (sound, fallen)), strict=True)
    assert ranks[1] < ranks[0] / 2
    assert spreads[1] < 0.2 < 0.7 < spreads[0]
    # and the loss is better, which is why it tells nothing
    ended = [f.history["train_objective"].dropna().iloc[-1] for f in (sound, fallen)]
    assert ended[1] < ended[0] < -0.3


class One(FitBatches):
    """A single minibatch of training cells, and none held out."""

    def __init__(self, batch):
        object.__setattr__(self, "batch", batch)
        object.__setattr__(self, "split", Split(np.arange(len(batch)), np.arange(0)))

    def __call__(self):
        return iter([self.batch])


def test_the_last_batch_norm_does_not_hide_a_collapse(some):
    """It gives each dimension a spread of 1, whatever little is left; all dimensions as one tell."""
    fitted = ch.SimCLR(**QUICK).fit(some, COUNTS)
    module, batch = fitted.module, batch_of(fitted, some)
    assert module.remarks() == []
    with torch.no_grad():
        last = module.network.encoders["counts"].last
        last.weight.copy_(last.weight[:, :1] + 1e-6 * last.weight)
        module.train()
        for _ in range(100):
            module.network(module.views.plain(batch))
        module.eval()
        embedded = module.embed(batch)
        module.solve(One(batch), Rng(0))
    assert embedded.std(0).min() > 0.9
    (note,) = [n for n in module.remarks() if n.startswith("the embedding has collapsed")]
    assert "an effective rank of 1." in note
    assert float(module.rank) < 2


def test_projections_that_are_one_place_are_noted(some):
    module = ch.SimCLR(**QUICK).fit(some, COUNTS).module
    with torch.no_grad():
        module.network.projectors["counts"].last.weight.zero_()
    fitted = ch.SimCLR(**QUICK).fit(some, COUNTS)
    module.solve(One(batch_of(fitted, some)), Rng(0))
    (note,) = module.remarks()
    assert note.startswith("the projections have collapsed: cells spread 0.00")


def by_numpy(h):
    """Return spread and effective rank of rows."""
    unit = h / np.linalg.norm(h, axis=1, keepdims=True)
    shares = np.linalg.svd(h - h.mean(0), compute_uv=False)
    shares = shares[shares > 0] / shares.sum()
    return unit.std(0).mean() * math.sqrt(h.shape[1]), math.exp(-(shares * np.log(shares)).sum())


@pytest.mark.parametrize("cls", MODELS)
def test_spread_and_rank_of_every_epoch_are_those_of_numpy(cls, some):
    fitted = cls(**QUICK, n_latent=7, augment=()).fit(some, COUNTS)
    history = fitted.history[fitted.history["phase"] != "reference"]
    for name in ("spread", "effective_rank"):
        for kind in ("train", "validation"):
            assert history[f"{kind}_{name}"].gt(0).all()
    module, batch = fitted.module, batch_of(fitted, some)
    told = module.loss(batch, Step(Rng(0), 0, 1.0)).terms
    if cls is not ch.MaskedAutoencoder:  # what is seen of its cells is for its coins to say
        wanted = by_numpy(module.embed(batch).detach().double().numpy())
        assert float(told["spread"]) == pytest.approx(wanted[0], rel=1e-4)
        assert float(told["effective_rank"]) == pytest.approx(wanted[1], rel=1e-3)
    rows = np.setdiff1d(np.arange(240), history_rows(fitted, some))
    of_fit = by_numpy(module.embed(batch_of(fitted, some, rows)).detach().double().numpy())
    assert float(module.spread) == pytest.approx(of_fit[0], rel=1e-4)
    assert float(module.rank) == pytest.approx(of_fit[1], rel=1e-3)


def history_rows(fitted, cells):
    """Return the rows that the fit held out."""
    source = open_source(Cells(cells, COUNTS), fitted.spec, ["counts"], {})
    return fitted.model.split(source, np.arange(cells.n_obs), 0.1, Rng(0)).validation


@pytest.mark.slow
@pytest.mark.parametrize("cls", MODELS)
def test_labels_leave_no_trace(cls, some):
    """Nor do batches, as no augmentation mixes them here."""
    schema = COUNTS.with_(label="obs/cell_type", batch="obs/batch")
    other, r = some.copy(), np.random.default_rng(0)
    for column in ("cell_type", "batch"):
        other.obs[column] = r.permutation(other.obs[column].to_numpy())
    assert (other.obs["cell_type"] != some.obs["cell_type"]).mean() > 0.5
    fits = [cls(**QUICK).fit(cells, schema) for cells in (some, other)]
    fits.append(cls(**QUICK).fit(some, COUNTS))
    embedded = [f.embed(some) for f in fits]
    assert np.array_equal(embedded[0], embedded[1])
    assert np.array_equal(embedded[0], embedded[2])


@pytest.mark.parametrize("cls", MODELS)
@pytest.mark.parametrize(
    ("n", "held_out", "kept"), [(10, 0, 0), (11, 0.1, 0), (20, 0.1, 2), (120, [0, 1], 2)]
)
def test_few_cells_and_few_held_out(cls, some, n, held_out, kept):
    """With the default minibatch, larger than the data, and the default queue."""
    fitted = cls(max_epochs=2).fit(some[:n].copy(), COUNTS, validation=held_out)
    if cls is ch.MaskedAutoencoder and n == 11:
        kept = 1  # it compares no cells
    assert fitted.provenance["validation_cells"] == kept
    assert np.isfinite(fitted.embed(some)).all()
    numbers = fitted.history.iloc[:2].drop(columns="phase").to_numpy(dtype=float)
    assert np.isfinite(numbers).all()


@pytest.mark.parametrize("cls", COMPARING)
def test_a_single_cell_is_not_held_out(cls, some):
    with pytest.raises(ch.ConfigError, match="validation names 1 cell, and the loss compares"):
        cls(**QUICK).fit(some, COUNTS, validation=[3])


@pytest.mark.parametrize("cls", [ch.SimCLR, ch.MoCo, ch.NNCLR, ch.VICReg])
def test_no_minibatch_is_of_one_cell(cls, some):
    for n in (10, 11, 13):
        fitted = cls(max_epochs=1, batch_size=3).fit(some[:n].copy(), COUNTS, validation=0)
        assert np.isfinite(fitted.history["train_objective"].iloc[0])
    with pytest.raises(ch.ConfigError, match="batch_size=2.*at least 3"):
        cls(batch_size=2)


@pytest.mark.parametrize("cls", [ch.MoCo, ch.NNCLR])
def test_more_keys_than_cells_are_refused_before_compute(cls, some, monkeypatch):
    monkeypatch.setattr("chreode.model.run_phases", lambda *_: pytest.fail("compute began"))
    with pytest.raises(
        ch.ConfigError, match="queue=241: 240 cells cannot fill a queue of 241 keys"
    ):
        cls(queue=241).fit(some, COUNTS)


@pytest.mark.parametrize("cls", [ch.MoCo, ch.NNCLR])
def test_a_fit_goes_on_with_fewer_or_more_cells(cls, some):
    first = cls(**QUICK).fit(some[:100].copy(), COUNTS)
    for n in (60, 240):
        second = cls(**QUICK).fit(some[:n].copy(), COUNTS, from_=first)
        assert second.spec.n_cells == n
        assert not np.array_equal(second.embed(some), first.embed(some))


@pytest.mark.parametrize("cls", MODELS)
def test_presets_are_those_of_the_benchmark(cls):
    """Constants of scSSL-Bench (arXiv 2506.10031), as its code has them."""
    first, tuned = (cls(preset=name) for name in ("scssl", "scssl-tuned"))
    for model in (first, tuned):
        assert (model.lr, model.weight_decay, model.schedule) == (1e-4, 1e-6, "step")
        assert (model.batch_size, model.max_epochs, model.n_latent) == (256, 100, 64)
        assert (model.n_hidden, model.n_layers, model.chance) == (128, 1, 0.5)
    if cls is ch.MaskedAutoencoder:
        assert (first.augment, first.mask, tuned.augment, tuned.mask) == ((), 0.5, (), 0.5)
        return
    assert (first.mask, first.noise_share, first.swap, first.crossover) == (0.2, 0.8, 0.1, 0.25)
    assert (tuned.mask, tuned.noise_share, tuned.swap, tuned.n_neighbours) == (0.5, 0.3, 0.3, 3)
    own = {
        "SimCLR": ((64, 64), {"temperature": 0.5}),
        "MoCo": ((64, 64), {"temperature": 0.5, "queue": None, "momentum": 0.996}),
        "SimSiam": ((64, 32), {"predictor": 16}),
        "NNCLR": ((64, 64), {"temperature": 0.5, "queue": None}),
        "BYOL": ((256, 64), {"predictor": 256, "momentum": 0.996}),
        "VICReg": ((64, 256), {"invariance": 5, "variance": 5, "covariance": 1}),
        "BarlowTwins": ((256, 256, 256), {"redundancy": 5e-3}),
    }[cls.__name__]
    for model in (first, tuned):
        assert model.projector == own[0]
        assert {name: getattr(model, name) for name in own[1]} == own[1]
    assert cls(preset="scssl", lr=0.1).lr == 0.1


@pytest.mark.parametrize("cls", [ch.SimSiam, ch.NNCLR])
def test_projectors_of_these_end_in_a_batch_norm(cls, some):
    fitted = cls(**QUICK).fit(some, COUNTS)
    head = fitted.module.network.projectors["counts"]
    assert isinstance(head.norm, torch.nn.BatchNorm1d)
    assert not isinstance(fitted.module.predictor.norm, torch.nn.BatchNorm1d)


def test_bad_options_are_refused_with_what_to_do():
    with pytest.raises(ch.ConfigError, match="names 'mask', and this model always masks. Set mask"):
        ch.MaskedAutoencoder(augment=("mask", "noise"))
    for cls in COMPARING:
        with pytest.raises(ch.ConfigError, match="name at least one width"):
            cls(projector=())
    assert "projector" not in {f.name for f in dataclasses.fields(ch.MaskedAutoencoder)}


@pytest.mark.parametrize("cls", [ch.MoCo, ch.BYOL, ch.NNCLR])
def test_what_no_gradient_moves_is_saved(cls, some, tmp_path):
    fitted = cls(**QUICK).fit(some, COUNTS)
    loaded = ch.load(fitted.save(tmp_path / "model"))
    before, after = fitted.module.state_dict(), loaded.module.state_dict()
    assert any(k.startswith(("slow.", "queue.", "bank.")) for k in before)
    assert all(torch.equal(before[k], after[k]) for k in before)
    assert json.loads((tmp_path / "model" / "model.json").read_text())
