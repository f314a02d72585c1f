"""Trainings of both libraries that stop for a lap between epochs; validation belongs to its epoch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightning.pytorch import Callback


@dataclass(frozen=True)
class _Announced:
    """A sampler that calls `begin` before each epoch."""

    sampler: Any
    begin: Callable[[], None]

    def n_batches(self, *given: Any) -> int:
        return self.sampler.n_batches(*given)

    def batches(self, *given: Any) -> Iterator[Any]:
        self.begin()
        yield from self.sampler.batches(*given)

    def held_out(self, *given: Any) -> Any:
        return self.sampler.held_out(*given)


def announcing(model: Any, begin: Callable[[Any], None], **options: Any) -> Any:
    """Return a model of this class that calls ``begin(fit)`` before each epoch, and has no other phases.

    ``fit`` has ``spec`` and ``module``, with the weights that were validated last.
    """
    fit = SimpleNamespace()

    class Announcing(model):  # type: ignore[misc]  # any model
        def build(self, spec: Any) -> Any:
            trained = super().build(spec)
            fit.spec, fit.module = spec, deepcopy(trained).eval()

            def remember(module: Any, _: Any) -> None:
                if not module.training:  # validation, of averaged weights where they are averaged
                    fit.module.load_state_dict(module.state_dict())

            trained.register_forward_pre_hook(remember)
            return trained

        def phases(self) -> list[Any]:
            announce = lambda: begin(fit)  # noqa: E731 (one line)
            return [
                replace(p, data=_Announced(p.data, announce)) for p in super().phases() if p.data
            ]

    return Announcing(**options)


def rival_callback(begin: Callable[[Any], None]) -> Callback:
    """Return a callback of Lightning that calls ``begin(trainer)`` before each epoch."""
    from lightning.pytorch import Callback

    class Announcing(Callback):
        def on_train_epoch_start(self, trainer: Any, plan: Any) -> None:  # noqa: ARG002 (Lightning's)
            begin(trainer)

    return Announcing()
