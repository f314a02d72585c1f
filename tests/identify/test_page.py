"""Sentences and pages of studies hold for any rows, and saved rows are read again."""

import json
import re
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from identify.outcomes import of, outcome, study, violated

from chreode.errors import StoreError
from chreode.identify import Setting, Study
from chreode.identify.study import named
from chreode.trials.trial import Outcome

# sentences


def said(kind: str, runs: list[tuple[Setting, int, Outcome]]) -> str:
    return "\n".join(study(kind, runs).answer())


def test_the_answer_names_what_is_recovered_and_what_is_not():
    runs = [(of(m), 0, outcome(of(m), r2)) for m, r2 in (("identity", 0.995), ("spiral", 0.93))]
    told = said("diversity", runs)
    assert "mean R² is 0.99 or more for identity. It is lower for others: 0.930 (spiral)" in told
    assert "1 of 2 runs agree with the paper" in told
    assert "The paper has 1.00 for spiral, none fixed, InfoNCE." in told
    assert "There is one seed of each run" in told
    none = said("diversity", [(of(), 0, outcome(of(), 0.4))])
    assert "no mean R² reaches 0.99: it is 0.400 (identity)" in none


def test_samplers_are_compared_with_the_paper_by_the_one_that_it_used():
    runs = []
    for sampler, r2 in (("theorem", 0.995), ("published", 0.631)):
        for ratio, value in ((0.0, 0.08), (1.0, r2)):
            setting = violated(sampler=sampler, ratio=ratio)
            runs += [(setting, seed, outcome(setting, value + 0.001 * seed)) for seed in (0, 1)]
    theorem, published, *_ = study("diversity", runs).answer()
    assert "the corrected loss has 0.996 (identity)" in theorem
    assert "Recovered, with 0.99 or more: identity by the corrected loss." in theorem
    assert "other way alone, and has 0.06 for InfoNCE and 0.63 for the corrected loss" in theorem
    assert "No mean reaches 0.99." in published
    assert "2 of 2 runs agree with the paper" in published
    assert "their R² is 0.33 at most" in published
    assert "Fits with more" not in published
    runs = [(s := violated("spiral", ratio=0.0), 0, outcome(s, 0.97))]
    assert "Fits with more had a higher loss than these maps have: spiral." in said(
        "diversity", runs
    )


@pytest.mark.parametrize(
    ("n_fixed", "n_latent", "most"), [(1, 3, "0.33"), (2, 4, "0.50"), (3, 4, "0.75")]
)
def test_infonce_can_keep_the_share_of_what_is_fixed(n_fixed, n_latent, most):
    setting = of(n_fixed=n_fixed, n_latent=n_latent)
    told = said("diversity", [(setting, 0, outcome(setting, 0.1))])
    assert f"their R² is {most} at most" in told
    for other in (replace(setting, ratio=1.0), replace(setting, n_fixed=n_latent)):
        assert "at most" not in said("diversity", [(other, 0, outcome(other, 0.1))])


@pytest.mark.parametrize(
    ("values", "verdict"),
    [
        ((0.53, 0.57, 0.61), "agrees"),  # 0.06 off, and the interval is from 0.47 to 0.67
        ((0.66, 0.661, 0.662), "agrees"),  # off the interval, and near
        ((0.56, 0.561, 0.562), "disagrees"),
        ((0.3, 0.6, 0.99), None),  # the interval holds nearly anything
        ((0.66,), "agrees"),  # one seed has no interval, and is near or not
        ((0.5,), "disagrees"),
    ],
)
def test_runs_agree_with_the_paper_if_they_are_near_or_their_interval_holds_it(values, verdict):
    setting = violated(sampler="published")  # the paper has 0.63
    told = said("diversity", [(setting, i, outcome(setting, v)) for i, v in enumerate(values)])
    assert (f"It {verdict} with the paper, within 0.05 or the 95 % interval" in told) == bool(
        verdict
    )
    assert ("cannot be told: seeds differ too much" in told) == (verdict is None)
    assert ("The paper has 0.63" in told) == (verdict == "disagrees")


@pytest.mark.parametrize(
    ("excess", "kernel", "of_fixed", "sampler", "ratio", "words"),
    [
        (0.003, 0.6, 0.02, "theorem", 1.0, "This is how a fold looks"),
        (0.003, 0.99, 0.66, "theorem", 1.0, "This is how a twist looks"),
        (0.003, 0.7, 0.51, "theorem", 1.0, "has many optima"),  # turned more wildly, u is not lost
        (0.3, 0.6, 0.02, "theorem", 1.0, None),  # it has a higher loss: it has not learned
        (0.003, 0.6, 0.02, "published", 1.0, None),  # the identity has not the lowest loss
        (0.003, 0.6, 0.02, "theorem", 0.0, None),  # nor has it here
    ],
)
def test_what_costs_the_loss_nothing_is_named(excess, kernel, of_fixed, sampler, ratio, words):
    setting = violated(sampler=sampler, ratio=ratio)
    found = outcome(setting, 0.66, excess=excess, kernel=kernel)
    found.row["r2_axis"] = [of_fixed, 0.7, 0.7]
    told = said("diversity", [(setting, 3, found)])
    assert ("equals the identity's" in told) == (words is not None)
    for each in ("This is how a fold looks", "This is how a twist looks", "has many optima"):
        assert (each in told) == (each == words)
    if words:
        assert f"{named(setting)}, seed 3 (0.660)" in told


@pytest.mark.parametrize(("n_fixed", "ratio"), [(0, 1.0), (3, 1.0), (1, 0.5), (0, 0.0)])
def test_other_losses_and_supports_have_no_folds(n_fixed, ratio):
    setting = of(n_fixed=n_fixed, ratio=ratio)
    assert "equals the identity's" not in said(
        "diversity", [(setting, 0, outcome(setting, 0.5, excess=0.0))]
    )


@pytest.mark.parametrize(("worst", "told"), [(0.79, True), (0.81, False)])
def test_a_map_is_bent_by_its_worst_axis(worst, told):
    found = outcome(violated(), 0.93, excess=0.0)
    found.row["r2_axis"] = [1.0, 1.0, worst]
    assert ("has many optima" in said("diversity", [(violated(), 0, found)])) == told


@pytest.mark.parametrize(
    ("n_fixed", "excess", "named_"), [(0, 0.26, 1), (0, 0.01, 0), (1, 0.26, 1), (1, -0.4, 0)]
)
def test_fits_that_did_not_find_the_optimum_are_named(n_fixed, excess, named_):
    setting = of("spiral", n_fixed=n_fixed)
    told = said("diversity", [(setting, 2, outcome(setting, 0.67, excess=excess))])
    assert told.count(f"{named(setting)}, seed 2 (0.260 nats above)") == named_
    assert ("Widen the network (hidden" in told) == bool(named_)


def test_seeds_that_disagree_and_fits_that_improve_are_named():
    values = ((0, 0.66, "still improving"), (1, 0.99, "rested"))
    runs = [(violated(), s, outcome(violated(), v, state=w)) for s, v, w in values]
    told = said("diversity", [*runs, (violated(), 2, Outcome(failed="lost"))])
    assert f"no mean is typical: {named(violated())} (0.660 to 0.990)" in told
    assert "1 of 2 fits was still improving" in told
    assert "one seed" not in told


def test_the_best_ratio_is_open_where_seeds_overlap():
    values = {0.0: (0.05, 0.06), 0.5: (0.5, 0.93), 1.0: (0.9, 0.95)}
    runs = [
        (violated(ratio=r), seed, outcome(violated(ratio=r), v))
        for r, of_seeds in values.items()
        for seed, v in enumerate(of_seeds)
    ]
    told = said("ratio", runs)
    assert "R² is highest at a ratio of 1, with 0.925; InfoNCE, a ratio of 0, has 0.055" in told
    assert "Seeds at 0.5 reach as high, so the best ratio is open" in told
    assert "In the paper" not in told


def test_no_ratio_is_the_best_where_none_beats_the_start():
    runs = [(s := violated(ratio=r), 0, outcome(s, r2)) for r, r2 in ((0.0, 0.49), (0.5, 0.3))]
    told = said("ratio", runs)  # the encoder before training has 0.45
    assert "no ratio recovers more than an encoder before training" in told
    assert "highest at" not in told


def test_encoders_are_compared_pair_by_pair():
    runs = [
        (s := of(m, encoder=encoder), 0, outcome(s, r2))
        for m, pair in (
            ("identity", (0.995, 0.8)),
            ("linear", (0.5, 0.99)),
            ("spiral", (0.9, 0.86)),
        )
        for encoder, r2 in zip(("mlp", "inverse"), pair, strict=True)
    ]
    told = said("encoders", runs)
    assert (
        "0.995 and 0.800 (identity), 0.500 and 0.990 (linear) and 0.900 and 0.860 (spiral)" in told
    )
    assert (
        "The inverse encoder is better for linear; it is worse for identity; both are within 0.05 for spiral."
        in told
    )


@pytest.mark.parametrize(("low", "word"), [(0.55, "seeds of both overlap"), (0.72, "is better")])
def test_an_encoder_is_not_better_where_seeds_overlap(low, word):
    values = {"mlp": (0.5, 0.7), "inverse": (low, 0.95)}
    runs = [
        (s := of(encoder=encoder), seed, outcome(s, r2))
        for encoder, of_seeds in values.items()
        for seed, r2 in enumerate(of_seeds)
    ]
    assert f"{word} for identity." in said("encoders", runs).lower()


def test_runs_that_recover_no_more_than_before_training_are_named():
    runs = [(s := violated(ratio=r), 0, outcome(s, r2)) for r, r2 in ((0.0, 0.48), (1.0, 0.6))]
    told = said("diversity", runs)
    assert "Encoders before training have as much or more than these runs, within 0.05: " in told
    assert f"{named(violated(ratio=0.0))} (0.480, untrained 0.450)." in told


# saved studies


def test_a_saved_study_is_read_as_it_was(tmp_path):
    runs = [(s := violated(ratio=r), 0, outcome(s, 0.6)) for r in (0.0, 1.0)]
    runs.append((of("linear", n_fixed=2), 0, Outcome(failed="The loss is nan.")))
    made = study("diversity", runs)
    again = Study.load(made.save(tmp_path / "rows.json"))
    pd.testing.assert_frame_equal(again.rows, made.rows, check_like=True)
    assert again.answer() == made.answer()
    assert again.about == made.about
    again.report(tmp_path / "page.html")


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"kind": "other"}, "kind is none of diversity, ratio, encoders"),
        ({"rows": [{}]}, "KeyError"), ({"rows": 3}, "TypeError"), ({"about": 3}, "TypeError"),
        ({"kappa": -1}, "kappa"), ({"r2": "high"}, "could not convert"), ({"r2_axis": [0.1]}, "3 values"),
        ({"state": "new"}, "new"), ({"seed": "one"}, "invalid literal"),
        ({"seed": float("inf")}, "OverflowError"), ({"rows": []}, "no row of a run that succeeded"),
        ({"failed": "It failed."}, "no row of a run that succeeded"),
    ],
)  # fmt: skip
def test_what_is_no_study_is_refused(change, why, tmp_path):
    made = study("diversity", [(violated(), 0, outcome(violated(), 0.6))])
    path = made.save(tmp_path / "rows.json")
    content = json.loads(path.read_text())
    content |= {k: v for k, v in change.items() if k in content}
    if "rows" not in change:
        content["rows"][0] |= {k: v for k, v in change.items() if k not in content}
    path.write_text(json.dumps(content))
    with pytest.raises(StoreError, match=why):
        Study.load(path)


@pytest.mark.parametrize("change", [{}, {"seed": 1, "kappa": 2.0}])
def test_rows_of_one_name_must_be_of_one_run(change, tmp_path):
    made = study("diversity", [(violated(), 0, outcome(violated(), 0.6))])
    path = made.save(tmp_path / "rows.json")
    content = json.loads(path.read_text())
    content["rows"].append(content["rows"][0] | change)
    path.write_text(json.dumps(content))
    with pytest.raises(StoreError, match="of the same name are of different runs"):
        Study.load(path)


# pages


@pytest.mark.parametrize("kind", ["diversity", "ratio", "encoders"])
def test_pages_hold_for_one_seed_a_failed_run_and_other_dimensions(kind, tmp_path):
    base = [of(n_latent=4), of(n_latent=4, n_fixed=1), of(n_latent=4, n_fixed=1, ratio=1.0)]
    runs = [(setting, 0, outcome(setting, 0.5)) for setting in base[1:]]
    runs.append((of("linear", n_latent=4, n_fixed=2), 0, Outcome(failed="The loss is nan.")))
    runs.append((of("linear", n_latent=4, n_fixed=4), 0, outcome(base[0], 0.2)))
    made = study(kind, runs)
    page = made.report(tmp_path / "page.html").read_text(encoding="utf-8")
    assert "failed: The loss is nan." in page
    assert "There is one seed of each run" in page
    assert "Of 4 coordinates the first three are shown" in page
    assert "sinh" not in page  # the formula of three dimensions
    assert page == made.report(tmp_path / "again.html").read_text(encoding="utf-8")
    summary = made.summary()
    assert summary.shape[1] + 1 <= 6
    assert summary.loc[named(base[1])].iloc[0] == "0.500"


def test_the_page_states_scales_and_exact_values(tmp_path):
    runs = [(of(), seed, outcome(of(), 0.99 + 0.001 * seed)) for seed in (0, 1, 2)]
    made = study("diversity", runs)
    page = made.report(tmp_path / "page.html").read_text(encoding="utf-8")
    assert (
        "Uniformity of an even sphere is -2.080 in 3 dimensions, which is −4 + ln(sinh 4 / 4)"
        in page
    )
    assert "The angle error is from 0 to 2" in page
    low, high = re.search(r"0\.991 \((\S+) to (\S+)\)", made.summary().iloc[0, 0]).groups()
    half = 4.302653 * 0.001 / np.sqrt(3)  # Student's t with two degrees of freedom
    assert float(low) == pytest.approx(0.991 - half, abs=6e-4)
    assert float(high) == pytest.approx(0.991 + half, abs=6e-4)
