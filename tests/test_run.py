"""How to compute: one object for fits, verbs and benches, or its fields one by one."""

from __future__ import annotations

import inspect

import numpy as np
import pytest
import torch

import chreode as ch
from chreode.compute.device import choose_device
from chreode.module import CAPABILITIES

MODEL = ch.SCVI(max_epochs=1, n_hidden=8, n_latent=3)


@pytest.fixture(scope="module")
def fitted(_simulated):
    return MODEL.fit(_simulated.copy(), ch.Schema(counts="layers/counts"), progress=False)


def test_fields_one_by_one_are_the_same_as_a_run(cells):
    schema = ch.Schema(counts="layers/counts")
    one = MODEL.fit(cells, schema, run=ch.Run(progress=False, device="cpu"))
    other = MODEL.fit(cells, schema, progress=False, device="cpu")
    np.testing.assert_array_equal(one.embed(cells), other.embed(cells, run=ch.Run(device="cpu")))


def test_a_field_wins_over_the_run(cells):
    fitted = MODEL.fit(
        cells, ch.Schema(counts="layers/counts"), run=ch.Run(precision="bf16"), precision="fp32"
    )
    assert fitted.provenance["precision"] == "fp32"


@pytest.mark.parametrize("name", ["sed", "devise", "progres"])
def test_a_wrong_name_is_refused_with_the_right_one(cells, fitted, name):
    right = {"sed": "seed", "devise": "device", "progres": "progress"}[name]
    with pytest.raises(ch.ArgumentError, match=f"no argument '{name}'. Did you mean '{right}'"):
        MODEL.fit(cells, ch.Schema(counts="layers/counts"), **{name: 1})
    if name != "sed":
        with pytest.raises(ch.ArgumentError, match=f"Did you mean '{right}'"):
            fitted.embed(cells, **{name: 1})


def test_wrong_values_are_refused_before_any_work(cells, fitted):
    for wrong in ({"threads": 0}, {"precision": "fp16"}, {"progress": "yes"}):
        with pytest.raises(ch.ConfigError, match=next(iter(wrong))):
            ch.Run(**wrong)
        with pytest.raises(ch.ConfigError, match=next(iter(wrong))):
            fitted.score(cells, **wrong)
    with pytest.raises(ch.ConfigError, match="device='tpu'"):
        fitted.embed(cells, device="tpu")


@pytest.mark.parametrize(
    ("device", "last"), [("cuda:2", "cuda:0 to cuda:1"), ("cuda:x", "cuda:0"), ("cpu:1", "cpu:0")]
)
def test_a_card_that_is_not_there_is_refused(cells, monkeypatch, device, last):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ch.ConfigError, match=f"there is {last}"):
        choose_device(device, double=False)
    assert choose_device("cuda:1", double=False) == "cuda:1"


def test_threads_hold_for_the_call_alone(cells, fitted, monkeypatch):
    before, seen = torch.get_num_threads(), []
    plain = type(fitted.module).embed
    monkeypatch.setattr(
        type(fitted.module),
        "embed",
        lambda *args: (seen.append(torch.get_num_threads()), plain(*args))[1],
    )
    fitted.embed(cells, threads=before + 1)
    assert set(seen) == {before + 1}
    assert torch.get_num_threads() == before
    there = MODEL.fit(cells, ch.Schema(counts="layers/counts"), threads=before + 1)
    assert there.provenance["threads"] == before + 1
    assert torch.get_num_threads() == before


@pytest.mark.parametrize("verb", CAPABILITIES)
def test_every_verb_that_computes_takes_a_run(verb):
    known = inspect.signature(getattr(ch.Fitted, verb)).parameters
    assert ("run" in known) == (verb != "loadings")
    assert ("settings" in known) == ("run" in known)


@pytest.mark.slow
def test_benches_take_a_run(cells):
    roles = ch.Schema(counts="layers/counts", batch="obs/batch", label="obs/cell_type")
    how = {"seeds": (0,), "metrics": ["silhouette_label"]}
    one = ch.bench.integration(cells, roles, [ch.PPCA()], run=ch.Run(progress=False), **how)
    other = ch.bench.integration(cells, roles, [ch.PPCA()], progress=False, **how)
    assert one.scores.equals(other.scores)
    with pytest.raises(ch.ArgumentError, match="Did you mean 'seeds'"):
        ch.bench.generation(cells, roles, seds=(0,))


def test_what_lacks_is_named_beside_settings_that_are_there(cells, schema):
    with pytest.raises(ch.ArgumentError, match="integration needs methods"):
        ch.bench.integration(cells, schema, progress=False)
    with pytest.raises(ch.ArgumentError, match="no argument 'progres'. Did you mean 'progress'"):
        ch.bench.integration(cells, schema, progres=False)
