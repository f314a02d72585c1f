"""Which strength is kept."""

from __future__ import annotations

import numpy as np

from chreode.learn.exact import Exact
from chreode.learn.path import Path, choose
from chreode.learn.phase import Phase


def test_the_sparsest_within_one_standard_error_of_the_best_is_kept():
    series = np.linspace(1, 5, 12)  # series differ far more than fits do
    wobble = 0.01 * np.tile([1, -1], 6)
    apart = np.array([0.3 + wobble, 0 * wobble, 0.001 + wobble, 0.2 + wobble])
    assert choose(series + apart) == 2
    apart[2] += 0.01
    assert choose(series + apart) == 1


def test_of_few_series_one_percent_counts():
    errors = np.array([[1.2, 1.2], [1.0, 1.0], [1.005, 1.005], [1.02, 1.02]])
    assert choose(errors) == 2


def test_paths_that_blow_up_are_passed_over():
    errors = np.array([[np.inf, 1.0], [1.0, 1.1], [np.inf, 0.5]])
    assert choose(errors) == 1


def test_where_every_fit_blows_up_the_sparsest_is_kept():
    assert choose(np.full((3, 6), np.inf)) == 2


def test_a_way_ends_at_the_strength_that_is_asked_for():
    assert Path(Phase(Exact()), (0.1, 0.2, 0.3)).until(0.2).strengths == (0.1, 0.2)
