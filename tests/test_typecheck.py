"""Types and shapes are checked in these tests: of arguments, of what is returned, and between the two."""

from __future__ import annotations

import jaxtyping
import pytest
import torch

from chreode.losses.kl import kl_normal
from chreode.losses.ntxent import nt_xent
from chreode.text import spelled


def test_types_are_checked_where_no_shape_is_named():
    with pytest.raises(TypeError, match="violates type hint"):
        spelled("three", "cell")


def test_axes_of_the_same_name_are_equally_long():
    with pytest.raises(jaxtyping.TypeCheckError):
        nt_xent(torch.zeros(4, 2), torch.zeros(3, 2), 0.5)


def test_numbers_that_are_of_any_shape_are_of_the_right_kind():
    whole = torch.ones(3, dtype=torch.int64)
    with pytest.raises(jaxtyping.TypeCheckError):
        kl_normal(whole, whole, whole, whole)
