"""Which combinations of categories were seen, and what is left of those that were not."""

from __future__ import annotations

import torch

import chreode as ch
from chreode.nn import attributes
from chreode.nn.attributes import Combinations


def spec_of(**sizes):
    names = {role: tuple(f"{role} {i}" for i in range(n)) for role, n in sizes.items()}
    return ch.Spec(
        ("counts", *sizes), {"counts": ("a",)}, names, {r: (n,) for r, n in sizes.items()}
    )


def test_of_what_never_met_the_first_part_is_known():
    known = Combinations(spec_of(label=2, batch=2, perturbation=2))
    # type 1 was never treated, and type 0 never in batch 1 while treated
    known.fill(torch.tensor([[0, 0, 0], [0, 0, 1], [0, 1, 0], [1, 0, 0], [1, 1, 0]]))
    asked = torch.tensor([[0, 0, 1], [1, 0, 1], [0, 1, 1], [-1, 1, -1], [-1, -1, 1], [-1, 1, 1]])
    assert known.known(asked).tolist() == [
        [True, True, True],
        [True, True, False],
        [True, True, False],
        [False, True, False],
        [False, False, True],
        [False, True, False],
    ]


def test_too_many_combinations_are_not_told_apart(monkeypatch):
    monkeypatch.setattr(attributes, "MOST_COMBINATIONS", 8)
    known = Combinations(spec_of(label=2, batch=2))
    known.fill(torch.tensor([[0, 0]]))
    assert known.known(torch.tensor([[1, 1], [0, -1]])).tolist() == [[True, True], [True, False]]
    assert known.number(torch.tensor([[1, 1]])).tolist() == [0]


def test_no_category_is_no_combination():
    known = Combinations(spec_of())
    known.fill(torch.zeros(5, 0, dtype=torch.long))
    assert known.known(torch.zeros(3, 0, dtype=torch.long)).shape == (3, 0)
