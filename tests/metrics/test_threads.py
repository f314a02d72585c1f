"""Threads share the work and change no result."""

from __future__ import annotations

import subprocess
import sys
import threading

import numpy as np
import pytest
from threadpoolctl import threadpool_info, threadpool_limits

from chreode.metrics.integration import integration_scores
from chreode.metrics.threads import chunks, in_threads


def blas_threads():
    return {lib["num_threads"] for lib in threadpool_info() if lib["user_api"] == "blas"}


def test_as_many_threads_as_blas_has_and_no_more_within():
    outer, inner, blas = [], [], []
    together = threading.Barrier(3, timeout=30)

    def work(part):
        outer.append(threading.get_ident())
        together.wait()  # passes only if three parts are at work at once
        blas.append(blas_threads())
        found = []
        in_threads(lambda _: found.append(threading.get_ident()), range(4))
        inner.append(len(set(found)))

    with threadpool_limits(3, user_api="blas"):
        in_threads(work, range(3))
        assert blas_threads() == {3}
    assert len(set(outer)) == 3
    assert inner == [1, 1, 1]
    assert blas == [{1}] * 3


def test_what_a_part_raises_is_raised_and_blas_gets_its_threads_back():
    def work(part):
        if part == 1:
            raise ZeroDivisionError

    with threadpool_limits(2, user_api="blas"):
        with pytest.raises(ZeroDivisionError):
            in_threads(work, range(3))
        assert blas_threads() == {2}


@pytest.mark.parametrize("n_rows", [1, 6, 7])
def test_chunks_hold_every_row_once(n_rows):
    rows = np.arange(n_rows)
    assert np.concatenate([rows[chunk] for chunk in chunks(n_rows, 3)]).tolist() == rows.tolist()


@pytest.mark.slow
def test_scores_are_the_same_bits_whatever_the_number_of_threads(simulate):
    x, labels, batches, pre = simulate(shift=0.7, spread=1.5)

    def values(n_threads):
        with threadpool_limits(n_threads, user_api="blas"):
            scores = integration_scores(x, labels, batches, pre=pre)
        return {key: score.value for key, score in scores.items()}

    one = values(1)
    assert values(3) == one
    assert values(1) == one


@pytest.mark.slow
def test_metrics_do_without_torch():
    # which takes longer to import than 10,000 cells take to score
    said = "import sys, chreode.metrics; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", said], check=False).returncode == 0
