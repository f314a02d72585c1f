"""The benchmark of images: what its tables say of rows, and of those that are missing."""

from __future__ import annotations

import pytest
from benchmarks.identify import digits

ABOUT = {"epochs": 30, "batch_size": 128, "lr": 3e-4, "data": "abc"}


def row(encoder, regime, seed, accuracy, worst=0.5):
    return {
        "encoder": encoder, "regime": regime, "seed": seed, "accuracy": accuracy, "worst": worst,
        "last_loss": None if regime in ("-", "untrained") else 5.25,
        "state": "" if regime in ("-", "untrained") else ("rested", "still improving")[seed],
    }  # fmt: skip


def measured(seed, resnet, mlp):
    """Return what two cases of a seed say; both have the baselines."""
    shared = [row("raw pixels", "-", seed, 0.9)]
    return [
        {"about": ABOUT, "rows": [*shared, row("resnet", "crop", seed, resnet, 0.25)]},
        {"about": ABOUT, "rows": [*shared, row("mlp", "crop", seed, mlp)]},
    ]


def test_tables_have_means_ranges_and_the_gap_of_each_seed():
    told = digits.render([*measured(0, 0.8, 0.6), *measured(1, 0.7, 0.65)])
    assert "2 of 4 fits were still improving" in told[0]
    assert "| raw pixels | 90 |  |  |  |  |" in told
    assert "| ResNet-18, narrow | – | – | 75 (70 to 80) | – | – |" in told
    assert "| ResNet-18, narrow | – | – | 25 | – | – |" in told  # of the worst class
    assert "| digits | 12.5 (5 to 20) |" in told
    assert "| MLP, small | – | 5.25 | – | – |" in told


def test_a_seed_that_lacks_an_encoder_is_in_no_gap():
    told = digits.render([*measured(0, 0.8, 0.6), measured(1, 0.7, 0.65)[0]])
    assert "| digits | 20 |" in told


def test_every_row_is_a_case_of_its_own_and_seeds_come_whole():
    cases = digits.cases()
    assert len(cases) == 5 * 3 * 4
    assert [case["seed"] for case in cases] == sorted(case["seed"] for case in cases)


def test_the_loss_of_embeddings_that_are_all_alike():
    # 1,078 training images in 8 minibatches: of 269.5 views each finds its other one among 268.5
    assert digits.blind(128) == pytest.approx(5.5928, abs=1e-4)
