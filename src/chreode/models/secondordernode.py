"""SONODE: a second-order neural ODE, in which a network gives the acceleration."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..config import config
from ..data.series import SeriesBatch
from ..schema import Spec
from .dynamics.dynamics import Dynamics
from .dynamics.unexplained import unexplained
from .dynamics.vectorfield import VectorField, mean_jacobian
from .neuralode import NeuralODE


class SecondOrder(Dynamics):
    """d²x/dt² = f(x, v); at the start of a trajectory the velocity is v(x)."""

    def __init__(self, options: NeuralODE, spec: Spec, field: VectorField) -> None:
        super().__init__(options, spec, field)
        self.first = VectorField(field.n, options.widths(field.n), activation=options.activation)

    def slope_error(self, batch: SeriesBatch) -> Float[Tensor, ""]:
        """Return the errors of velocities and of accelerations."""
        assert batch.slopes is not None
        assert batch.bends is not None
        seen = batch.weight[..., 0] > 0
        x = self.frame.scaled(batch.values)[seen]
        v, a = (
            d[seen] * self.frame.length**k / self.frame.scale
            for k, d in ((1, batch.slopes), (2, batch.bends))
        )
        state = torch.cat([x, v], 1)
        weight = batch.weight[seen]
        return unexplained(self.first(x), v, weight) + unexplained(
            self.velocity()(state), a, weight
        )

    def integrate(
        self,
        x: Float[Tensor, "s g"],
        times: Float[Tensor, "s t"],
        start: Float[Tensor, " s"],
        clamped: Int[Tensor, " k"] | None = None,
        *,
        alone: bool = False,
    ) -> Float[Tensor, "s t g"]:
        """Solve for states at `times`, from starting states and the velocities that v gives for them."""
        f, n = self.velocity(), x.shape[1]
        keep = self.free(clamped)

        def both(state: Tensor) -> Tensor:
            return torch.cat([state[:, n:] * keep, f(state) * keep], 1)

        state = torch.cat([x, self.first(x) * keep], 1)
        return self.follow(both, state, times, start, alone=alone)[..., :n]

    def drift(self, at: Float[Tensor, "b k"]) -> Float[Tensor, "b k"]:
        """Return the starting velocity v of states that are given by coordinates of `embed`."""
        plane = self.frame.plane[:, : at.shape[1]]
        with torch.no_grad():
            return self.first(at @ plane.T) @ plane

    def edges(self) -> Float[Tensor, "g g"]:
        """Return the mean of ∂a/∂x along observed trajectories; row: the driver, column: its target."""
        f = self.velocity()
        with torch.no_grad():
            v = self.first(self.frame.references)
        return mean_jacobian(f, torch.cat([self.frame.references, v], 1))[: self.field.n]


@config
class SecondOrderNODE(NeuralODE):
    """A second-order neural ODE: a network gives the acceleration of a cell from its state and velocity.

    For the state x at time t::

        d²x/dt² = f(x, dx/dt),   dx/dt(t_0) = v(x(t_0))

    References
    ----------
    Norcliffe et al. (2020), On Second Order Behaviour in Augmented Neural ODEs, NeurIPS.
    """

    def build(self, spec: Spec) -> SecondOrder:
        """Return the untrained tensors."""
        return SecondOrder(self, spec, self.field(self.width(spec)))

    def field(self, n: int) -> VectorField:
        """Return the untrained acceleration of `n` genes."""
        return VectorField(n, self.widths(n), inputs=2 * n, activation=self.activation)
