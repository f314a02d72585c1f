"""Boxes and R^n, anisotropic positives, and two modalities: what is recovered, with controls."""

from __future__ import annotations

import math

import pytest

from chreode.errors import ConfigError
from chreode.identify import further
from chreode.identify.further import (
    AnisotropicSetting,
    ModalSetting,
    SpaceSetting,
    recover_anisotropic,
    recover_in_space,
    recover_shared,
)

SMALL = {"hidden": (64, 64), "batch_size": 256, "lr": 3e-3}


@pytest.mark.slow
def test_axes_of_a_box_are_recovered_with_p_of_1():
    row, _ = recover_in_space(
        SpaceSetting(power=1.0, mixing="linear", n_latent=2, n_steps=1500, **SMALL)
    )
    assert row["r2"] > 0.97
    assert row["mcc"] > 0.95


@pytest.mark.slow
def test_axes_of_a_normal_space_may_be_turned():
    settings = SpaceSetting(
        space="normal", power=2.0, scale=0.3, mixing="linear", n_latent=2, n_steps=600, **SMALL
    )
    rows = [recover_in_space(settings, seed)[0] for seed in range(3)]
    assert min(row["r2"] for row in rows) > 0.95
    assert min(row["mcc"] for row in rows) < 0.93


@pytest.mark.slow
def test_the_order_of_precisions_is_recovered():
    setting = AnisotropicSetting(
        precision=(5.0, 10.0, 20.0, 40.0), mixing="identity", n_steps=1500, **SMALL
    )
    row, _ = recover_anisotropic(setting)
    assert row["precision"] == pytest.approx(setting.precision, rel=0.1)
    assert row["r2"] > 0.99
    assert sorted(row["matched"]) == [0, 1, 2, 3]


@pytest.mark.slow
def test_what_both_modalities_show_is_recovered_and_nothing_else():
    sizes = {"mixing": "linear", "n_steps": 500, **SMALL}
    row, _ = recover_shared(ModalSetting(n_shared=2, n_private=2, **sizes))
    assert row["shared"] > 0.9
    assert row["private"] < 0.1 < row["private_untrained"]
    # a control: the same four latents, all of which are shared
    row, _ = recover_shared(ModalSetting(n_shared=4, n_private=0, **sizes))
    assert row["shared"] > 0.8
    assert "private" not in row


BRIEF = {"n_steps": 5, "hidden": (8,), "batch_size": 16}


@pytest.mark.parametrize(
    ("run", "setting"),
    [
        (recover_in_space, SpaceSetting(**BRIEF)),
        (recover_in_space, SpaceSetting(space="laplace", **BRIEF)),
        (recover_anisotropic, AnisotropicSetting(**BRIEF)),
        (recover_shared, ModalSetting(**BRIEF)),
    ],
)
def test_the_same_seed_gives_the_same_bits(run, setting, monkeypatch):
    monkeypatch.setattr(further, "_TEST", 400)
    one, two, other = run(setting, 0), run(setting, 0), run(setting, 1)
    assert one == two
    assert one[0]["loss"] != other[0]["loss"]
    assert all(math.isfinite(v) for v in one[0].values() if isinstance(v, float))


@pytest.mark.parametrize(
    ("cls", "options", "message"),
    [
        (AnisotropicSetting, {"precision": (3.0,)}, "give one for each of 2 coordinates or more"),
        (AnisotropicSetting, {"precision": (3.0, 0.0)}, "precision"),
        (AnisotropicSetting, {"precision": (3.0, -1.0)}, "precision"),
        (AnisotropicSetting, {"precision": (3.0, math.nan)}, "precision"),
        (AnisotropicSetting, {"precision": (3.0, 1e9)}, "precision"),
        (AnisotropicSetting, {"precision": ()}, "give one for each"),
        (SpaceSetting, {"space": "bx"}, "box"),
        (SpaceSetting, {"power": 0.5}, "power"),
        (SpaceSetting, {"scale": 0.0}, "scale"),
        (SpaceSetting, {"scale": 1e9}, "scale"),
        (SpaceSetting, {"scale": math.nan}, "scale"),
        (SpaceSetting, {"mixing": "lin"}, "linear"),
        (AnisotropicSetting, {"mixing": "lin"}, "linear"),
        (ModalSetting, {"n_shared": 0}, "n_shared"),
        (ModalSetting, {"temperature": 0.0}, "temperature"),
        (ModalSetting, {"mixing": "mlpp"}, "mlp"),
    ],
)
def test_bad_settings_are_refused_at_once(cls, options, message):
    with pytest.raises(ConfigError, match=message):
        cls(**options)
