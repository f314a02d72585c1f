"""Pictures of studies: what is drawn are the values given."""

import numpy as np
import pandas as pd
import pytest
from identify.outcomes import of, outcome, sphere, study, violated
from matplotlib.colors import to_hex

from chreode import plot
from chreode.errors import ConfigError, DataError, SchemaError
from chreode.identify.study import named
from chreode.losses.optima import rescaled
from chreode.plot.style import GREY
from chreode.trials.trial import Outcome

KAPPA = 1 / 0.3


def test_spheres_are_turned_back_and_show_both_halves():
    z = sphere()
    turn = np.linalg.qr(np.random.default_rng(1).normal(size=(3, 3)))[0]
    figure = plot.spheres(z, {"turned": z @ turn, "folded": np.abs(z)})
    truth, turned, folded = figure.axes[:3]
    points = [np.asarray(ax.collections[0].get_offsets()) for ax in (truth, turned, folded)]
    np.testing.assert_allclose(points[0], points[1], atol=1e-9)
    near = z[:, 2] >= 0
    middle = points[0][near, 0].mean()
    assert middle < -0.9
    np.testing.assert_allclose(points[0][near, 0] - z[near, 1], middle - z[near, 1].mean())
    np.testing.assert_allclose(points[0][~near, 0] + z[~near, 1], -(middle - z[near, 1].mean()))
    np.testing.assert_allclose(points[0][:, 1], z[:, 0])
    for ax in (truth, turned, folded):
        np.testing.assert_array_equal(ax.collections[0].get_array(), z[:, 0])
        assert ax.collections[0].get_rasterized()
    assert turned.get_title() == "turned\nR² 1.00"
    assert float(folded.get_title().rpartition(" ")[2]) < 0.5


@pytest.mark.parametrize("k", [2, 5])
def test_other_dimensions_are_drawn(k):
    z = sphere(k=k)
    ax = plot.spheres(z, {"same": z}).axes[1]
    assert len(ax.patches) == (1 if k == 2 else 2)
    assert len(ax.collections[0].get_offsets()) == len(z)


@pytest.mark.usefixtures("without_types")
def test_another_shape_is_refused():
    z = sphere()
    with pytest.raises(DataError, match=r"'half' has shape \(200, 3\): expected \(400, 3\)"):
        plot.spheres(z, {"half": z[:200]})


def rows_over_ratio() -> pd.DataFrame:
    rows = [
        (mixing, sampler, ratio, seed, ratio * weight + 0.01 * seed, 0.5 * ratio)
        for mixing, weight in (("identity", 0.9), ("linear", 0.8))
        for sampler in ("theorem", "published")
        for ratio in (0.0, 0.5, 1.0)
        for seed in (0, 1)
    ]
    columns = ["mixing", "sampler", "ratio", "seed", "r2", "published"]
    return pd.DataFrame(rows, columns=columns).assign(failed="")


def test_ratio_lines_are_means_and_dots_are_seeds():
    rows = rows_over_ratio()
    rows.loc[1, ["r2", "failed"]] = [np.nan, "lost"]
    ax = plot.recovery_over_ratio(rows)
    lines = {line.get_label(): line for line in ax.lines}
    assert set(lines) == {
        f"{m}, {s}" for m in ("identity", "linear") for s in ("theorem", "published", "paper")
    }
    np.testing.assert_allclose(lines["identity, theorem"].get_ydata(), [0.0, 0.455, 0.905])
    np.testing.assert_allclose(lines["linear, published"].get_ydata(), [0.005, 0.405, 0.805])
    np.testing.assert_allclose(lines["linear, paper"].get_ydata(), [0.0, 0.25, 0.5])
    assert (lines["linear, theorem"].get_linestyle(), lines["linear, published"].get_linestyle()) == (
        "-", "--",
    )  # fmt: skip
    assert to_hex(lines["linear, paper"].get_color()).upper() == GREY
    assert [len(dots.get_offsets()) for dots in ax.collections] == [5, 6, 6, 6]


def test_dots_are_seeds_beside_the_paper_and_the_start():
    made = [
        (violated(), 0, outcome(violated(), 0.6)),
        (violated(), 1, outcome(violated(), 0.8)),
        (of("linear"), 0, Outcome(failed="lost")),
    ]
    rows = study("diversity", made).rows
    rows["r2_untrained"] = [0.3, 0.5, np.nan]
    ax = plot.recovery_dots(rows)
    drawn = {line.get_gid(): line.get_xdata() for line in ax.lines if line.get_gid()}
    assert {name: list(np.round(x, 6)) for name, x in drawn.items()} == {
        "seeds": [0.6, 0.8], "mean": [0.7], "paper": [0.63], "untrained": [0.4],
    }  # fmt: skip
    assert [text.get_text() for text in ax.get_yticklabels()] == [
        named(violated()), named(of("linear")),
    ]  # fmt: skip
    assert [text.get_text() for text in ax.texts] == ["failed"]


def test_points_are_those_of_the_first_seed():
    runs = [(of(m), seed, outcome(of(m), 0.9)) for m in ("identity", "linear") for seed in (4, 2)]
    for i, (*_, found) in enumerate(runs):
        found.arrays["latents"] = sphere(seed=i)
    points = study("diversity", runs).points
    assert list(points) == [named(of("identity")), named(of("linear"))]
    for i, (latents, _) in zip((0, 2), points.values(), strict=True):
        np.testing.assert_array_equal(latents, sphere(seed=i))


def test_another_table_is_refused():
    with pytest.raises(SchemaError, match="the rows of a study"):
        plot.recovery_dots(pd.DataFrame({"r2": [1.0]}))


def test_losses_of_stretched_maps_are_the_closed_forms_and_say_both_theorems():
    ax = plot.rescaled_losses(KAPPA, 3, 1)
    lines = {line.get_label(): line for line in ax.get_legend().legend_handles}
    assert len(lines) == 4
    drawn = {line.get_label(): line for line in ax.lines if line.get_label() in lines}
    for label, line in drawn.items():
        loss, _, sampler = label.partition(", ")
        how = {"sampler": sampler, "corrected": loss == "corrected"}
        x, y = line.get_data()
        at = len(x) // 4
        expected = rescaled(x[at], KAPPA, 3, 1, 7, **how) - rescaled(1.0, KAPPA, 3, 1, 7, **how)
        assert y[at] == pytest.approx(expected, abs=1e-12)
    marks = [line for line in ax.lines if len(line.get_xdata()) == 1]
    lowest = {
        label: (float(mark.get_xdata()[0]), mark.get_marker())
        for label, mark in zip(drawn, marks, strict=True)
    }
    assert lowest["corrected, theorem"] == (pytest.approx(1.0), "o")  # theorem 4.6
    assert lowest["InfoNCE, theorem"][0] < 0.8  # theorem 4.5
    assert lowest["InfoNCE, published"][0] < 0.9
    assert lowest["corrected, published"] == (
        pytest.approx(10.0),
        ">",
    )  # which is not the theorem's


def test_losses_of_narrow_positives_are_finite():
    ax = plot.rescaled_losses(1e4, 3, 1)
    assert all(np.isfinite(line.get_ydata()).all() for line in ax.lines)


@pytest.mark.parametrize("n_fixed", [0, 3, 4])
def test_nothing_to_stretch_is_refused(n_fixed):
    with pytest.raises(ConfigError, match="expected 1 to 2"):
        plot.rescaled_losses(KAPPA, 3, n_fixed)
