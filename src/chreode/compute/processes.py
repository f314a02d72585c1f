"""Several processes, one fit: every process takes its share of each minibatch, and sums are shared.

The gradient that all of them step along is that of the joint minibatch, so the number of processes
changes how fast a model is learned and not what is learned (noise apart: each draws its own).
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from jaxtyping import Int, Shaped
from torch import Tensor
from torch.autograd import Function

from ..errors import ConfigError


def started() -> bool:
    """Return whether ``torchrun`` started this process: it says which one it is, and where all meet."""
    return {"RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys()


@dataclass(frozen=True)
class Group:
    """The processes of a fit, and which of them this one is. By default it is alone."""

    rank: int = 0
    size: int = 1

    @classmethod
    def join(cls) -> Group:
        """Meet the other processes that ``torchrun`` started.

        Raises
        ------
        ConfigError
            If it started none.
        """
        if not dist.is_initialized():
            if not started():
                raise ConfigError(
                    "distributed=True is for processes that torchrun starts: "
                    "torchrun --nproc-per-node 2 SCRIPT, or chreode fit … --distributed."
                )
            try:
                if torch.cuda.is_available():
                    torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
                dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
            except (ValueError, RuntimeError) as error:
                raise ConfigError(
                    f"The processes of this fit cannot meet ({error}). Start them all by one torchrun."
                ) from error
        return cls(dist.get_rank(), dist.get_world_size())

    @property
    def alone(self) -> bool:
        """Whether there is no other process."""
        return self.size == 1

    def share(self, rows: Int[np.ndarray, "n ..."]) -> Int[np.ndarray, "share ..."]:
        """Return the rows that are this process's to compute."""
        return rows if self.alone else np.array_split(rows, self.size)[self.rank]

    def add(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by its sum over the processes: one message, the same bits for all."""
        if self.alone or not tensors:
            return
        flat = torch.cat([t.reshape(-1) for t in tensors])
        dist.all_reduce(flat)
        for tensor, total in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
            tensor.copy_(total.view_as(tensor))

    def add_numbers(self, values: Sequence[float]) -> list[float]:
        """Return the sum over the processes of each of some numbers, which stand in the same order."""
        total = torch.tensor(values, dtype=torch.float64, device=self._device)
        self.add([total])
        found: list[float] = total.tolist()
        return found

    def union(self, names: Iterable[str]) -> list[str]:
        """Return the names that any process has, in the same order for all."""
        if self.alone:
            return [*names]
        letters = "".join(f"{name}\n" for name in names).encode()
        own = torch.tensor([*letters], dtype=torch.int64, device=self._device)
        return [*dict.fromkeys(bytes(self.gather(own)[0].tolist()).decode().splitlines())]

    @property
    def _device(self) -> str:
        return "cuda" if not self.alone and dist.get_backend() == "nccl" else "cpu"

    def gather(
        self, x: Shaped[Tensor, "b ..."]
    ) -> tuple[Shaped[Tensor, "all ..."], Int[Tensor, " b"]]:
        """Return the rows that all processes have, in the order of their shares, and which are its own.

        So negatives are those of the joint minibatch. Gradients flow to every process: that of a row is
        the sum of what all processes have for it. All must call it alike.
        """
        if self.alone:
            return x, torch.arange(len(x), device=x.device)
        sizes = torch.zeros(self.size, dtype=torch.int64, device=x.device)
        sizes[self.rank] = len(x)
        self.add([sizes])
        ends = sizes.cumsum(0).tolist()
        first = ends[self.rank] - len(x)
        whole = _Gathered.apply(x, first, ends[-1])  # type: ignore[no-untyped-call]  # torch's own
        return whole, torch.arange(first, ends[self.rank], device=x.device)

    def copy_from_first(self, tensors: Iterable[Tensor]) -> None:
        """Take the tensors of the first process, so that all begin alike on unlike machines."""
        if not self.alone:
            for tensor in tensors:
                dist.broadcast(tensor, 0)


class _Total(Function):
    """The sum over processes; its gradient is the sum of all their gradients."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:  # noqa: ARG004 (the contract)
        total = x.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # noqa: ARG004 (the contract)
        total = gradient.clone()
        dist.all_reduce(total)
        return total


class _Gathered(Function):
    """The rows of all processes; the gradient of each row is the sum of all their gradients of it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, first: int, n: int) -> Tensor:
        ctx.own = slice(first, first + len(x))
        whole = x.new_zeros(n, *x.shape[1:])
        whole[ctx.own] = x  # shares may differ by a row, which a sum does not mind
        dist.all_reduce(whole)
        return whole

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        summed = gradient.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(summed)
        return summed[ctx.own], None, None


def total(x: Tensor) -> Tensor:
    """Return the sum of `x` over the processes, through which gradients flow to all of them."""
    return _Total.apply(x)  # type: ignore[no-untyped-call]  # torch's own
