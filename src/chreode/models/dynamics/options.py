"""What the parts of a model of time read of its options."""

from __future__ import annotations

from typing import Any, Literal, Protocol, runtime_checkable

from ...schema import Spec


@runtime_checkable
class Options(Protocol):
    """What is read of a model's options; `NeuralODE` says what each is."""

    n_latent: int
    n_refits: int
    solver: Literal["dopri5", "tsit5", "rk4"]
    tolerance: float
    jitter: float

    def width(self, spec: Spec) -> int:
        """Return the number of genes."""
        ...

    def build(self, spec: Spec) -> Any:
        """Return the untrained `Dynamics`."""
        ...

    def alone(self) -> Options:
        """Return the same options without refits."""
        ...
