"""Pictures say what the data say: colours, order, scales; and leave nothing behind."""

import dataclasses
import itertools
import sys

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch
from anndata import AnnData
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure

import chreode as ch
from chreode import plot
from chreode.bench import Bench
from chreode.errors import CapabilityError, ConfigError, DataError, SchemaError
from chreode.plot.dots import _SCALE, AREA
from chreode.plot.style import GREY, PALETTE

METRICS = pd.DataFrame(
    {
        "metric": ["nmi", "ilisi", "total", "wasserstein"],
        "name": ["NMI", "iLISI", "total", "Wasserstein"],
        "group": ["bio", "batch", "total", "total"],
        "best": [1.0, 1.0, 1.0, 0.0],
        "about": ["labels", "batches", "both", "distance"],
    }
).set_index("metric")


def bench(values: dict[str, list[float]], roles: dict[str, str] | None = None) -> Bench:
    roles = roles or {}
    scores = [
        {"method": m, "seed": 0, "metric": k, "value": v, "low": v - 0.02, "high": v + 0.02}
        for m, row in values.items()
        for k, v in zip(METRICS.index, row, strict=True)
    ]
    methods = pd.DataFrame(
        {"role": [roles.get(m, "method") for m in values], "seeds": 1, "notes": [[]] * len(values)},
        index=pd.Index(values, name="method"),
    )
    return Bench("integration", pd.DataFrame(scores), methods, METRICS, {})


def drawn(ax: Axes) -> tuple[np.ndarray, list[str]]:
    points = ax.collections[0]
    colours = [to_hex(c).upper() for c in points.get_facecolors()]
    return np.asarray(points.get_offsets()), colours * (
        1 if len(colours) > 1 else len(points.get_offsets())
    )


def legend(ax: Axes) -> dict[str, str]:
    shown = ax.get_legend()
    names = [t.get_text() for t in shown.get_texts()]
    return dict(
        zip(names, (to_hex(h.get_color()).upper() for h in shown.legend_handles), strict=True)
    )


def rendered(figure: Figure) -> np.ndarray:
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())


# colours


def oklab(linear: np.ndarray) -> np.ndarray:
    """Ottosson (2020), from linear sRGB."""
    lms = linear.clip(0) @ np.array(
        [
            [0.4122214708, 0.2119034982, 0.0883024619],
            [0.5363325363, 0.6806995451, 0.2817188376],
            [0.0514459929, 0.1073969566, 0.6299787005],
        ]
    )
    return np.cbrt(lms) @ np.array(
        [
            [0.2104542553, 1.9779984951, 0.0259040371],
            [0.7936177850, -2.4285922050, 0.7827717662],
            [-0.0040720468, 0.4505937099, -0.8086757660],
        ]
    )


# Machado, Oliveira & Fernandes (2009), severity 1
EYES = {
    "normal": np.eye(3),
    "deuteranope": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ],
    "protanope": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
}


@pytest.mark.parametrize("eye", EYES)
def test_colours_differ_to_every_eye(eye):
    rgb = np.array([[int(h[i : i + 2], 16) for i in (1, 3, 5)] for h in PALETTE]) / 255
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    lab = oklab(linear @ np.array(EYES[eye]).T)
    apart = np.linalg.norm(lab[:, None] - lab[None], axis=2)[np.triu_indices(len(lab), 1)]
    assert apart.min() > 0.06  # matplotlib's own ten colours come as near as 0.007
    assert (oklab(linear)[:, 0] > 0.4).all()  # on black
    assert (oklab(linear)[:, 0] < 0.9).all()  # on white


# embedding


def test_every_cell_has_the_colour_of_its_category_and_none_hides_another():
    rng = np.random.default_rng(0)
    x, label = rng.normal(size=(300, 2)), np.repeat(["B", "NK", "T"], 100)
    ax = plot.embedding(x, colour=label)
    points, colours = drawn(ax)
    names = legend(ax)
    assert list(names) == ["B", "NK", "T"]
    assert list(names.values()) == [c.upper() for c in PALETTE[:3]]
    rows = {tuple(p): lab for p, lab in zip(x.round(9), label, strict=True)}
    assert [names[rows[tuple(p)]] for p in points.round(9)] == colours
    # the last hundred drawn hold every category, not only the last one
    assert pd.Series(colours[-100:]).value_counts().between(15, 55).sum() == 3
    assert drawn(plot.embedding(x, colour=label))[1] == colours
    assert drawn(plot.embedding(x, colour=label, seed=1))[1] != colours
    assert ax.collections[0].get_rasterized()


def test_colours_of_the_data_object_are_taken():
    a = AnnData(np.zeros((4, 1)), obsm={"X_pca": np.eye(4)[:, :2]})
    a.obs["type"] = pd.Categorical(["T", "B", "T", "B"], categories=["T", "unused", "B"])
    a.uns["type_colors"] = ["#111111", "#222222", "#333333"]
    ax = plot.embedding(a, "pca", "type", title="both")
    assert legend(ax) == {"T": "#111111", "B": "#333333"}
    assert (ax.get_xlabel(), ax.get_title()) == ("pca 1", "both")
    assert ax.get_legend().get_title().get_text() == "type"
    with pytest.raises(SchemaError, match="Did you mean 'type'"):
        plot.embedding(a, "pca", "typo")
    with pytest.raises(SchemaError, match="X_pca"):
        plot.embedding(a, "X_scvi")


def test_small_categories_beyond_twenty_share_grey():
    label = np.repeat([f"t{i:02}" for i in range(25)], np.arange(25, 0, -1))
    ax = plot.embedding(np.random.default_rng(0).normal(size=(len(label), 2)), colour=label)
    names = legend(ax)
    assert list(names) == [f"t{i:02}" for i in range(20)] + ["5 others"]
    _, colours = drawn(ax)
    assert colours.count(GREY.upper()) == 5 + 4 + 3 + 2 + 1
    assert colours.count(names["t19"]) == 6
    rendered(ax.figure)


def test_cells_without_a_value_are_grey_and_lie_under_the_others():
    label = pd.Series(["a", None, "b", None] * 10)
    ax = plot.embedding(np.random.default_rng(0).normal(size=(40, 2)), colour=label)
    _, colours = drawn(ax)
    assert legend(ax)["no value"] == GREY.upper()
    assert colours[:20] == [GREY.upper()] * 20
    assert GREY.upper() not in colours[20:]


def test_numbers_get_a_scale():
    x = np.random.default_rng(0).normal(size=(50, 2))
    depth = pd.Series(np.arange(50.0), name="depth")
    depth[:5] = np.nan
    ax = plot.embedding(x, colour=depth)
    points, colours = drawn(ax)
    assert colours[:5] == [GREY.upper()] * 5
    at = [int(np.argmin(((x - p) ** 2).sum(1))) for p in points]
    viridis = mpl.colormaps["viridis"]
    assert colours[-1] == to_hex(viridis((at[-1] - 5) / 44)).upper()
    assert ax.get_legend() is None
    assert ax.figure.axes[1].get_ylabel() == "depth"


def test_names_are_no_formulas_and_long_ones_are_cut():
    label = np.array(["$a", r"b$\frac", "_c", "T cell " * 20] * 5)
    ax = plot.embedding(np.random.default_rng(0).normal(size=(20, 2)), colour=label, title="a$_b$")
    rendered(ax.figure)  # a formula that cannot be parsed would raise
    cut = next(n for n in legend(ax) if n.startswith("T cell"))
    assert {"$a", r"b$\frac", "_c"} < set(legend(ax))
    assert len(cut) == 30
    assert cut.endswith("…")


def test_given_axes_are_used_and_wrong_values_refused():
    x = np.random.default_rng(0).normal(size=(9, 2))
    ax = Figure().add_subplot()
    assert plot.embedding(x, ax=ax) is ax
    with pytest.raises(DataError, match="8 values to colour 9 cells"):
        plot.embedding(x, colour=["a"] * 8)
    with pytest.raises(DataError, match="all are missing"):
        plot.embedding(x, colour=[None] * 9)
    with pytest.raises(DataError, match="NaN"):
        plot.embedding(np.full((9, 2), np.nan))


@pytest.mark.slow
def test_umap_keeps_groups_apart_and_repeats_itself():
    pytest.importorskip("umap")
    rng = np.random.default_rng(0)
    label = np.repeat([0, 1, 2], 60)
    x = rng.normal(size=(180, 8)) + 12 * np.eye(8)[label]
    y = plot.umap_coordinates(x)
    assert y.shape == (180, 2)
    assert y.dtype == np.float32
    distance = np.linalg.norm(y[:, None] - y[None], axis=2)
    np.fill_diagonal(distance, np.inf)
    nearest = np.argsort(distance, axis=1)[:, :5]
    assert (label[nearest] == label[:, None]).all()
    np.testing.assert_array_equal(plot.umap_coordinates(x), y)
    assert torch.get_num_threads() == 1  # as the tests set it; numba sets OpenMP's
    assert not np.array_equal(plot.umap_coordinates(x, seed=1), y)
    ax = plot.embedding(x, colour=label.astype(str))
    assert ax.get_xlabel() == "UMAP 1"
    assert plot.umap_coordinates(x[:6]).shape == (6, 2)
    assert np.isfinite(plot.umap_coordinates(x[:, :1])).all()  # as an oracle of one label is


def test_without_umap_learn_it_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "umap", None)
    with pytest.raises(CapabilityError, match=r"pip install 'chreode\[bench\]'"):
        plot.embedding(np.random.default_rng(0).normal(size=(30, 3)))


def test_pyplot_and_settings_are_left_alone(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)  # importing it would now raise
    before = mpl.rcParams.copy()
    x = np.random.default_rng(0).normal(size=(30, 2))
    rendered(plot.embedding(x, colour=x[:, 0]).figure)
    rendered(plot.mean_variance(sp.csr_array(np.arange(12).reshape(4, 3))).figure)
    rendered(plot.history(two_phases()))
    rendered(plot.score_table(bench({"a": [0.5, 0.5, 0.5, 0.5]})).figure)
    assert dict.__eq__(mpl.rcParams, before)  # `==` would import pyplot


# history


def two_phases() -> pd.DataFrame:
    first = {"phase": "vae", "epoch": [0, 1, 2], "train_objective": [3.0, 2.0, 1.0]}
    first |= {"validation_objective": [3.5, 2.1, 2.4], "train_kl": [0.0, 0.5, 1.0], "lr": 1e-3}
    second = {"phase": "flow", "epoch": [0, 1], "train_objective": [9.0, 8.0], "seconds": 1.0}
    return pd.concat([pd.DataFrame(first), pd.DataFrame(second)], ignore_index=True)


def test_history_has_a_row_per_phase_and_a_panel_per_quantity():
    figure = plot.history(two_phases())
    shown = [ax for ax in figure.axes if ax.get_visible()]
    assert [ax.get_title() for ax in shown] == ["objective", "kl", "objective"]
    assert [ax.get_ylabel() for ax in shown] == ["vae", "", "flow"]
    lines = {line.get_label(): line.get_xydata().T.tolist() for line in shown[0].lines[:2]}
    assert lines["train"] == [[1, 2, 3], [3, 2, 1]]
    assert shown[0].lines[-1].get_xydata().tolist() == [[2, 2.1]]  # the lowest
    assert shown[2].lines[0].get_xydata().tolist() == [[1, 9], [2, 8]]
    rendered(figure)


def test_a_history_without_curves_is_refused():
    with pytest.raises(DataError, match="closed form"):
        plot.history(pd.DataFrame({"phase": ["fit"], "epoch": [0], "seconds": [0.1]}))


# score table


def bars(ax: Axes) -> list[float]:
    return [p.get_width() for p in ax.patches if p.get_gid() == "bar"]


def test_bars_are_raw_scores_whatever_else_is_in_the_table():
    values = {"PCA": [0.5, 0.25, 0.4, 3.0], "SCVI": [0.75, 0.125, 0.5, 2.0]}
    both = bars(plot.score_table(bench(values)))
    assert len(both) == 6  # Wasserstein has no scale of 0 to 1
    np.testing.assert_allclose(
        np.array(both) / both[0], np.array([0.75, 0.125, 0.5, 0.5, 0.25, 0.4]) / 0.75
    )
    alone = bars(plot.score_table(bench({"PCA": values["PCA"]})))
    np.testing.assert_allclose(alone, both[3:])


def test_small_scores_have_a_third_digit_and_no_zero_is_below_zero():
    values = {"a": [0.004, -0.001, 0.5, 0.004], "b": [0.021, 0.3, 12345.6, 0.16]}
    texts = {t.get_text() for t in plot.score_table(bench(values)).texts}
    assert {"0.02", "0.00", "0.30", "0.50", "1.2e+04", "0.004", "0.160"} <= texts
    assert not [text for text in texts if text.startswith("-0.00")]


def test_score_table_ranks_marks_and_says_what_is_absent():
    values = {
        "PCA": [0.5, 0.2, 0.4, 3.0],
        "worse": [0.1, 0.1, 0.1, 9.0],
        "better": [0.9, np.nan, 0.8, 1.0],
        "oracle": [1.0, 1.0, 1.0, 0.0],
    }
    ax = plot.score_table(bench(values, {"PCA": "baseline", "oracle": "ceiling"}))
    texts = {t.get_text(): t for t in ax.texts}
    height = {name: texts[name].get_position()[1] for name in values}
    assert sorted(height, key=height.__getitem__) == ["better", "PCA", "worse", "oracle"]
    assert texts["0.80"].get_fontweight() == "bold"  # the ceiling is not in the contest
    assert texts["0.40"].get_fontweight() == "normal"
    assert texts["9.00"].get_fontweight() == "normal"
    assert texts["–"].get_fontweight() == "normal"
    assert texts["PCA"].get_style() == "italic"
    assert texts["better"].get_style() == "normal"
    hollow = [p for p in ax.patches if p.get_gid() == "bar" and p.get_facecolor()[3] == 0]
    assert len(hollow) == 3
    assert {"bio", "batch", "total"} < set(texts)
    assert rendered(ax.figure).std() > 0


def test_controls_and_ceilings_are_never_bold():
    """They are real cells: that they are nearest to real cells is no feat."""
    roles = {"replay": "control", "oracle": "ceiling"}
    ax = plot.score_table(bench({"A": [0.4] * 4, "replay": [0.8] * 4, "oracle": [0.9] * 4}, roles))
    weight = {text.get_text(): text.get_fontweight() for text in ax.texts}
    assert weight["0.40"] == "bold"
    assert weight["0.80"] == weight["0.90"] == "normal"


def test_where_all_are_alike_none_is_bold():
    ax = plot.score_table(bench({"A": [0.0, 0.3, 0.3, 0.3], "B": [0.0, 0.2, 0.2, 0.2]}))
    weights = [text.get_fontweight() for text in ax.texts if text.get_text() == "0.00"]
    assert weights == ["normal"] * 2
    assert "bold" in [text.get_fontweight() for text in ax.texts if text.get_text() == "0.30"]


def test_a_long_note_stretches_no_picture():
    plain = bench({"A": [0.4] * 4, "B": [0.5] * 4})
    methods = plain.methods.copy()
    methods["notes"] = [["one of many words " * 40], []]
    ax = plot.score_table(dataclasses.replace(plain, methods=methods))
    note = next(text.get_text() for text in ax.texts if "many words" in text.get_text())
    assert note.count("\n") == 3
    assert note.endswith("…")


def test_names_of_methods_are_whole_and_their_notes_are_below():
    name = "replayed training cells of an earlier run"
    ax = plot.score_table(bench({name: [0.4] * 4, "PCA": [0.5] * 4}, {name: "control"}))
    ax.figure.canvas.draw()
    boxes = {t.get_text().replace("\n", " "): t.get_window_extent() for t in ax.texts}
    assert boxes[name].y0 >= boxes["control"].y1
    assert boxes["one seed"].y0 >= boxes[name].y1  # PCA ranks first
    assert boxes[name].x1 < boxes["0.40"].x0


def test_scores_beyond_the_scale_stay_in_their_cell():
    widths = bars(plot.score_table(bench({"a": [1.5, -0.5, 1.0, 0.0]})))
    assert widths[0] == widths[2]
    assert widths[1] == 0


# mean and variance


def test_moments_are_numpys_and_sparse_counts_stay_sparse():
    counts = np.random.default_rng(0).poisson(2.0, size=(40, 12))
    counts[:, 3] = 0
    ax = plot.mean_variance(sp.csr_matrix(counts), counts[:20], theta=2.0, names=("a", "b"))
    seen = np.arange(12) != 3
    np.testing.assert_allclose(
        ax.collections[0].get_offsets(),
        np.column_stack([counts.mean(0), counts.var(0, ddof=1)])[seen],
    )
    np.testing.assert_allclose(ax.collections[1].get_offsets()[:, 0], counts[:20].mean(0)[seen])
    poisson, binomial = (line.get_xydata() for line in ax.lines)
    np.testing.assert_allclose(poisson[:, 0], poisson[:, 1])
    np.testing.assert_allclose(binomial[:, 1], binomial[:, 0] + binomial[:, 0] ** 2 / 2)
    assert (ax.get_xscale(), ax.get_yscale()) == ("log", "log")
    # 80 GB if it were dense
    wide = sp.csr_array(
        (np.array([1.0, 2.0, 4.0]), ([0, 1, 99_999], [5, 5, 7])), shape=(100_000, 100_000)
    )
    assert len(plot.mean_variance(wide).collections[0].get_offsets()) == 2


def test_counts_without_variance_are_refused():
    with pytest.raises(DataError, match="No gene of data varies"):
        plot.mean_variance(np.ones((4, 3)))
    with pytest.raises(DataError, match="two or more"):
        plot.mean_variance(np.ones((1, 3)))


# dots


def blood() -> AnnData:
    """Three B cells, two T cells and one without a type; CD19 is of B cells, CD3E of T cells."""
    counts = [[8, 0, 2], [9, 0, 1], [0, 1, 9], [0, 6, 4], [0, 5, 0], [7, 7, 7]]
    cells = AnnData(sp.csr_matrix(counts, dtype=np.float32))
    cells.var_names = ["CD19", "CD3E", "$ACTB$"]
    cells.obs["type"] = ["B", "B", "B", "T", "T", ""]
    return cells


PLACES = ch.Schema(counts="X", label="obs/type")


def test_dots_are_shares_and_means_of_every_type_and_gene():
    cells = blood()
    ax, scale = plot.dot_plot(cells, PLACES, ["CD3E", "CD19"]).axes
    names = [
        [t.get_text() for t in ticks] for ticks in (ax.get_yticklabels(), ax.get_xticklabels())
    ]
    assert names == [["B", "T"], ["CD3E", "CD19"]]
    assert all(t.get_rotation() == 90 for t in ax.get_xticklabels())
    dots = ax.collections[0]
    assert dots.get_offsets().tolist() == [[0, 0], [1, 0], [0, 1], [1, 1]]
    np.testing.assert_allclose(dots.get_sizes() / AREA, [1 / 3, 2 / 3, 1, 0])
    x = np.log1p(1e4 * cells.X.toarray() / cells.X.sum(1).A)
    means = [x[:3, 1].mean(), x[:3, 0].mean(), x[3:5, 1].mean(), 0.0]
    np.testing.assert_allclose(dots.get_facecolors(), _SCALE(np.array(means) / max(means)))
    assert scale.get_ylabel() == "mean log-expression"
    assert scale.get_ylim()[1] == pytest.approx(max(means))
    sizes = [float(t.get_text().rstrip(" %")) / 100 for t in ax.figure.legends[0].get_texts()]
    drawn = [handle.get_markersize() ** 2 for handle in ax.figure.legends[0].legend_handles]
    np.testing.assert_allclose(drawn, AREA * np.array(sizes))
    rendered(ax.figure)


def test_generated_cells_have_the_types_genes_and_colours_of_real_ones():
    real, fake = blood(), blood()[:3].copy()
    fake.obs["type"] = ["B", "C", "C"]
    above, below, _ = plot.dot_plot(real, PLACES, beside=fake, names=("real", "VAE")).axes
    assert [ax.get_title(loc="left") for ax in (above, below)] == ["real", "VAE"]
    assert [t.get_text() for t in below.get_yticklabels()] == ["B", "T"]
    chosen = [t.get_text() for t in below.get_xticklabels()]
    assert chosen[0] == "CD19"  # of B, and then those of T
    assert set(chosen) == {"CD19", "CD3E", r"\$ACTB\$"}
    assert not below.collections[0].get_sizes()[3:].any()  # it has no T cells
    np.testing.assert_allclose(below.collections[0].get_sizes()[0], AREA)
    rendered(above.figure)


def test_dots_of_many_types_and_genes_stay_sparse_and_legible():
    n = 100_000  # 80 GB if it were dense
    rows = np.arange(50)
    cells = AnnData(sp.csr_matrix((np.ones(50, np.float32), (rows, rows)), shape=(n, n)))
    cells.obs["type"] = pd.Series(
        [f"type {i % 25:02} with a very long name" for i in range(n)]
    ).to_numpy()
    ax = plot.dot_plot(cells, PLACES).axes[0]
    assert len(ax.get_yticklabels()) == 20
    assert len(ax.get_xticklabels()) <= 40
    assert all(len(t.get_text()) <= 24 for t in ax.get_yticklabels())
    canvas = FigureCanvasAgg(ax.figure)
    canvas.draw()
    for ticks, side in ((ax.get_yticklabels(), "y"), (ax.get_xticklabels(), "x")):
        boxes = sorted(getattr(t.get_window_extent(), f"interval{side}").tolist() for t in ticks)
        assert all(a[1] <= b[0] for a, b in itertools.pairwise(boxes))


def test_dots_of_nothing_are_refused():
    cells = blood()
    with pytest.raises(ConfigError, match="no gene 'CD3'. Did you mean 'CD3E'"):
        plot.dot_plot(cells, PLACES, ["CD3"])
    with pytest.raises(SchemaError, match="needs label"):
        plot.dot_plot(cells, ch.Schema(counts="X"))
    with pytest.raises(DataError, match="No cell has a label"):
        plot.dot_plot(cells[5:], PLACES)
    with pytest.raises(DataError, match="cells of two types"):
        plot.dot_plot(cells[:3], PLACES)


@pytest.fixture(scope="module")
def moving():
    """Return a sparse model of two species over time, and its cells."""
    how = ch.simulate.Sampling(n_trajectories=4, n_times=15)
    cells = ch.simulate.simulate_system("predators", how, seed=0)
    schema = ch.Schema(expression="X", time="obs/time", trajectory="obs/trajectory")
    model = ch.PathReg(n_latent=2, match_steps=10, piece_steps=5, path_steps=5)
    return model.fit(cells, schema, seed=0, progress=False), cells


@pytest.mark.slow
def test_a_portrait_has_cells_by_time_and_paths_from_their_starts(moving):
    fitted, cells = moving
    ax = plot.phase_portrait(fitted, cells, paths=["path_2"])
    np.testing.assert_allclose(ax.collections[0].get_offsets(), fitted.embed(cells), atol=1e-5)
    np.testing.assert_array_equal(ax.collections[0].get_array(), cells.obs["time"])
    (path,) = [line for line in ax.lines if line.get_label() == "path_2"]
    along = fitted.module.place(torch.from_numpy(fitted.trajectory(start="path_2").X))
    np.testing.assert_allclose(path.get_xydata(), along, atol=1e-5)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*are held at its end")  # fits of a few steps wander
def test_paths_are_drawn_over_what_was_observed(moving):
    fitted, cells = moving
    figure = plot.paths(fitted, cells, ["predator"], most=2)
    (ax,) = [a for a in figure.axes if a.get_visible()]
    assert ax.get_title() == "predator"
    dots, line = ax.lines[:2]
    first = cells[cells.obs["trajectory"] == "path_0"]
    np.testing.assert_allclose(dots.get_ydata(), first.X[:, 1], rtol=1e-6)
    np.testing.assert_allclose(
        line.get_ydata(), fitted.trajectory(start="path_0").X[:, 1], rtol=1e-6
    )
    with pytest.raises(ConfigError, match="Did you mean 'prey'"):
        plot.paths(fitted, cells, ["pray"])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*are held at its end")
def test_paths_have_the_band_of_their_refits_and_are_dashed_without_a_gene():
    how = ch.simulate.Sampling(n_trajectories=3, n_times=15)
    cells = ch.simulate.simulate_system("predators", how, seed=0)
    schema = ch.Schema(expression="X", time="obs/time", trajectory="obs/trajectory")
    model = ch.NeuralODE(match_steps=10, piece_steps=5, path_steps=5, n_refits=3)
    fitted = model.fit(cells, schema, seed=0, progress=False)
    (ax,) = plot.paths(fitted, None, ["prey"], most=1, knockout="predator").axes
    path, without = ax.lines  # and no cells
    gone = fitted.trajectory(start="path_0", to={"knockout": "predator"})
    np.testing.assert_allclose(without.get_ydata(), gone.X[:, 0], rtol=1e-6)
    assert without.get_linestyle() == "--"
    (band,) = ax.collections
    refits = [dataclasses.replace(fitted, module=m) for m in fitted.module.members]
    each = np.stack([refit.trajectory(start="path_0").X[:, 0] for refit in refits])
    drawn = band.get_paths()[0].vertices
    at = path.get_xdata()[7]
    ends = drawn[np.isclose(drawn[:, 0], at), 1]
    np.testing.assert_allclose([ends.min(), ends.max()], [each[:, 7].min(), each[:, 7].max()])
    names = [text.get_text() for text in ax.figure.legends[0].get_texts()]
    assert names == ["path_0", "without predator"]
    rendered(ax.figure)


@pytest.mark.filterwarnings("ignore:.*are held at its end")
def test_the_path_of_cells_without_trajectories_is_drawn():
    how = ch.simulate.Sampling(n_trajectories=2, n_times=15)
    cells = ch.simulate.simulate_system("predators", how, seed=0)
    model = ch.NeuralODE(n_latent=2, match_steps=2, piece_steps=0, path_steps=0, hidden=(8,))
    fitted = model.fit(cells, ch.Schema(expression="X", time="obs/time"), progress=False)
    (ax, *_) = plot.paths(fitted, cells, ["prey"]).axes
    assert len(ax.lines) == 2
    with pytest.raises(ConfigError, match=r"as in genes=\['prey'\]"):
        plot.paths(fitted, cells, [])
    alike = cells.copy()
    alike.X[:] = 1.0
    flat = dataclasses.replace(model, n_latent=1).fit(cells, fitted.schema, progress=False)
    for wrong in ((fitted, alike), (flat, cells)):
        with pytest.raises(DataError, match="no plane to draw"):
            plot.phase_portrait(*wrong)
    with pytest.raises(SchemaError, match="no such path. Available: all cells"):
        fitted.trajectory(start="path_0")


def test_markers_of_a_method_that_is_not_there_are_refused():
    row = {"method": "VAE", "class": "B", "gene": "A", "real share": 1.0, "fake share": 0.2}
    table = pd.DataFrame([{**row, "cells": 9, "off share": 0.5}])
    for markers, said in ((table, "Did you mean 'VAE'"), (table[:0], "None is available")):
        with pytest.raises(ConfigError, match=said):
            plot.marker_shares(markers, "VAEE")


def test_edges_are_drawn_from_their_drivers():
    edges = pd.DataFrame(
        {"source": ["a", "b", "c"], "target": ["b", "a", "a"], "weight": [2.0, -1.0, 0.1]}
    )
    ax = plot.edge_matrix(edges, most=2)
    shown = np.asarray(ax.images[0].get_array())
    assert [t.get_text() for t in ax.get_yticklabels()] == ["a", "b"]
    assert shown[0, 1] == 2.0
    assert shown[1, 0] == -1.0
    ordered = plot.edge_matrix(edges, ["c", "a"])
    assert [t.get_text() for t in ordered.get_xticklabels()] == ["c", "a"]
    assert np.asarray(ordered.images[0].get_array())[0, 1] == 0.1
    ends = ordered.images[0].cmap([0.0, 0.5, 1.0])
    assert ends[0][2] > ends[0][0]  # blue represses
    assert ends[2][0] > ends[2][2]
    assert ends[:, 3].round(1).tolist() == [1.0, 0.0, 1.0]
    weak = ordered.images[0].cmap([0.4, 0.6])
    assert (weak[:, 3] > 0.3).all()  # a fifth of the strongest is still seen


def test_curves_have_the_means_of_every_method():
    curves = pd.DataFrame(
        {
            "method": ["A"] * 4 + ["B"] * 2, "strength": [0.1, 0.2, 0.1, 0.2, 0.1, 0.2],
            "held_out": [1.0, 2.0, 3.0, 4.0, 9.0, 9.0], "none": [0.0, 0.5, 0.2, 0.7, 0.0, 1.0],
        }
    )  # fmt: skip
    errors, zeros = plot.sparsity_curve(curves).axes
    assert errors.lines[0].get_ydata().tolist() == [2.0, 3.0]
    assert zeros.lines[1].get_ydata().tolist() == [0.0, 1.0]
    with pytest.raises(ConfigError, match="one strength only"):
        plot.sparsity_curve(curves[:1])
    (one, _) = plot.sparsity_curve(curves.assign(strength=0.0)).axes
    assert one.lines[0].get_ydata().tolist() == [2.5]


@pytest.fixture(scope="module")
def moved():
    """Return a fit of trajectories with long names, and its cells."""
    how = ch.simulate.Sampling(n_trajectories=5, n_times=12)
    cells = ch.simulate.simulate_system("predators", how, seed=0)
    cells.obs["trajectory"] = cells.obs["trajectory"].astype(str) + " of a lineage with a long name"
    schema = ch.Schema(expression="X", time="obs/time", trajectory="obs/trajectory")
    model = ch.NeuralODE(match_steps=5, piece_steps=0, path_steps=0, hidden=(8,))
    return model.fit(cells, schema, seed=0, progress=False), cells


def test_tables_of_something_else_are_refused():
    other = pd.DataFrame({"feature": ["CD8A"], "none": [0.5], "method": ["A"], "train_x": [1.0]})
    twice = pd.concat([other, other])
    for draw in (
        plot.edge_matrix,
        plot.sparsity_curve,
        plot.history,
        lambda table: plot.marker_shares(table, "A"),
    ):
        with pytest.raises(SchemaError, match="There is no column '.*'. This draws"):
            draw(twice)


def test_values_that_give_no_colour_are_refused():
    x = np.random.default_rng(0).normal(size=(6, 2))
    with pytest.raises(DataError, match="missing or infinite"):
        plot.embedding(x, colour=np.full(6, np.inf))
    ax = plot.embedding(x, colour=np.array([0.0, 1, 2, np.inf, -np.inf, np.nan]))
    assert (np.asarray(ax.collections[0].get_facecolors())[:3, :3] == to_rgb(GREY)).all()
    a = AnnData(np.zeros((6, 1)), obsm={"X_pca": x})
    a.obs["type"] = pd.Categorical(list("TBTBTB"))
    for wrong in (["red", "no colour"], "no colour", 3, [None, "red"], np.array([[1, 2], [3, 4]])):
        a.uns["type_colors"] = wrong
        with pytest.raises(DataError, match=r"uns\['type_colors'\] has .* no colour: remove it"):
            plot.embedding(a, "pca", "type")
    a.uns["type_colors"] = "red"  # of two categories: too few to be taken
    assert legend(plot.embedding(a, "pca", "type")) == dict(zip("BT", PALETTE, strict=False))


def test_labels_and_cells_must_be_as_many():
    counts = np.random.default_rng(0).poisson(2.0, size=(30, 8))
    with pytest.raises(DataError, match="29 labels for 30 cells"):
        plot.real_and_generated(counts, counts, (["a"] * 30, ["b"] * 29))
    for draw in (plot.real_and_generated, plot.zero_fractions):
        with pytest.raises(DataError, match="no cells to draw"):
            draw(counts, counts[:0])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*are held at its end")
def test_legends_stay_inside_their_picture(moved):
    fitted, cells = moved
    curves = pd.DataFrame({"method": ["A" * 60, "B"] * 2, "strength": [0.1, 0.1, 1, 1]})
    for figure in (
        plot.paths(fitted, cells, ["prey"], knockout="predator"),
        plot.paths(fitted, cells, ["prey", "predator"], knockout="predator"),
        plot.sparsity_curve(curves.assign(held_out=1.0, none=0.5)),
    ):
        rendered(figure)
        (box,) = (legend.get_window_extent() for legend in figure.legends)
        assert figure.bbox.x0 <= box.x0
        assert box.x1 <= figure.bbox.x1
        assert box.y1 <= figure.bbox.y1 + 1
        heights = [ax.get_window_extent().height for ax in figure.axes if ax.get_visible()]
        assert min(heights) > 0.4 * figure.bbox.height
    rendered(plot.paths(fitted, cells, ["prey"], most=0))
    ax = plot.phase_portrait(fitted, cells)
    rendered(ax.figure)
    assert ax.get_legend().get_window_extent().x1 <= ax.figure.bbox.x1


def test_numbers_on_dark_fields_are_white():
    row = {"method": "PCA", "classifier": "knn", "type": "B", "told": "B", "cells": 9}
    ax = ch.plot.confusion_matrix(pd.DataFrame([row, {**row, "told": "T", "cells": 1}]), "PCA")
    assert [text.get_color() == "white" for text in ax.texts] == [True, False]
