"""Two devices in the memory of one: a mode that says "cuda" of tensors and refuses what CUDA would refuse.

The numbers stay on the CPU. What is moved or made there is marked on its storage, which all views share;
whatever follows from it is there too, and an operation that reads both kinds is an error.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

THERE = torch.device("cuda", 0)
_MOVES = {Tensor.to, Tensor.cpu, Tensor.cuda}
#: Copies from one device to the other.
_COPIES = {
    Tensor.copy_, Tensor.data.__set__, Tensor.set_, torch._has_compatible_shallow_copy_type,
}  # fmt: skip
_READS = {
    Tensor.numpy: "numpy", Tensor.__array__: "an array", torch.utils.dlpack.to_dlpack: "dlpack",
}  # fmt: skip
#: What takes nothing but a size or a type from the other tensor.
_ALIKE = {Tensor.expand_as, Tensor.view_as, Tensor.reshape_as}
_INDEXED = {Tensor.__getitem__, Tensor.__setitem__}


def is_there(tensor: Tensor) -> bool:
    """Return whether a tensor is on the other device."""
    return getattr(_storage(tensor), "there", False)


def _storage(tensor: Tensor) -> Any:
    """Return where the numbers are, also of sparse tensors and of those that `torch.func` wraps."""
    while torch._C._functorch.is_functorch_wrapped_tensor(tensor):
        tensor = torch._C._functorch.get_unwrapped(tensor)
    return (tensor if tensor.layout == torch.strided else tensor.values()).untyped_storage()


def _mark(values: Any, there: bool) -> Any:
    for value in tree_leaves(values):
        if isinstance(value, Tensor):
            _storage(value).there = there
    return values


class OtherDevice(TorchFunctionMode):
    """Where ``device="cuda"`` means another device than the CPU, on any machine."""

    def __init__(self) -> None:
        super().__init__()
        self.moved = 0  # tensors that went there
        self.computed = 0  # operations there

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func == Tensor.device.__get__:
            return THERE if is_there(args[0]) else func(*args)
        if func == Tensor.is_cuda.__get__:
            return is_there(args[0])
        if getattr(func, "__name__", "") == "__get__" and func != Tensor.grad.__get__:
            return func(*args, **kwargs)
        tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        if func in _READS and is_there(args[0]):
            raise TypeError(f"a tensor on cuda becomes {_READS[func]}")
        if func in _MOVES:
            return self._move(func, args, kwargs)
        there = self._place(func, tensors, args)
        wish = kwargs.get("device")
        if wish is not None:
            there = torch.device(wish).type == "cuda"
            kwargs["device"] = "cpu"
        out = func(*args, **kwargs)
        self.computed += there
        if func in _COPIES:  # what is copied into stays where it is
            return out
        return _mark(out, there=True) if there else out

    def _place(self, func: Any, tensors: list[Tensor], args: Any) -> bool:
        """Return whether an operation happens there; refuse one that would happen on both."""
        if func in _COPIES | _ALIKE or not tensors:
            return bool(tensors) and is_there(tensors[0])
        if func in _INDEXED:  # positions may come from the CPU
            first = is_there(tensors[0])
            rest = [t for t in tensors[1:] if first is False or t is args[-1]]
            if func is Tensor.__getitem__ and first:
                rest = []
            self._refuse(func, [tensors[0], *rest])
            return first
        self._refuse(func, tensors)
        return any(map(is_there, tensors))

    def _refuse(self, func: Any, tensors: list[Tensor]) -> None:
        there = any(map(is_there, tensors))
        here = [t for t in tensors if not is_there(t) and t.dim()]  # numbers may be anywhere
        if there and here:
            name = getattr(func, "__name__", func)
            raise RuntimeError(
                f"{name}: expected all tensors on one device, found cuda and the CPU "
                f"(shapes {[tuple(t.shape) for t in here]} on the CPU)"
            )

    def _move(self, func: Any, args: Any, kwargs: Any) -> Tensor:
        tensor, *rest = args
        there = is_there(tensor)
        kwargs.pop("non_blocking", None)
        wish: Any = {Tensor.cpu: "cpu", Tensor.cuda: "cuda"}.get(func, kwargs.pop("device", None))
        plain = []
        for value in rest:
            if isinstance(value, (str, torch.device)):
                wish = value
            elif isinstance(value, Tensor):
                wish, kwargs["dtype"] = ("cuda" if is_there(value) else "cpu"), value.dtype
            elif isinstance(value, torch.dtype):
                kwargs["dtype"] = value
            elif not isinstance(value, bool):
                plain.append(value)
        kwargs = {k: v for k, v in kwargs.items() if k == "dtype" and v is not None}
        goes = there if wish is None else torch.device(wish).type == "cuda"
        if goes == there:
            return _mark(tensor.to(**kwargs), there) if kwargs else tensor
        self.moved += goes
        out = tensor.to(**kwargs) if kwargs else tensor
        return _mark(out.clone(), goes)
