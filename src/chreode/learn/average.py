"""A moving average of the weights of a module, which is what is validated and kept."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from .. import store

#: Steps from one update to the next, so that it costs next to nothing.
EVERY = 10


class Average:
    """An exponential moving average, taken every few steps.

    Parameters
    ----------
    module
        Whose weights.
    decay
        Per step (None: there is no average, and the module's own weights are looked at).
    """

    def __init__(self, module: nn.Module, decay: float | None) -> None:
        self.module, self.decay, self.index = module, decay, 0
        self.state = store.clone_state(module) if decay else {}

    def update(self, index: int) -> None:
        """Move the average as far as an update at every step up to `index` would, roughly."""
        if not self.decay:
            return
        decay = min(self.decay, (1 + index) / (10 + index))
        share = 1 - decay ** (index - self.index)
        self.index = index
        for name, value in self.module.state_dict().items():
            if value.is_floating_point():
                self.state[name].lerp_(value, share)
            else:
                self.state[name].copy_(value)

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Let the module have the averaged weights for a while, if there are any."""
        if not self.decay:
            yield
            return
        current = store.clone_state(self.module)
        self.module.load_state_dict(self.state)
        try:
            yield
        finally:
            self.module.load_state_dict(current)
