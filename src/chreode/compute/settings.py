"""What a process may have set around a call of chreode, and what holds inside it."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch

from . import rng

#: Where products of float32 may have fewer bits, as after `torch.set_float32_matmul_precision`.
_PRODUCTS: tuple[Any, ...] = (
    torch.backends.mkldnn.matmul,  # type: ignore[attr-defined]  # torch makes it at run time
    torch.backends.cuda.matmul,
)
_lock = threading.Lock()
_n_calls = 0  # calls that are under way, in all threads
#: The default type outside of them, and the precision of products that have fewer bits there.
_user_settings: tuple[torch.dtype, dict[Any, str]] = (torch.float32, {})
_threads = 1  # the most that torch had in a call: OpenMP keeps as many


class _PerThread(threading.local):
    calls = 0  # that are under way, in this thread


_this_thread = _PerThread()


@contextmanager
def settled() -> Iterator[None]:
    """Compute as documented, whatever is set around; a decorator of all that users call.

    Tensors are made in float32 and on the CPU, with gradients, outside of any autocast; products have all
    of its bits; NumPy warns of what it cannot compute. The default type and the bits of products are the
    process's and not the thread's: other threads see ours too for as long as a call is under way in any.
    """
    global _threads
    _threads = max(_threads, torch.get_num_threads())
    with ExitStack() as inside:
        inside.enter_context(_single_precision())
        inside.enter_context(np.errstate(all="warn", under="ignore"))
        inside.enter_context(torch.inference_mode(False))
        inside.enter_context(torch.enable_grad())
        for device in ("cpu", "cuda"):
            if torch.is_autocast_enabled(device):
                inside.enter_context(torch.autocast(device, enabled=False))
        if torch.get_default_device().type != "cpu":  # else it would cost time at every operation
            inside.enter_context(torch.device("cpu"))
        yield


@contextmanager
def _single_precision() -> Iterator[None]:
    global _n_calls, _user_settings
    with _lock:
        if _n_calls == 0:
            fewer = [p for p in _PRODUCTS if p.fp32_precision not in ("none", "ieee")]
            _user_settings = torch.get_default_dtype(), {p: _take_precision(p) for p in fewer}
        _n_calls += 1
        _this_thread.calls += 1
        _set(torch.float32, dict.fromkeys(_user_settings[1], "ieee"))
    try:
        yield
    finally:
        with _lock:
            if _n_calls == 1:  # first set, then counted: a fork in between finds it
                _set(*_user_settings)
            _n_calls -= 1
            _this_thread.calls -= 1


def _take_precision(products: Any) -> str:
    """Return and unset what was set for these products alone; "none" where they follow a wider setting."""
    precision: str = products.fp32_precision
    products.fp32_precision = "none"
    return "none" if products.fp32_precision == precision else precision


def _set(kind: torch.dtype, bits: Mapping[Any, str]) -> None:
    torch.set_default_dtype(kind)
    for products, precision in bits.items():
        products.fp32_precision = precision


def _in_child() -> None:
    """Make good what a fork leaves: locks that nobody will release, and threads that are not there.

    Calls under way in them have ended, without restoring the default type. A parallel loop would wait for
    ever for the threads that OpenMP had in the parent. Generators stay as they are: to set one may wait for
    a lock of torch's that nobody will release.
    """
    global _lock, _n_calls
    _lock = threading.Lock()
    if _n_calls and not _this_thread.calls:
        _set(*_user_settings)
    _n_calls = _this_thread.calls
    rng.renew()
    if _threads > 1:
        torch.set_num_threads(1)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)
