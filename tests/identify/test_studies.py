"""Grids of runs: which runs there are, that they go on, and the paper's numbers beside them."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from scipy.stats import t

from chreode.errors import ConfigError
from chreode.identify import Setting, diversity, encoders, ratio, recovery
from chreode.identify.published import published_r2
from chreode.identify.study import named

BRIEF = Setting(n_steps=3, hidden=(8,), batch_size=64, n_negatives=7)


@pytest.fixture(autouse=True)
def _brief(monkeypatch):
    monkeypatch.setattr(recovery, "N_SETS", 1)
    monkeypatch.setattr(recovery, "_TEST", 200)


def test_diversity_asks_with_and_without_fixed_coordinates():
    study = diversity(
        ["identity", "linear"], fixed=(1, 3), samplers=["published"], seeds=[0, 1, 2], base=BRIEF
    )
    table = study.table()
    assert list(table.index) == [
        f"{mixing}, {how}"
        for mixing in ("identity", "linear")
        for how in (
            "none fixed, InfoNCE", "1 fixed (published), InfoNCE", "1 fixed (published), corrected",
            "all fixed, InfoNCE", "all fixed, corrected",
        )
    ]  # fmt: skip
    assert (table["seeds"] == 3).all()
    rows = study.rows[study.rows["run"] == table.index[1]]
    r2 = rows["r2"].to_numpy()
    assert table["r2"].iloc[1] == pytest.approx(r2.mean())
    half = t.ppf(0.975, 2) * r2.std(ddof=1) / math.sqrt(3)
    assert table["high"].iloc[1] - table["low"].iloc[1] == pytest.approx(2 * half)
    assert table["lowest"].iloc[1] == r2.min()
    assert table["published"].iloc[1] == 0.06
    np.testing.assert_allclose(study.rows["excess"], study.rows["loss"] - study.rows["identity"])
    assert study.rows["worst"].tolist() == [min(axes) for axes in study.rows["r2_axis"]]
    axes = study.axes()
    assert list(axes.columns) == ["axis 1", "axis 2", "axis 3"]
    np.testing.assert_allclose(axes.loc[table.index[1]], np.mean(rows["r2_axis"].tolist(), 0))


def test_other_studies_have_their_grids():
    study = ratio(["identity"], ratios=(0.0, 0.3), samplers=["theorem"], seeds=[0], base=BRIEF)
    assert list(study.table().index) == [
        "identity, 1 fixed (theorem), InfoNCE", "identity, 1 fixed (theorem), ratio 0.3",
    ]  # fmt: skip
    study = encoders(["spiral"], ratios=(1.0,), samplers=["theorem"], seeds=[0], base=BRIEF)
    assert list(study.table().index) == [
        "spiral, none fixed, InfoNCE", "spiral, none fixed, InfoNCE, inverse encoder",
        "spiral, 1 fixed (theorem), corrected", "spiral, 1 fixed (theorem), corrected, inverse encoder",
    ]  # fmt: skip


def test_a_study_goes_on_from_its_folder(tmp_path, monkeypatch):
    options = {"samplers": ["theorem"], "seeds": [0], "base": BRIEF, "into": tmp_path / "study"}
    first = diversity(["identity"], **options)

    def never(*_):
        raise AssertionError

    with monkeypatch.context() as patch:
        patch.setattr("chreode.identify.studies.recover", never)
        again = diversity(["identity"], **options)
    assert again.rows["loss"].tolist() == first.rows["loss"].tolist()
    assert first.points.keys() == again.points.keys()
    for name, (latents, _) in first.points.items():
        np.testing.assert_array_equal(again.points[name][0], latents)


def test_a_study_is_saved_as_json(tmp_path):
    study = diversity(["identity"], samplers=["theorem"], seeds=[0], base=BRIEF)
    saved = json.loads(study.save(tmp_path / "study.json").read_text())
    assert saved["kind"] == "diversity"
    assert [row["run"] for row in saved["rows"]] == study.rows["run"].tolist()
    assert saved["rows"][0]["loss"] == study.rows["loss"].iloc[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mixings": []}, "mixings is empty"),
        ({"samplers": []}, "samplers is empty"),
        ({"mixings": ["spirl"]}, "spiral"),
        ({"seeds": []}, "seed"),
        ({"fixed": [4]}, "n_fixed=4"),
        ({"samplers": ["theorm"]}, "theorem"),
        ({"mixings": ["spiral"], "base": Setting(n_latent=4)}, "n_latent=3"),
    ],
)
def test_bad_grids_are_refused_before_anything_runs(options, message):
    with pytest.raises(ConfigError, match=message):
        diversity(**{"mixings": ["identity"], "base": BRIEF, **options})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ratios": []}, "ratios is empty"),
        ({"n_fixed": 0}, "n_fixed=0 of 3 coordinates: expected 1 to 2"),
        ({"n_fixed": 3}, "n_fixed=3 of 3 coordinates: expected 1 to 2"),
    ],
)
def test_bad_sweeps_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        ratio(**{"mixings": ["identity"], "base": BRIEF, **options})


@pytest.mark.parametrize("share", [-0.1, 1.5, math.nan])
def test_shares_outside_of_0_to_1_are_refused(share):
    with pytest.raises(ConfigError, match="ratio"):
        ratio(["identity"], ratios=[share], base=BRIEF)


def test_an_inverse_encoder_of_the_mlp_is_refused():
    with pytest.raises(ConfigError, match="there is none for mixing='mlp'"):
        encoders(["mlp"], base=BRIEF)


#: Columns: identity, linear, mlp, patches, spiral.
PAPER = {
    0.0: (0.06, 0.05, 0.13, 0.25, 0.72), 0.1: (0.23, 0.29, 0.32, 0.65, 0.73),
    0.3: (0.23, 0.20, 0.55, 0.82, 0.80), 0.5: (0.58, 0.49, 0.54, 0.74, 0.82),
    0.9: (0.44, 0.46, 0.49, 0.68, 0.64), 1.0: (0.63, 0.65, 0.60, 0.63, 0.62),
}  # fmt: skip


def test_the_paper_s_numbers_are_those_of_the_facts():
    mixings = ("identity", "linear", "mlp", "patches", "spiral")
    for share, values in PAPER.items():
        for mixing, value in zip(mixings, values, strict=True):
            assert published_r2(Setting(mixing=mixing, n_fixed=1, ratio=share)) == value
    for mixing, value in zip(mixings, (1, 1, 1, 0.99, 1), strict=True):
        assert published_r2(Setting(mixing=mixing)) == value
    inverse = {"encoder": "inverse", "n_fixed": 1}
    assert published_r2(Setting(mixing="spiral", ratio=1.0, **inverse)) == 0.572
    assert published_r2(Setting(mixing="patches", ratio=0.5, **inverse)) == 0.819
    ten = {"n_latent": 10, "mixing": "monomials"}
    assert published_r2(Setting(n_fixed=9, **ten)) == 0.425
    assert published_r2(Setting(n_fixed=10, **ten)) == 0.086
    for untold in (
        Setting(n_fixed=1, ratio=0.2), Setting(n_fixed=2), Setting(kappa=5.0), Setting(mixing="monomials"),
        Setting(n_latent=4), Setting(encoder="inverse"), Setting(n_fixed=1, ratio=1.0, **ten),
    ):  # fmt: skip
        assert math.isnan(published_r2(untold))


def test_settings_have_names():
    assert named(Setting(mixing="mlp")) == "mlp, none fixed, InfoNCE"
    assert (
        named(Setting(n_fixed=1, sampler="published", ratio=0.3))
        == "identity, 1 fixed (published), ratio 0.3"
    )
    assert (
        named(Setting(encoder="inverse", n_fixed=3))
        == "identity, all fixed, InfoNCE, inverse encoder"
    )
