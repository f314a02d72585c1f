"""Labels by neighbours and by a linear probe: against brute force, calibration, novelty, small cases."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from scipy.spatial.distance import cdist
from scipy.stats import kstest
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier

from chreode.errors import DataError
from chreode.metrics.classifiers import HeldOut, LinearProbe, NearestLabels

BOTH = pytest.mark.parametrize("classifier", [NearestLabels, LinearProbe])


def overlapping(n, seed, apart=1.2, n_labels=3):
    """Types of other sizes whose centres are `apart`, in four batches."""
    rng = np.random.default_rng(seed)
    codes = rng.choice(n_labels, n, p=np.arange(1, n_labels + 1) / sum(range(n_labels + 1)))
    groups = rng.integers(4, size=n)
    centres = apart * np.eye(n_labels, 4)
    return centres[codes] + rng.normal(size=(n, 4)), codes, groups


def calibration_error(probabilities, codes, bins=10):
    """Expected calibration error: |accuracy − confidence| over bins of confidence."""
    confidence, right = probabilities.max(1), probabilities.argmax(1) == codes
    at = np.minimum((confidence * bins).astype(int), bins - 1)
    return sum(
        abs(right[at == b].mean() - confidence[at == b].mean()) * (at == b).mean()
        for b in np.unique(at)
    )


def brute_force(x, codes, n_labels, k, groups):
    """Votes and mean distances of reference cells by the cells of other groups."""
    distances = cdist(x, x)
    distances[groups[:, None] == groups] = np.inf
    nearest = np.argsort(distances, axis=1)[:, :k]
    votes = np.stack([(codes[nearest] == c).mean(1) for c in range(n_labels)], axis=1)
    fewer = np.round(k * np.isfinite(distances).mean(1)).astype(int)
    return votes, np.array([np.sort(d)[:n].mean() for d, n in zip(distances, fewer, strict=True)])


def of_others(x, codes, groups):
    """Mahalanobis distance of each cell to the nearest mean of the types in the other groups."""
    found = np.zeros(len(x))
    for g in np.unique(groups):
        held, learned, y = x[groups == g], x[groups != g], codes[groups != g]
        means = np.stack([learned[y == c].mean(0) for c in np.unique(y)])
        within = np.cov((learned - means[y]).T, bias=True)
        distances = cdist(held, means, "mahalanobis", VI=np.linalg.inv(within))
        found[groups == g] = distances.min(1)
    return found


@pytest.mark.parametrize("grouped", [False, True])
def test_neighbours_are_those_of_brute_force(grouped):
    x, codes, groups = overlapping(300, 0)
    fitted = NearestLabels.fit(x, codes, 3, k=7, groups=groups if grouped else None)
    votes, distances = brute_force(x, codes, 3, 7, groups if grouped else np.arange(300))
    np.testing.assert_allclose(fitted.spacing, np.sort(distances), rtol=1e-6)
    own, shares = np.arange(300), np.bincount(codes) / 300
    loss = minimize_scalar(
        lambda w: -np.log((1 - w) * votes[own, codes] + w * shares[codes]).mean(),
        bounds=(1 / 301, 300 / 301), method="bounded",
    )  # fmt: skip
    assert 0.02 < fitted.weight < 0.98
    assert fitted.weight == pytest.approx(loss.x, abs=1e-4)

    new, _, _ = overlapping(200, 1)
    plain = KNeighborsClassifier(7, algorithm="brute").fit(x, codes).predict_proba(new)
    expected = (1 - fitted.weight) * plain + fitted.weight * shares
    np.testing.assert_allclose(fitted.probabilities(new), expected, atol=1e-12)
    spacing = np.sort(cdist(new, x), 1)[:, :7].mean(1)
    rank = (distances < spacing[:, None]).sum(1) / 301
    np.testing.assert_allclose(fitted.novelty(new), rank, atol=1e-12)


def test_the_probe_is_the_regression_of_scikit_learn_at_another_temperature():
    x, codes, _ = overlapping(500, 0)
    x = 100 + x * [1, 10, 0.1, 5]
    fitted, new = LinearProbe.fit(x, codes, 3), 100 + overlapping(200, 1)[0] * [1, 10, 0.1, 5]
    scale = np.sqrt(x.var(0).mean())  # one for all, as small components are mostly noise
    plain = LogisticRegression(max_iter=5000).fit((x - x.mean(0)) / scale, codes)
    logits = plain.decision_function((new - x.mean(0)) / scale)
    ours = np.log(fitted.probabilities(new))
    contrast = [[1, -1, 0], [0, 1, -1]]
    ratio = (ours @ np.transpose(contrast)) / (logits @ np.transpose(contrast))
    np.testing.assert_allclose(ratio, ratio[0, 0], rtol=1e-6)


def test_novelty_of_the_probe_is_the_distance_to_the_nearest_mean():
    x, codes, _ = overlapping(400, 0)
    fitted, new = LinearProbe.fit(x, codes, 3), overlapping(100, 1)[0]
    means = np.stack([x[codes == c].mean(0) for c in range(3)])
    within = np.cov((x - means[codes]).T, bias=True)
    expected = cdist(new, means, "mahalanobis", VI=np.linalg.inv(within)).min(1)
    rank = np.searchsorted(fitted.spacing, expected) / (len(fitted.spacing) + 1)
    np.testing.assert_allclose(fitted.novelty(new), rank, atol=2 / 400)
    assert len(fitted.spacing) == 400


def test_novelty_of_the_probe_is_a_rank_among_cells_that_it_has_not_learned_from():
    x, codes, groups = overlapping(60, 0)  # so few that it matters
    fitted, expected = LinearProbe.fit(x, codes, 3, groups=groups), of_others(x, codes, groups)
    np.testing.assert_allclose(fitted.spacing, np.sort(expected), rtol=1e-6)
    own = cdist(x @ fitted.whiten, fitted.centres).min(1)
    assert np.abs(np.sort(own) - fitted.spacing).max() > 0.1


def test_a_direction_without_spread_counts_as_a_thousandth_of_the_widest():
    """One along it is as far as 1,000 standard deviations of the widest: large, and finite."""
    x = np.column_stack([3 * np.random.default_rng(0).normal(size=200), np.zeros(200)])
    codes = (x[:, 0] > 0).astype(int)
    within = np.sqrt(np.mean([x[codes == c, 0].var() for c in codes]))
    fitted = LinearProbe.fit(x, codes, 2)
    lengths = np.linalg.norm(np.eye(2) @ fitted.whiten, axis=1)
    np.testing.assert_allclose(lengths, [1 / within, 1 / (1e-3 * within)], rtol=1e-6)


@BOTH
def test_cells_that_stand_for_several_count_so_often_in_novelty_and_nowhere_else(classifier):
    x, codes, groups = overlapping(120, 0)
    often, new = np.array([9, 1, 4])[codes], overlapping(50, 1)[0]
    fitted = classifier.fit(x, codes, 3, groups=groups, sample_weight=often)
    plain = classifier.fit(x, codes, 3, groups=groups)
    np.testing.assert_array_equal(fitted.probabilities(new), plain.probabilities(new))
    if classifier is NearestLabels:
        own, far = (
            brute_force(x, codes, 3, 11, groups)[1],
            np.sort(cdist(new, x), 1)[:, :11].mean(1),
        )
    else:
        own, far = of_others(x, codes, groups), cdist(new @ plain.whiten, plain.centres).min(1)
    expected = (own < far[:, None]) @ often / often.sum()
    np.testing.assert_allclose(fitted.novelty(new), expected, atol=2 / 120)
    assert np.abs(plain.novelty(new) - expected).max() > 0.05


def test_probabilities_are_calibrated_where_plain_votes_are_not():
    x, codes, _ = overlapping(1500, 0, n_labels=4, apart=0.5)
    new, truth, _ = overlapping(4000, 1, n_labels=4, apart=0.5)
    plain = KNeighborsClassifier(11).fit(x, codes).predict_proba(new)
    assert calibration_error(plain, truth) > 0.09
    for classifier in (NearestLabels, LinearProbe):
        found = classifier.fit(x, codes, 4).probabilities(new)
        np.testing.assert_allclose(found.sum(1), 1)
        assert calibration_error(found, truth) < 0.03


def in_batches(n, n_batches, seed):
    """Types whose centre is another in every batch, and narrow within it."""
    rng = np.random.default_rng(seed)
    codes, groups = rng.integers(3, size=n), rng.integers(n_batches, size=n)
    centres = 1.5 * np.eye(3, 4)[:, None] + rng.normal(size=(3, n_batches, 4))
    return centres[codes, groups] + 0.1 * rng.normal(size=(n, 4)), codes, groups


def test_groups_make_the_calibration_hold_in_new_batches():
    x, codes, groups = in_batches(1500, 25, 0)
    new, truth, _ = in_batches(3000, 200, 1)
    within, across = (NearestLabels.fit(x, codes, 3, groups=g) for g in (None, groups))
    assert calibration_error(within.probabilities(new), truth) > 0.2  # sure, as in its own batch
    assert calibration_error(across.probabilities(new), truth) < 0.09
    assert kstest(within.novelty(new), "uniform").statistic > 0.9
    assert kstest(across.novelty(new), "uniform").statistic < 0.2
    probe = LinearProbe.fit(x, codes, 3, groups=groups)
    assert calibration_error(probe.probabilities(new), truth) < 0.05


@pytest.mark.parametrize("n_batches", [None, 4])
@pytest.mark.parametrize("classifier", [NearestLabels, LinearProbe])
def test_cells_held_out_tell_how_far_new_cells_lie_where_the_reference_was_learned_from(
    classifier, n_batches
):
    cells = in_batches(3000, n_batches or 1, 0)
    (x, codes, groups), (held_x, held_codes, held_groups) = zip(
        *((v[:1500], v[1500:2500]) for v in cells), strict=True
    )
    new = in_batches(3000, 200, 1)[0] if n_batches else cells[0][2500:]
    noise = np.random.default_rng(2).normal(size=x.shape)
    farther = x + (0.2 if n_batches else 0.5) * noise  # as views push cells apart
    own = groups if n_batches else None
    held = HeldOut(held_x, held_codes, held_groups if n_batches else None)
    right = classifier.fit(farther, codes, 3, groups=own, held_out=held)
    assert kstest(right.novelty(new), "uniform").statistic < (0.2 if n_batches else 0.1)
    without = classifier.fit(farther, codes, 3, groups=own)
    # by cells of the same batches, where there are others
    wrong = classifier.fit(farther, codes, 3, held_out=held._replace(groups=None))
    wrong = wrong if n_batches else without
    assert kstest(wrong.novelty(new), "uniform").statistic > 0.4
    few = HeldOut(*(None if v is None else v[:19] for v in held))
    np.testing.assert_array_equal(
        classifier.fit(farther, codes, 3, groups=own, held_out=few).spacing, without.spacing
    )
    # cells of a type that the reference lacks (elsewhere) tell nothing; a batch held out whole does
    alien = HeldOut(held.x + 9, np.full(len(held.x), 3), held.groups)
    apart = HeldOut(held.x, held.codes, None if own is None else held.groups + 9)
    for other, n in ((alien, 0), (apart, len(held.x))):
        parts = zip(held, other, strict=True)
        both = HeldOut(*(None if a is None else np.concatenate([a, b]) for a, b in parts))
        found = classifier.fit(farther, codes, 4, groups=own, held_out=both)
        assert len(found.spacing) == len(held.x) + n
    if n_batches:  # a type that its own batch alone has
        only = held._replace(codes=np.where(held.groups == 0, 3, held.codes))
        own_type = np.where(groups == 0, 3, codes)
        found = classifier.fit(farther, own_type, 4, groups=own, held_out=only)
        assert len(found.spacing) == (held.groups > 0).sum()
    # probabilities stay as they are
    np.testing.assert_array_equal(right.probabilities(new), without.probabilities(new))


def test_distances_of_cells_held_out_are_those_to_other_batches():
    cells = in_batches(600, 4, 0)
    (x, codes, groups), held = (
        tuple(v[part] for v in cells) for part in (slice(400), slice(400, None))
    )
    found = NearestLabels.fit(x, codes, 3, groups=groups, held_out=HeldOut(*held)).spacing
    expected = []
    for one, _, batch in zip(*held, strict=True):
        far = np.sort(np.linalg.norm(x[groups != batch] - one, axis=1))
        expected.append(far[: round(11 * (groups != batch).mean())].mean())
    np.testing.assert_allclose(found, np.sort(expected), rtol=1e-9)
    probe = LinearProbe.fit(x, codes, 3, groups=groups, held_out=HeldOut(*held)).spacing
    expected = []
    for batch in range(4):
        others, theirs = x[groups != batch], codes[groups != batch]
        means = np.stack([others[theirs == c].mean(0) for c in range(3)])
        inverse = np.linalg.inv(np.cov((others - means[theirs]).T, bias=True))
        mine = held[0][held[2] == batch]
        expected += [*cdist(mine, means, "mahalanobis", VI=inverse).min(1)]
    np.testing.assert_allclose(probe, np.sort(expected), rtol=1e-6)


@pytest.mark.parametrize(("shift", "against"), [(0, 0.02), (3, 0.5)])
def test_where_batches_differ_more_than_types_the_commonest_is_told_against_all_votes(
    shift, against
):
    rng = np.random.default_rng(0)
    codes, groups = (rng.random(600) < 0.1).astype(int), rng.integers(4, size=600)
    x = rng.normal(size=(600, 2)) / 2
    x[:, 0] += 3 * codes + shift * groups
    old = groups != 2
    fitted = NearestLabels.fit(x[old], codes[old], 2, groups=groups[old])
    votes = KNeighborsClassifier(11).fit(x[old], codes[old]).predict_proba(x[~old])
    told = fitted.probabilities(x[~old]).argmax(1)
    overturned = told != votes.argmax(1)
    assert overturned.mean() > against if shift else overturned.mean() < against
    assert (told[votes[:, 1] == 1] == (0 if shift else 1)).all()
    assert (votes[:, 1] == 1).any()


def test_an_overconfident_probe_is_cooled():
    rng = np.random.default_rng(0)  # as many coordinates as cells can be told apart by anything
    x, codes = rng.normal(size=(120, 60)), rng.integers(2, size=120)
    new, truth = rng.normal(size=(2000, 60)), rng.integers(2, size=2000)
    plain = LogisticRegression(max_iter=5000).fit(x, codes).predict_proba(new)
    assert calibration_error(plain, truth) > 0.25
    assert calibration_error(LinearProbe.fit(x, codes, 2).probabilities(new), truth) < 0.08


@BOTH
@pytest.mark.parametrize("grouped", [False, True])
def test_novelty_is_uniform_for_cells_like_the_reference_and_high_for_others(classifier, grouped):
    x, codes, groups = overlapping(3000, 0)
    fitted = classifier.fit(x, codes, 3, groups=groups if grouped else None)
    new, _, _ = overlapping(3000, 1)
    assert kstest(fitted.novelty(new), "uniform").statistic < 0.05
    assert (fitted.novelty(new + np.array([0, 0, 0, 8])) > 0.99).mean() > 0.97


@BOTH
def test_a_type_of_one_batch_alone_is_not_judged(classifier):
    x, codes, groups = overlapping(800, 0, apart=6)
    groups = np.where(codes == 2, 0, groups)  # half of all cells, and 6 away from any other
    fitted = classifier.fit(x, codes, 3, groups=groups)
    new, truth, _ = overlapping(800, 1, apart=6)
    assert (fitted.probabilities(new).argmax(1) == truth).mean() > 0.98
    assert (fitted.novelty(np.array([[0.0, 0.0, 0.0, 9.0]])) > 0.99).all()
    assert len(fitted.spacing) == (codes != 2).sum()


@BOTH
def test_types_that_no_two_batches_share_are_judged_one_by_one(classifier):
    x, codes, _ = overlapping(300, 0)
    apart, alone = (classifier.fit(x, codes, 3, groups=g) for g in (codes, None))
    new = overlapping(50, 1)[0]
    np.testing.assert_array_equal(apart.probabilities(new), alone.probabilities(new))
    np.testing.assert_array_equal(apart.novelty(new), alone.novelty(new))


@BOTH
def test_small_references_have_answers(classifier):
    x = np.array([[0.0, 0.0], [0.1, 0.0], [5.0, 5.0]])
    three = classifier.fit(
        x, np.array([0, 0, 2]), 4
    )  # fewer than k, a type of one, labels without cells
    found = three.probabilities(x)
    assert found.argmax(1)[:2].tolist() == [0, 0]
    np.testing.assert_allclose(found.sum(1), 1)
    assert (found[:, [1, 3]] == 0).all()
    assert (three.novelty(x) < 0.99).all()  # nobody can be sure by so few

    one = classifier.fit(x, np.ones(3, int), 2)
    np.testing.assert_allclose(one.probabilities(x), [[0, 1]] * 3)

    each = classifier.fit(x, np.arange(3), 3)
    assert np.isfinite(each.probabilities(x)).all()
    assert (each.novelty(x) == 0).all()

    constant = classifier.fit(np.ones((40, 2)), np.repeat([0, 1], [10, 30]), 2)
    np.testing.assert_allclose(constant.probabilities(x), [[0.25, 0.75]] * 3, atol=0.05)
    assert (constant.novelty(np.ones((1, 2))) == 0).all()
    assert (constant.novelty(x) > 0.9).all()


@BOTH
@pytest.mark.parametrize(
    ("x", "codes", "said"),
    [
        (np.zeros((1, 2)), [0], "two cells"),
        (np.zeros((0, 2)), [], "two cells"),
        (np.full((3, 2), np.nan), [0, 1, 0], "not finite"),
        (np.zeros((3, 2)), [0, -1, 0], "0 … 1"),
        (np.zeros((3, 2)), [0, 2, 0], "0 … 1"),
    ],
)
def test_what_cannot_be_learned_from_is_refused(classifier, x, codes, said):
    with pytest.raises(DataError, match=said):
        classifier.fit(x, np.array(codes, int), 2)


@BOTH
def test_a_fit_is_its_arrays(classifier):
    x, codes, groups = overlapping(200, 0)
    fitted = classifier.fit(x.astype(np.float32), codes, 3, groups=groups)
    again, new = classifier(**vars(fitted)), overlapping(50, 1)[0].astype(np.float32)
    for one, other in zip(fitted.judge(new), again.judge(new), strict=True):
        np.testing.assert_array_equal(one, other)
    np.testing.assert_array_equal(fitted.judge(new)[1], fitted.novelty(new))
