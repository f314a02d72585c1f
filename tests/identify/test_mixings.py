"""Mixings are injective and frozen; encoders with the right parameters undo them."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from chreode.compute.rng import Rng
from chreode.errors import ConfigError
from chreode.identify.encoders import Network, inverse_of
from chreode.identify.mixings import MIXINGS, mixing_of
from chreode.identify.spaces import Sphere


def made(name, n=3, seed=0):
    with Rng(seed).scope("mixing"):
        return mixing_of(name, n)


def points(n=3, size=2000, seed=1):
    with Rng(seed).scope("points"):
        return Sphere(n).draw(size)


def turned_back(x, angle):
    """Multiply the complex number of the first two coordinates by e^{−i angle}."""
    plane = torch.complex(x[:, 0], x[:, 1]) * torch.polar(torch.ones_like(angle), -angle)
    return torch.stack([plane.real, plane.imag, x[:, 2]], 1)


def by_slices_back(x):
    edges = torch.tensor([-0.5, 0.0, 0.5])
    return turned_back(x, torch.bucketize(x[:, 2].contiguous(), edges) * math.pi / 2)


def inverted(name, mixing, x):
    """Return the latents of data, by what is known of the mixing."""
    if name == "identity":
        return x
    if name == "linear":
        return x @ torch.linalg.pinv(mixing.matrix).T
    if name == "monomials":
        return x[:, :3]
    if name == "spiral":
        return turned_back(x, 2 * math.pi * x[:, 2])
    if name == "patches":
        x = by_slices_back(x)
        return by_slices_back(torch.stack([-x[:, 2], x[:, 1], x[:, 0]], 1))
    for i, matrix in enumerate(mixing.matrices.flip(0)):
        x = torch.linalg.solve(matrix, x.T).T
        x = x if i == 2 else torch.where(x < 0, x / 0.2, x)
    return x


@pytest.mark.parametrize("name", MIXINGS)
def test_latents_can_be_had_back_from_data(name):
    z, mixing = points(), made(name)
    x = mixing(z)
    assert x.shape == (len(z), mixing.n_data)
    torch.testing.assert_close(inverted(name, mixing, x), z, atol=1e-4, rtol=0)
    if name != "identity":
        assert x.shape != z.shape or (x - z).abs().mean() > 0.1


@pytest.mark.parametrize("name", MIXINGS)
def test_a_mixing_does_not_learn_and_follows_its_seed(name):
    mixing, z = made(name), points()
    assert not any(p.requires_grad for p in mixing.parameters())
    assert not mixing(z).requires_grad
    assert torch.equal(mixing(z), made(name)(z))
    assert torch.equal(mixing(z), made(name, seed=3)(z)) == (name not in {"linear", "mlp"})


@pytest.mark.parametrize(("n", "n_data"), [(3, 7), (10, 70), (4, 8)])
def test_a_linear_mixing_has_full_rank_and_the_paper_s_sizes(n, n_data):
    matrix = made("linear", n).matrix
    assert matrix.shape == (n_data, n)
    assert torch.linalg.matrix_rank(matrix) == n
    assert not torch.allclose(matrix.T @ matrix, torch.eye(n), atol=0.3)  # no rotation


def test_monomials_are_powers_up_to_the_seventh():
    z = points(10, 5)
    x = made("monomials", 10)(z)
    assert x.shape == (5, 70)
    for power in range(1, 8):
        torch.testing.assert_close(x[:, 10 * (power - 1) : 10 * power], z**power)


def test_the_mlp_is_not_linear_and_its_layers_are_well_conditioned():
    z, mixing = points(), made("mlp")
    both = mixing(z) + mixing(-z)
    assert both.abs().mean() > 0.1
    assert max(torch.linalg.cond(mixing.matrices)) < 3


@pytest.mark.parametrize(("name", "height", "angle"), [
    ("spiral", 0.5, math.pi), ("spiral", 0.25, math.pi / 2), ("patches", -0.9, 0.0),
    ("patches", -0.1, math.pi / 2), ("patches", 0.1, math.pi), ("patches", 1.0, 3 * math.pi / 2),
])  # fmt: skip
def test_turns_are_by_the_angles_of_the_paper(name, height, angle):
    x = made(name)(torch.tensor([[0.3, 0.0, height]]))
    expected = torch.tensor([[0.3 * math.cos(angle), 0.3 * math.sin(angle), height]])
    if name == "patches":  # pitched, and turned once more
        first, second, third = height, expected[0, 1].item(), -expected[0, 0].item()
        again = math.pi / 2 * math.floor((third + 1) * 2)
        expected = torch.tensor([[
            first * math.cos(again) - second * math.sin(again),
            first * math.sin(again) + second * math.cos(again), third,
        ]])  # fmt: skip
    torch.testing.assert_close(x, expected, atol=1e-6, rtol=0)


class Third(nn.Module):
    """Tells the third coordinate, or a function of it."""

    def __init__(self, function=lambda z: z):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x[:, 2:3])


@pytest.mark.parametrize("name", ["identity", "linear", "spiral", "patches"])
def test_an_inverse_encoder_can_be_the_inverse(name):
    z, mixing = points(), made(name)
    encoder = inverse_of(name, mixing.n_data, 3)
    untrained = encoder(mixing(z))
    torch.testing.assert_close(untrained.norm(dim=1), torch.ones(len(z)), atol=1e-5, rtol=0)
    with torch.no_grad():
        if name == "linear":
            encoder.layer.weight.copy_(torch.linalg.pinv(mixing.matrix))
        elif name == "identity":
            encoder.layer.weight.copy_(torch.eye(3))
        elif name == "spiral":
            encoder.control = Third()
        else:
            for part in (encoder.first, encoder.second):
                part.control = Third(torch.atanh)
                part.log_sharpness.fill_(math.log(1e4))
            cuts = torch.stack([z[:, 2], mixing(z)[:, 2]], 1)  # of both rounds
            inside = ((2 * (cuts + 1)).frac() - 0.5).abs().amax(1) < 0.49  # soft at the edges
            z = z[inside]
    torch.testing.assert_close(encoder(mixing(z)), z, atol=1e-4, rtol=0)
    assert (untrained[: len(z)] - z).abs().mean() > 0.05


@pytest.mark.parametrize("name", ["linear", "spiral", "patches"])
def test_every_parameter_of_an_inverse_encoder_learns(name):
    z, mixing = points(), made(name)
    encoder = inverse_of(name, mixing.n_data, 3)
    (encoder(mixing(z)) * z).sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in encoder.parameters())


@pytest.mark.parametrize("sphere", [True, False])
def test_a_network_has_its_layers_and_its_sphere(sphere):
    torch.manual_seed(0)
    network = Network(7, 3, (16, 8), sphere=sphere)
    kinds = [type(layer) for layer in network.layers]
    block = [nn.Linear, nn.ReLU, nn.BatchNorm1d]
    assert kinds == [*block, *block, nn.Linear]
    out = network(torch.randn(50, 7))
    assert out.shape == (50, 3)
    assert torch.allclose(out.norm(dim=1), torch.ones(50), atol=1e-5) == sphere
    if sphere:
        torch.testing.assert_close(out, F.normalize(out, dim=1))


@pytest.mark.parametrize(
    ("name", "meant"), [("spirl", "spiral"), ("Identity", "identity"), ("monomial", "monomials")]
)
def test_a_name_that_is_almost_one_is_told(name, meant):
    with pytest.raises(ConfigError, match=rf"no mixing '{name}'.*{meant}"):
        mixing_of(name, 3)


@pytest.mark.parametrize("name", ["spiral", "patches"])
def test_turns_need_three_dimensions(name):
    with pytest.raises(ConfigError, match=r"is defined for n_latent=3; got n_latent=4"):
        mixing_of(name, 4)


@pytest.mark.parametrize("name", ["mlp", "monomials", "no such"])
def test_there_is_no_inverse_of_some(name):
    with pytest.raises(ConfigError, match=r"there is none for mixing=.*Use encoder='mlp'"):
        inverse_of(name, 3, 3)
