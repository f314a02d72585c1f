"""The optional compiled kernel: `kernel.c`, built on first use where there is a C compiler.

In float32 on the CPU it computes what `counts.reference` computes, in less than half the time, and that
is all the difference: without a compiler, or if its results were wrong, the reference serves.
``CHREODE_KERNEL=0`` in the environment turns it off; `available` says whether it is in use, and
the log (level INFO) why not.

The library is kept in ``kernel/`` under ``$CHREODE_CACHE``, else under ``chreode/`` in
``$XDG_CACHE_HOME`` or ``~/.cache``, in a file named by a hash of source, compiler, flags and instruction set.
"""

from __future__ import annotations

import ctypes
import hashlib
import itertools
import logging
import os
import platform
import shlex
import signal
import stat
import subprocess
import tempfile
import threading
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from .. import store
from ..data.batch import SparseRows
from ..distributions import NegativeBinomial, ZeroInflatedNegativeBinomial
from ..errors import DataError, StoreError

log = logging.getLogger(__name__)

_SOURCE = Path(__file__).with_suffix(".c")
_NATIVE = "-mcpu=native" if platform.machine() in ("arm64", "aarch64") else "-march=native"
_FLAGS = [
    "-O3", _NATIVE, "-std=gnu11", "-fPIC", "-shared", "-fopenmp-simd",
    "-fno-math-errno", "-fno-trapping-math", "-fno-signed-zeros",
]  # fmt: skip
#: Seconds that a compiler may take to give its version, and to compile.
_PATIENCE = (5, 10)
#: What a machine may do to those who would compile; none of it ends a fit. `Path.home` raises RuntimeErrors.
_FAILURES = (
    OSError,
    ValueError,
    RuntimeError,
    AttributeError,
    ArithmeticError,
    subprocess.SubprocessError,
)
_ROWS, _BLOCKS = 10, 16  # as in the source
_this_thread = threading.local()
_ALONE = 4  # threads of torch that one thread of the kernel replaces


def available() -> bool:
    """Return whether the kernel is in use; the first call may build it, which takes a second."""
    return os.environ.get("CHREODE_KERNEL") != "0" and _library() is not None


def name() -> str:
    """Return what distinguishes this kernel from others: its bits depend on compiler, flags and processor."""
    library = _library()
    return Path(library._name).stem.partition("-")[0] if library else ""


def used() -> str:
    """Return the `name` of the kernel if this thread has computed with it since `count_anew`, else ""."""
    return name() if getattr(_this_thread, "served", False) else ""


def count_anew(*, served: bool = False) -> None:
    """Forget what this thread has computed; a fit that is gone on from may have `served` before."""
    _this_thread.served = served


def serves(logits: Float[Tensor, "b g"]) -> bool:
    """Return whether the kernel is the way to compute with such a tensor."""
    return logits.device.type == "cpu" and logits.dtype == torch.float32 and available()


def log_likelihood(
    x: SparseRows, weights: Float[Tensor, " b"], *parameters: Tensor | None
) -> tuple[Float[Tensor, " b"], tuple[Tensor | None, ...]]:
    """Return log-likelihoods, and the gradient of their sum weighted by `weights`.

    Parameters and gradients are, in this order, by logits, log library, log θ, with extra zeros dropout
    logits (else None), and where θ rises with the frequency the log of its rise (else None):
    contiguous, float32 and of the shapes that `counts` checks.
    """
    library, _this_thread.served = _library(), True
    assert library is not None
    return _call(library, x, weights, *parameters)


def _call(
    library: ctypes.CDLL, x: SparseRows, weights: Float[Tensor, " b"], *parameters: Tensor | None
) -> tuple[Float[Tensor, " b"], tuple[Tensor | None, ...]]:
    logits, log_theta = parameters[0], parameters[2]
    assert logits is not None
    assert log_theta is not None
    b, g = logits.shape
    threads = min(torch.get_num_threads(), _BLOCKS)
    scratch = logits.new_empty(_ROWS * threads + 3 + 2 * _BLOCKS, g)
    ll = logits.new_empty(b)
    gradients = [None if p is None else torch.empty_like(p) for p in parameters]
    counts = [x.indptr.long(), x.columns.long(), x.values.float(), weights]
    inputs = [*(t.contiguous() for t in counts), *parameters]
    pointers = (None if t is None else t.data_ptr() for t in (*inputs, scratch, ll, *gradients))
    if library.chreode_counts(threads, b, g, len(log_theta), *pointers):
        raise DataError(f"Columns of sparse rows must differ and lie between 0 and {g - 1}.")
    return ll, tuple(gradients)


@cache
def _library() -> ctypes.CDLL | None:
    """Load the kernel, after building it if it is not in the cache; None where that fails, whatever for."""
    try:
        compiler = shlex.split(os.environ.get("CC") or "cc")
        # version and instruction set, as this processor has it: the compiler's predefined macros
        macros = _run(*compiler, _NATIVE, "-dM", "-E", "-x", "c", os.devnull, seconds=_PATIENCE[0])
        folder = _folder()
    except _FAILURES as error:
        log.info("no compiled kernel: %s", error)
        return None
    for threading_ in _threading():
        command = [*compiler, *_FLAGS, str(_SOURCE), *threading_]
        try:
            parts = [_SOURCE.read_bytes(), macros, shlex.join(command).encode()]
            kind = hashlib.sha256(bytes(0).join(parts)).hexdigest()[:32]
            return _kept(folder, kind) or _built(folder, kind, command)
        except subprocess.TimeoutExpired as error:
            log.warning("no compiled kernel: %s", error)
            return None
        except _FAILURES as error:
            log.info("no compiled kernel by %s: %s", shlex.join(command), error)
    return None


def _kept(folder: Path, kind: str) -> ctypes.CDLL | None:
    """Load a kernel from the cache whose content has the hash in its name, if none but us could write it."""
    for path in sorted(folder.glob(f"{kind}-*.so")):
        status = path.lstat()
        ours = (
            stat.S_ISREG(status.st_mode)
            and status.st_uid == os.getuid()
            and not status.st_mode & 0o022
        )
        if ours and path.stem.removeprefix(f"{kind}-") == store.sha256(path)[:32]:
            return _load(path)
        log.info("%s is damaged, or not ours; it is left alone", path)
    return None


def _built(folder: Path, kind: str, command: Sequence[str]) -> ctypes.CDLL:
    """Compile the kernel, see that it computes what it should, and keep it under its kind and hash."""
    with tempfile.TemporaryDirectory(prefix=".building-", dir=folder) as work:
        made = Path(work, "kernel.so")
        _run(*command, "-o", str(made), seconds=_PATIENCE[1])
        made.chmod(0o700)
        _check(_load(made))
        path = folder / f"{kind}-{store.sha256(made)[:32]}.so"
        made.replace(path)
    return _load(path)


def _run(*command: str, seconds: float) -> bytes:
    """Run a compiler, and end it and what it has started where it takes too long."""
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        start_new_session=True,
    ) as running:  # fmt: skip
        try:
            out, err = running.communicate(timeout=seconds)
        except BaseException:
            os.killpg(running.pid, signal.SIGKILL)
            raise
    if running.returncode:
        raise subprocess.CalledProcessError(running.returncode, command, out, err)
    return out


def _folder() -> Path:
    """Make the cache, or refuse one that others could write to: what lies there will be run."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(os.environ.get("CHREODE_CACHE") or Path(home, "chreode"), "kernel").absolute()
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    inside, sticky, public = folder.stat(), 0o1000, 0o002
    above = [parent.stat().st_mode for parent in folder.resolve().parents]
    if inside.st_uid != os.getuid() or inside.st_mode & 0o077:
        raise StoreError(f"{folder} must belong to you alone (chmod 700), for code is run from it.")
    if any(mode & public and not mode & sticky for mode in above):
        raise StoreError(f"{folder} is in a place that everybody can write to.")
    return folder


def _threading() -> list[list[str]]:
    """List what links the OpenMP that torch has loaded, so that there is one pool of threads."""
    home = Path(torch.__file__).parent
    shipped = [*home.glob("lib/libgomp*"), *home.parent.glob("torch.libs/libgomp*")]
    alone: list[list[str]] = [[]] if torch.get_num_threads() <= _ALONE else []
    return [*(["-fopenmp", str(library)] for library in shipped[:1]), *alone]


def _load(path: Path) -> ctypes.CDLL:
    library = ctypes.CDLL(str(path))
    library.chreode_counts.argtypes = [ctypes.c_int64] * 4 + [ctypes.c_void_p] * 16
    library.chreode_counts.restype = ctypes.c_int
    return library


@torch.inference_mode(False)
@torch.enable_grad()
def _check(library: ctypes.CDLL) -> None:
    """Compare with the distributions, in float64; raise ArithmeticError where the kernel is wrong."""
    b, g = 5, 83  # no multiple of a vector
    generator = torch.Generator().manual_seed(0)
    draws = torch.randn(5, b, g, generator=generator)
    weights = torch.rand(b, generator=generator)
    x = SparseRows.of((draws[3] - 1).mul(20).clamp(min=0).round())
    for (rows, rises), extra in itertools.product(
        ((1, False), (b, False), (1, True)), (False, True)
    ):
        parameters: list[Tensor | None] = [draws[0], draws[1, :, :1] + 4, 3 * draws[2, :rows]]
        parameters += [draws[1] if extra else None, 3 * draws[4, :1] if rises else None]
        found, gradients = _call(library, x, weights, *parameters)
        leaves = [None if p is None else p.double().requires_grad_() for p in parameters]
        logits, log_library, log_theta, dropout, log_rise = leaves
        assert logits is not None
        assert log_library is not None
        assert log_theta is not None
        if log_rise is not None:
            log_theta = torch.logaddexp(log_theta, log_rise + logits.log_softmax(1))
        mu, theta = log_library.exp() * logits.softmax(1), log_theta.exp()
        counted: NegativeBinomial | ZeroInflatedNegativeBinomial = NegativeBinomial(mu, theta)
        if dropout is not None:
            counted = ZeroInflatedNegativeBinomial(mu, theta, dropout)
        expected = counted.log_prob(x.dense()).sum(1)
        exact = torch.autograd.grad(
            expected @ weights.double(), [p for p in leaves if p is not None]
        )
        all_mine = [found, *(g for g in gradients if g is not None)]
        for mine, theirs in zip(all_mine, (expected, *exact), strict=True):
            if not torch.allclose(mine.double(), theirs, rtol=1e-4, atol=1e-4):
                raise ArithmeticError("it differs from the reference")
