"""Every model in a process that is not its own: folders and settings of the user's stay as they are."""

from __future__ import annotations

import copy
import os
import pickle
import subprocess
import sys
import threading
from contextlib import ExitStack, contextmanager

import numpy as np
import pytest
import torch
from conformance.test_every_model import needed

import chreode as ch
from chreode import errors, models, store
from chreode.learn.phase import forget

#: Models whose code the fast tests run; the others' is the same in what is tested here.
FAST = ("factoranalysis", "nmf", "pca", "ppca", "scvi", "vae")
KEYS = [pytest.param(key, marks=[] if key in FAST else pytest.mark.slow) for key in models.keys()]  # noqa: SIM118


@pytest.fixture(params=KEYS)
def model(request, quick):
    return quick(models.find(request.param))


@pytest.fixture
def roles(model, schema):
    """Return the roles of the simulated cells that the model needs."""
    return schema.with_(**needed(type(model)))


def tree(folder):
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def test_nothing_is_removed_but_the_states_that_a_fit_has_kept(model, roles, cells, tmp_path):
    gradients = any(phase.learner.validates for phase in model.phases())
    state, theirs = tmp_path / "state", ["phase9.safetensors", "sub/phase0.safetensors", "thesis"]
    if not gradients:
        theirs.append("phase0.safetensors")
    for name in theirs:
        (state / name).parent.mkdir(parents=True, exist_ok=True)
        (state / name).write_text("years of work")
    model.fit(cells, roles, checkpoint=state)
    assert (tree(state) != sorted(theirs)) == gradients
    forget(state, model.phases())
    assert tree(state) == sorted(theirs)


# other processes, as those of a pool


def test_a_fit_can_be_sent_and_copied(fitted_once, model, roles, cells):
    fitted, small = fitted_once(type(model), roles), cells[:20].copy()
    assert pickle.loads(pickle.dumps(model)) == copy.deepcopy(model) == model
    for other in (pickle.loads(pickle.dumps(fitted)), copy.deepcopy(fitted)):
        assert same(other, fitted)
        np.testing.assert_array_equal(other.embed(small.copy()), fitted.embed(small.copy()))


def test_every_error_can_be_sent():
    """A pool waits for ever for an answer that it cannot read."""
    kinds = [
        k for k in vars(errors).values() if isinstance(k, type) and issubclass(k, ch.ChreodeError)
    ]
    assert errors.BlowUpError in kinds
    for kind in kinds:
        error = kind(1, 2.0, [3.0], "donor") if kind is errors.BlowUpError else kind("why")
        again = pickle.loads(pickle.dumps(error))
        assert (type(again), str(again), vars(again)) == (kind, str(error), vars(error))


# settings of the process


@contextmanager
def changed(get, put, value):
    before = get()
    put(value)
    try:
        yield
    finally:
        put(before)


SETTINGS = {
    "double precision": lambda: changed(
        torch.get_default_dtype, torch.set_default_dtype, torch.float64
    ),
    "half precision": lambda: changed(
        torch.get_default_dtype, torch.set_default_dtype, torch.bfloat16
    ),
    "another device": lambda: torch.device("meta"),
    "no gradients": torch.no_grad,
    "inference": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "floating-point errors": lambda: np.errstate(all="raise"),
    "products of few bits": lambda: changed(
        torch.get_float32_matmul_precision, torch.set_float32_matmul_precision, "medium"
    ),
    "deterministic algorithms": lambda: changed(
        torch.are_deterministic_algorithms_enabled, torch.use_deterministic_algorithms, True
    ),
}


def under(names):
    stack = ExitStack()
    for name in names:
        stack.enter_context(SETTINGS[name]())
    return stack


def same(fitted, other):
    return store.digest(fitted.module.state_dict(), "") == store.digest(
        other.module.state_dict(), ""
    )


def generators():
    numpy_state = np.random.get_state()[1].copy()  # noqa: NPY002
    return torch.get_rng_state(), numpy_state


def equal(one, other):
    return torch.equal(one[0], other[0]) and np.array_equal(one[1], other[1])


@pytest.mark.parametrize("double", [True, False])
def test_settings_around_a_call_change_nothing(model, roles, cells, tmp_path, double):
    if not double and model.key not in ("scvi", "pca"):
        pytest.skip("once is enough: what is set is set for all")
    small, before = cells[:150, :50].copy(), generators()
    plain = model.fit(small, roles)
    verbs = [v for v in ("embed", "generate", "score", "loadings") if v in plain.verbs]
    told = {verb: ask(plain, verb, small) for verb in verbs}
    with under(set(SETTINGS) - {"half precision" if double else "double precision"}):
        odd = model.fit(small, roles)
        again = ch.load(odd.save(tmp_path / "model"))
        found = {verb: ask(again, verb, small) for verb in verbs}
        assert torch.get_default_dtype() == (torch.float64 if double else torch.bfloat16)
    assert same(odd, plain)
    assert same(again, plain)
    for verb in verbs:
        np.testing.assert_array_equal(found[verb], told[verb])
    if any(phase.learner.validates for phase in model.phases()):
        model.fit(small, roles, from_=again)  # what was loaded under inference can learn
    assert equal(generators(), before)
    assert torch.get_default_dtype() == torch.float32


def ask(fitted, verb, cells):
    if verb == "generate":
        made = fitted.generate(5, seed=1)
        return made.X.toarray() if hasattr(made.X, "toarray") else made.X
    if verb == "score":
        return fitted.score(cells.copy())
    return fitted.embed(cells.copy()) if verb == "embed" else fitted.loadings().to_numpy()


@pytest.mark.parametrize("there", ["ieee", "bf16"])
def test_bits_of_products_are_the_users_again(cells, schema, there):
    """However they were set; torch itself cannot say how, where both of its ways were gone."""
    products = torch.backends.mkldnn.matmul
    plain = ch.PCA(n_latent=3).fit(cells, schema).embed(cells)
    with changed(lambda: "ieee", lambda bits: setattr(products, "fp32_precision", bits), there):
        fitted = ch.PCA(n_latent=3).fit(cells, schema)
        np.testing.assert_array_equal(fitted.embed(cells), plain)
        assert products.fp32_precision == there


def test_what_follows_a_setting_of_the_users_still_follows_it(cells, schema):
    """It had been set for itself, so that to take the setting back changed nothing."""
    products = torch.backends.mkldnn.matmul
    products.fp32_precision = "none"
    try:
        torch.backends.fp32_precision = "bf16"
        ch.PCA(n_latent=3).fit(cells, schema)
        assert products.fp32_precision == "bf16"
    finally:
        torch.backends.fp32_precision = "none"
    assert products.fp32_precision == "none"


@pytest.mark.slow
def test_fits_at_once_in_several_threads_are_those_of_one(schema, cells, quick):
    """Each has the numbers of a fit alone, and the generators of the process stay as they were."""
    keys = ("scvi", "vae", "nmf", "neuralode", "scvi")
    todo = [quick(models.find(key)) for key in keys]
    small = cells[:150, :50].copy()

    def fit(model):
        roles = schema.with_(**needed(type(model)))
        fitted = model.fit(small.copy(), roles, progress=False)
        return fitted, fitted.embed(small.copy())

    alone = [fit(model) for model in todo]
    before, together = generators(), {}
    threads = [
        threading.Thread(target=lambda i=i: together.update({i: fit(todo[i])}))
        for i in range(len(todo))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert equal(generators(), before)
    for number, (fitted, z) in enumerate(alone):
        assert same(together[number][0], fitted), keys[number]
        assert np.array_equal(together[number][1], z)


FORK = """
import os, sys, signal
import torch
import chreode as ch
torch.set_num_threads(2)
cells = ch.simulate.simulate_cells(300, 400, n_batches=2, seed=0)
roles = ch.Schema(counts="X", batch="obs/batch")
model = ch.SCVI(max_epochs=1)
model.fit(cells, roles, progress=False)
child = os.fork()
if child == 0:
    signal.alarm(60)  # ends it if it hangs
    try:
        fitted = model.fit(cells, roles, progress=False)
        fitted.embed(cells)
        print(fitted.provenance["threads"], flush=True)
        os._exit(0)
    finally:
        os._exit(1)
assert os.waitpid(child, 0)[1] == 0, "it hangs"
print(model.fit(cells, roles, progress=False).provenance["threads"])
"""


DURING = """
import os, threading
import torch
from chreode.compute.settings import settled
torch.set_default_dtype(torch.float64)
inside, end = threading.Event(), threading.Event()
@settled()
def other():
    inside.set()
    end.wait()
thread = threading.Thread(target=other)

def kept(inner):
    if os.fork() == 0:
        print(torch.get_default_dtype(), torch.is_grad_enabled(), flush=True)
        with settled():
            print(torch.get_default_dtype(), flush=True)
        inner()
        print(torch.get_default_dtype(), flush=True)
        os._exit(0)
    assert os.wait()[1] == 0

thread.start()
inside.wait()
kept(lambda: None)
stack = settled()
with stack:
    kept(lambda: stack.__exit__(None, None, None))
end.set()
thread.join()
print(torch.get_default_dtype())
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_a_process_that_is_forked_during_a_call_in_another_thread_has_the_users_settings():
    command = [sys.executable, "-W", "ignore", "-c", DURING]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    # the call of the other thread ended with the fork; that of the thread that forks has not
    assert done.stdout.splitlines() == [
        "torch.float64 True", "torch.float32", "torch.float64",
        "torch.float32 True", "torch.float32", "torch.float64",
        "torch.float64",
    ]  # fmt: skip


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_a_process_that_is_forked_after_a_fit_with_two_threads_can_fit():
    command, two = [sys.executable, "-c", FORK], {**os.environ, "OMP_NUM_THREADS": "2"}
    done = subprocess.run(command, env=two, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["1", "2"]
