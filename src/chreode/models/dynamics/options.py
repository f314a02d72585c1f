"""What the parts of a model of time read of its options."""

from __future__ import annotations

from typing import Any, Literal, Protocol, Self

from ...schema import Spec


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

    def alone(self) -> Self:
        """Return the same options without refits."""
        ...
