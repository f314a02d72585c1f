"""Work on independent parts of a computation, such as chunks of cells, in several threads."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import TypeVar

from threadpoolctl import ThreadpoolController

Part = TypeVar("Part")


def in_threads(work: Callable[[Part], None], parts: Iterable[Part]) -> None:
    """Do the work of each part, which writes to places of its own, in as many threads as BLAS has.

    NumPy lets other threads run while it computes. BLAS itself is held to one thread meanwhile: on
    products of few columns its threads mostly wait, and they do not share what lies between the
    products. No result depends on the number of threads, and calls within `work` start no more.

    Examples
    --------
    >>> squares = {}
    >>> in_threads(lambda part: squares.update({part: part**2}), range(3))
    >>> sorted(squares.items())
    [(0, 0), (1, 1), (2, 4)]
    """
    n_threads = max((library["num_threads"] for library in _blas().info()), default=1)
    with _blas().limit(limits=1), ThreadPoolExecutor(n_threads) as pool:
        deque(pool.map(work, parts), maxlen=0)  # raises what a part raised


@cache  # looking through the loaded libraries takes milliseconds
def _blas() -> ThreadpoolController:
    return ThreadpoolController().select(user_api="blas")


def chunks(n_rows: int, size: int) -> Iterator[slice]:
    """Cut rows into chunks of `size`.

    Examples
    --------
    >>> list(chunks(5, 2))
    [slice(0, 2, None), slice(2, 4, None), slice(4, 6, None)]
    """
    return (slice(start, start + size) for start in range(0, n_rows, size))
