"""Densities of flows that carry a normal to a known distribution."""

from __future__ import annotations

import torch

from chreode.flows.density import log_density


def test_a_gaussian_flow_has_the_density_of_its_gaussian():
    """The linear path from N(0, I) to N(m, S): v = m + A(t) (x − t m) with A from both covariances."""
    torch.manual_seed(0)
    mean = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    root = torch.tensor([[1.2, 0.0, 0.0], [0.4, 0.6, 0.0], [-0.3, 0.2, 1.5]], dtype=torch.float64)
    covariance, eye = root @ root.T, torch.eye(3, dtype=torch.float64)

    def velocity(x, t):
        at = t**2 * covariance + (1 - t) ** 2 * eye
        slope = (t * covariance - (1 - t) * eye) @ torch.linalg.inv(at)
        return mean + (x - t * mean) @ slope.T

    x = mean + torch.randn(20, 3, dtype=torch.float64) @ root.T
    expected = torch.distributions.MultivariateNormal(mean, covariance).log_prob(x)
    found = log_density(velocity, x, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
