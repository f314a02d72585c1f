"""A damaged or forged model folder is refused as such, or is the model that was saved."""

from __future__ import annotations

import contextlib
import json
import math
import shutil
import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch
from fuzz.common import JSON, examples
from hypothesis import event, given
from hypothesis import strategies as st
from safetensors.torch import save

import chreode as ch
from chreode import store
from chreode.fitted import FILES, seal

READ = FILES[:3]
#: Values that are wrong nearly everywhere.
ABSURD = JSON | st.sampled_from(
    [math.nan, math.inf, -math.inf, 10**18, -(10**9), "../../etc/passwd", "os", {}, [], None, True]
)


class Saved:
    """A fitted model and the folder it was saved to."""

    def __init__(self, fitted, folder):
        self.fitted, self.folder = fitted, folder

    def __repr__(self):
        return self.folder.name


@pytest.fixture(scope="module", params=["scvi", "ppca"])
def model(request, _simulated, tmp_path_factory):
    schema = ch.Schema(
        counts="layers/counts", batch="obs/batch", categorical=("obs/plate",),
        continuous=("obs/age",),
    )  # fmt: skip
    small = {"n_hidden": 8} if request.param == "scvi" else {}
    cls = ch.models.find(request.param)
    fitted = cls(max_epochs=2, n_latent=3, **small).fit(_simulated[:, :30].copy(), schema)
    return Saved(fitted, fitted.save(tmp_path_factory.mktemp("models") / request.param))


@pytest.fixture
def folder(model, tmp_path):
    """Return a place for a copy of the folder, which every example makes anew."""
    return tmp_path / "copy"


def copied(model, folder):
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(model.folder, folder)


def refused_or_same(model, folder):
    """Load: nothing but a `StoreError` or the saved model may come of it."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            loaded = ch.load(folder)
        except ch.StoreError:
            event("refused")
            return None
    event("the same model" if same(loaded, model.fitted) else "another model")
    return loaded


def same(a, b):
    state, other = a.module.state_dict(), b.module.state_dict()
    return (
        a.model == b.model and a.schema == b.schema and a.spec == b.spec
        and a.history.equals(b.history) and dict(a.provenance) == dict(b.provenance)
        and state.keys() == other.keys() and all(torch.equal(state[k], other[k]) for k in other)
        and a.statistics.keys() == b.statistics.keys()
        and all(np.array_equal(a.statistics[k], b.statistics[k]) for k in b.statistics)
    )  # fmt: skip


def damage(data, content):
    """Return the bytes of a file as a bad disk, a cut connection or an editor leaves them."""
    at = data.draw(st.integers(0, max(len(content) - 1, 0)), label="at")
    kind = data.draw(st.sampled_from(["flip", "cut", "insert", "zeros", "empty", "double"]))
    if kind == "flip":
        flipped = content[at] ^ (1 << data.draw(st.integers(0, 7)))
        return content[:at] + bytes([flipped]) + content[at + 1 :]
    n = data.draw(st.integers(1, 4096))
    return {
        "cut": content[:at],
        "insert": content[:at] + data.draw(st.binary(min_size=1, max_size=8)) + content[at:],
        "zeros": content[:at] + bytes(len(content[at : at + n])) + content[at + n :],
        "empty": b"",
        "double": content * 2,
    }[kind]


@pytest.mark.slow
@examples(100)
@given(data=st.data(), name=st.sampled_from(READ))
def test_damaged_bytes(model, folder, data, name):
    copied(model, folder)
    (folder / name).write_bytes(damage(data, (folder / name).read_bytes()))
    loaded = refused_or_same(model, folder)
    assert loaded is None or same(loaded, model.fitted)


@examples(50)
@given(
    moves=st.lists(st.tuples(*[st.sampled_from(FILES)] * 2), min_size=1, max_size=4),
    how=st.sampled_from(["delete", "swap", "link", "folder", "outside"]),
)
def test_files_deleted_swapped_or_linked(model, folder, moves, how):
    copied(model, folder)
    for one, other in moves:
        a, b = folder / one, folder / other
        if how == "swap" and a.is_file() and b.is_file():
            (
                a.rename(folder / "third"),
                b.rename(a) if a != b else None,
                (folder / "third").rename(b),
            )
        elif a.is_file() or a.is_symlink():
            a.unlink()
            if how == "link":
                a.symlink_to(b)
            elif how == "outside":
                a.symlink_to(model.folder / one)
            elif how == "folder":
                a.mkdir()
    loaded = refused_or_same(model, folder)
    assert loaded is None or same(loaded, model.fitted)


def places_of(value, path=()):
    """Yield the path of everything inside a JSON value."""
    yield path
    if isinstance(value, (dict, list)):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from places_of(inner, (*path, key))


def changed(data, info, hows=("set", "set", "remove", "add")):
    """Change, remove or add one thing anywhere in a description."""
    info = json.loads(json.dumps(info))
    *path, last = data.draw(st.sampled_from(list(places_of(info))[1:]), label="place")
    inner = info
    for key in path:
        inner = inner[key]
    how = data.draw(st.sampled_from(hows))
    if how == "remove":
        del inner[last]
    elif how == "add" and isinstance(inner, dict):
        inner[data.draw(st.text(max_size=5) | st.sampled_from(list(inner)))] = data.draw(ABSURD)
    else:
        inner[last] = data.draw(ABSURD)
    return info


@pytest.mark.slow
@examples(150)
@given(data=st.data(), forged=st.booleans())
def test_absurd_descriptions(model, folder, data, forged):
    copied(model, folder)
    description = folder / "model.json"
    before = json.loads(description.read_text())
    info = before
    for _ in range(data.draw(st.integers(1, 3))):
        info = changed(data, info)
    if forged and isinstance(info, dict):
        info["sha256"] = seal({k: v for k, v in info.items() if k != "sha256"})
    description.write_text(json.dumps(info))
    loaded = refused_or_same(model, folder)
    if loaded is not None and not same(loaded, model.fitted):
        assert forged  # whoever signs anew can say other things, but none that breaks a verb
        usable(loaded)


def usable(loaded):
    """Ask every question that needs no data: an answer, or an error of ours."""
    assert repr(loaded)
    assert loaded.card()
    with contextlib.suppress(ch.ChreodeError):
        loaded.generate(3, seed=0)


TENSORS = st.sampled_from(
    [
        lambda t: t.double(), lambda t: t.half(), lambda t: t.bool(), lambda t: t.long(),
        lambda t: t[:-1], lambda t: t[None], lambda t: t.reshape(-1), lambda t: t.new_zeros(0),
        lambda t: t.new_zeros(()), lambda t: t + 1000, lambda t: -t - 5, lambda t: t * torch.nan,
        lambda t: None,
    ]
)  # fmt: skip


@pytest.mark.slow
@examples(100)
@given(data=st.data())
def test_forged_tensors(model, folder, data):
    """Wrong shapes, types and codes, with all hashes made to fit."""
    copied(model, folder)
    weights = folder / "weights.safetensors"
    tensors, told = store.read_tensors(weights)
    changes = data.draw(st.dictionaries(st.sampled_from(sorted(tensors)), TENSORS, min_size=1))
    for name, change in changes.items():
        tensor = change(tensors.pop(name)) if tensors[name].ndim else None
        if tensor is not None:
            tensors[data.draw(st.sampled_from([name, name, "../up", "module/../x"]))] = tensor
    sign(folder, lambda: store.write_tensors(weights, tensors, told))
    loaded = refused_or_same(model, folder)
    if loaded is not None and not any(name.startswith("module/") for name in changes):
        usable(loaded)


def full(value, dtype=None):
    return lambda t: torch.full_like(t, value, dtype=dtype)


#: What a description says that its weights, or the cells it learned from, are not: (in JSON, in tensors).
FORGED = {
    "no place": (lambda info: info["schema"].pop("counts"), {}),
    "fewer roles": (lambda info: info["spec"].update(roles=["counts"]), {}),
    "more roles": (lambda info: info["spec"]["roles"].append("protein"), {}),
    "scale": (lambda info: info["spec"]["numbers"].update(age=[0.0, 5e-324]), {}),
    "another statistic": (None, {"label": lambda _: torch.zeros(1, dtype=torch.int64)}),
    "number": (None, {"continuous": full(1e308)}),
    "no batch": (None, {"batch": full(-1)}),
    "weights": (None, {"cells": full(1e308)}),
}


@pytest.mark.parametrize("what", FORGED)
def test_what_a_sealed_model_cannot_answer_from_is_refused(model, folder, what):
    if model.fitted.model.key == "ppca":
        pytest.skip("it reads counts alone")
    copied(model, folder)
    describe, change = FORGED[what]
    if describe:
        info = json.loads((folder / "model.json").read_text())
        describe(info)
        info["provenance"]["spec"] = ch.schema.Spec.from_dict(info["spec"]).hash
        (folder / "model.json").write_text(json.dumps(info))
    weights = folder / "weights.safetensors"
    tensors, told = store.read_tensors(weights)
    for name, made in change.items():
        tensors[f"statistics/{name}"] = made(tensors.get(f"statistics/{name}"))
    sign(folder, lambda: store.write_tensors(weights, tensors, told))
    with pytest.raises(ch.StoreError):
        ch.load(folder)


def test_weights_that_lead_nowhere_are_told_when_they_are_asked(model, folder):
    copied(model, folder)
    weights = folder / "weights.safetensors"
    tensors, told = store.read_tensors(weights)
    for name, tensor in tensors.items():
        if name.startswith("module/") and tensor.is_floating_point():
            tensors[name] = tensor * 1e30
    sign(folder, lambda: store.write_tensors(weights, tensors, told))
    usable(ch.load(folder))


@examples(100)
@given(content=st.binary(max_size=64) | st.dictionaries(
    st.text(max_size=5), st.integers(0, 3), max_size=3))  # fmt: skip
def test_other_safetensors(model, folder, content):
    """Files of other writers, and bytes that only look like one."""
    copied(model, folder)
    made = content
    if isinstance(content, dict):
        made = save({k: torch.zeros(n) for k, n in content.items()})
    sign(folder, lambda: (folder / "weights.safetensors").write_bytes(made))
    assert refused_or_same(model, folder) is None


def huge(info, weights):
    """Yield descriptions and weights that promise far more than they hold."""
    for name in ("n_latent", "n_hidden", "n_layers"):
        yield json.dumps(info | {"config": info["config"] | {name: 10**9}}), weights
    blocks = {"batch": [10**9], "plate": [10**9]}
    yield json.dumps(info | {"spec": info["spec"] | {"blocks": blocks}}), weights
    yield "[" * 1_000_000, weights
    yield '{"format":' + "9" * 1_000_000 + "}", weights
    yield '{"format": 1e999}', weights
    for length in (2**63 - 1, 2**40, 100_000_000):
        yield json.dumps(info), length.to_bytes(8, "little") + weights[8:]
    for shape, end in (([10**9, 10**9], 4 * 10**18), ([2**40], 2**42), ([0, 2**62], 0)):
        header = {"a": {"dtype": "F32", "shape": shape, "data_offsets": [0, end]}}
        text = json.dumps(header).encode()
        yield json.dumps(info), len(text).to_bytes(8, "little") + text


@pytest.mark.slow
def test_absurd_sizes_cost_no_memory(model, folder):
    """In a process that may not grow by more than half a gigabyte."""
    copied(model, folder)
    info = json.loads((folder / "model.json").read_text())
    weights = (folder / "weights.safetensors").read_bytes()
    made = []
    for number, (description, content) in enumerate(huge(info, weights)):
        copied(model, folder)
        (folder / "model.json").write_text(description)
        with contextlib.suppress(ValueError, RecursionError, KeyError, TypeError):
            sign(
                folder,
                lambda content=content: (folder / "weights.safetensors").write_bytes(content),
            )
        made.append(shutil.move(folder, folder.with_name(f"absurd{number}")))
    script = """
import resource, sys
import chreode as ch
ch.load(sys.argv[1])  # whatever is imported on the way is no cost of what follows
size = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (size + 2**29,) * 2)
for folder in sys.argv[2:]:
    try:
        ch.load(folder)
    except ch.StoreError:
        print("refused")
"""
    done = subprocess.run(
        [sys.executable, "-c", script, str(model.folder), *made], capture_output=True, text=True
    )
    assert done.stdout.split() == ["refused"] * len(made), done.stderr


def sign(folder, write):
    """Write the weights anew and make the description agree."""
    write()
    weights = folder / "weights.safetensors"
    info = json.loads((folder / "model.json").read_text())
    info["weights"] = {"bytes": weights.stat().st_size, "sha256": store.sha256(weights)}
    info["sha256"] = seal({k: v for k, v in info.items() if k != "sha256"})
    (folder / "model.json").write_text(json.dumps(info))
