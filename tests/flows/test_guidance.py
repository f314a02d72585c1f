"""Guidance against its formula, and conditions dropped in the shares asked for."""

from __future__ import annotations

import pytest
import torch

from chreode.flows.guidance import drop_as_published, drop_conditions, guided

PULL = torch.tensor([[1.0, 0.0], [0.0, 3.0]])


def recorder():
    """A field that is linear in what is told, and remembers how much it was asked."""
    asked = []

    def field(x, t, told):
        asked.append(len(x))
        return 0.5 * x + t + told.to(x) @ PULL

    return field, asked


def masks(*rows):
    return [(torch.tensor(told, dtype=torch.bool), weight) for told, weight in rows]


def test_composition_is_the_sum_over_attributes():
    field, asked = recorder()
    x, t = torch.randn(4, 2), torch.tensor(0.3)
    found = guided(field, masks(((1, 0), 2.0), ((0, 1), 0.5)))(x, t)
    nothing = 0.5 * x + t
    torch.testing.assert_close(found, nothing + 2.0 * PULL[0] + 0.5 * PULL[1])
    assert asked == [12]  # one call: two attributes and nothing


def test_one_term_of_weight_one_is_the_plain_field():
    field, asked = recorder()
    x, t = torch.randn(4, 2), torch.tensor(0.3)
    found = guided(field, masks(((1, 1), 1.0)))(x, t)
    torch.testing.assert_close(found, field(x, t, torch.ones(4, 2, dtype=torch.bool)))
    assert asked[0] == 4


def test_weight_zero_tells_nothing():
    field, asked = recorder()
    x, t = torch.randn(4, 2), torch.tensor(0.3)
    torch.testing.assert_close(guided(field, masks(((1, 1), 0.0)))(x, t), 0.5 * x + t)
    assert asked == [4]


def test_guidance_without_attributes():
    found = guided(lambda x, t, told: x, [(torch.zeros(0, dtype=torch.bool), 1.0)])
    torch.testing.assert_close(found(torch.ones(2, 3), torch.tensor(0.0)), torch.ones(2, 3))


@pytest.mark.parametrize("k", [1, 2, 3])
def test_conditions_are_dropped_cell_by_cell(k):
    torch.manual_seed(0)
    kept = drop_conditions(torch.ones(50_000, k, dtype=torch.bool), 0.2)
    nothing = (~kept).all(1).float().mean()
    alone = 0.2 if k > 1 else 0.0
    assert float(nothing) == pytest.approx(0.2 + 0.8 * alone**k, abs=0.01)
    expected = 0.8 * (1 - alone)
    assert all(float(share) == pytest.approx(expected, abs=0.01) for share in kept.float().mean(0))
    assert not drop_conditions(torch.zeros(9, k, dtype=torch.bool), 0.2).any()


def test_the_published_way_keeps_one_attribute_of_all_cells_or_none():
    torch.manual_seed(0)
    present = torch.ones(7, 2, dtype=torch.bool)
    seen = torch.stack([drop_as_published(present, 0.2) for _ in range(4000)])
    assert (seen == seen[:, :1]).all()
    counts = seen[:, 0].sum(1)
    assert set(counts.tolist()) == {0, 1}
    assert float((counts == 0).float().mean()) == pytest.approx(0.2, abs=0.03)
    assert seen[:, 0].float().mean(0).tolist() == pytest.approx([0.4, 0.4], abs=0.03)
