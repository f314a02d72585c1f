"""Randomness by purpose: the same seed and purpose give the same stream, whatever ran before."""

from __future__ import annotations

import threading
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch

#: Whoever draws from the global generators holds it: threads that fit at once take turns.
_turn = threading.RLock()


def renew() -> None:
    """Forget who holds the turn: in a forked process, threads that are not there."""
    global _turn
    _turn = threading.RLock()


@dataclass(frozen=True)
class Rng:
    """A seed from which every purpose derives a stream of its own.

    A stream is named by a purpose and counters (``rng.scope("noise", step)``), so nothing has to be
    stored to go on where a fit was cut off.

    Examples
    --------
    >>> with Rng(0).scope("noise", 3):
    ...     a = torch.rand(1)
    >>> with Rng(0).scope("noise", 3):
    ...     bool(a == torch.rand(1))
    True
    """

    seed: int

    def child(self, name: str) -> Rng:
        """Return an independent generator, as for a phase or a member."""
        return Rng(int(self._sequence(name).generate_state(1, np.uint64)[0] >> np.uint64(1)))

    def numpy(self, purpose: str, *counters: int) -> np.random.Generator:
        """Return a fresh NumPy generator for `purpose`."""
        return np.random.default_rng(self._sequence(purpose, *counters))

    @contextmanager
    def scope(self, purpose: str, *counters: int) -> Iterator[None]:
        """Seed torch's and NumPy's global generators for `purpose`; restore them after.

        Dropout, initialisers and torch's distributions take no generator, hence the global ones. Another
        thread that asks for them waits until they are restored.
        """
        cuda = list(range(torch.cuda.device_count())) if torch.cuda.is_available() else []
        mps = torch.backends.mps.is_available()
        with _turn, torch.random.fork_rng(devices=cuda):
            numpy_state = np.random.get_state()  # noqa: NPY002 (libraries draw from the global one)
            mps_state = torch.mps.get_rng_state() if mps else None
            self.seed_global(purpose, *counters)
            try:
                yield
            finally:
                np.random.set_state(numpy_state)  # noqa: NPY002
                if mps_state is not None:
                    torch.mps.set_rng_state(mps_state)

    def seed_global(self, purpose: str, *counters: int) -> None:
        """Seed the global generators and leave them so: for every step of a loop inside a `scope`."""
        state = self._sequence(purpose, *counters).generate_state(2, np.uint64)
        seed = int(state[0] >> np.uint64(1))
        # torch.manual_seed asks every kind of device there may be, which takes longer than a layer
        torch.default_generator.manual_seed(seed)
        if torch.cuda.is_available():
            torch.cuda.manual_seed_all(seed)
        if torch.backends.mps.is_available():
            torch.mps.manual_seed(seed)
        np.random.seed(int(state[1] % np.uint64(2**32)))  # noqa: NPY002

    def _sequence(self, purpose: str, *counters: int) -> np.random.SeedSequence:
        return np.random.SeedSequence([self.seed, zlib.crc32(purpose.encode()), *counters])
