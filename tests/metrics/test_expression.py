"""Differential expression against SciPy, gene by gene."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp
from scipy import stats

from chreode.errors import DataError
from chreode.metrics.expression import differential_expression


@pytest.fixture
def cells():
    rng = np.random.default_rng(0)
    rate = np.exp(rng.normal(size=(3, 30)))
    labels = np.array(list("abc"))[rng.choice(3, 120, p=[0.6, 0.3, 0.1])]
    counts = rng.poisson(rate[[ord(v) - 97 for v in labels]])
    counts[:, 0] = 0
    return np.log1p(counts / counts.sum(1, keepdims=True) * 1e4), labels


def rows(x, labels, group, method):
    table = differential_expression(sp.csr_matrix(x), labels, method=method)
    return table[table.group == group].sort_values("gene")


@pytest.mark.parametrize("group", ["a", "b", "c"])
def test_rank_sums_are_scipys(cells, group):
    x, labels = cells
    found = rows(x, labels, group, "wilcoxon")
    inside = labels == group
    expected = stats.mannwhitneyu(
        x[inside], x[~inside], axis=0, method="asymptotic", use_continuity=False
    )
    np.testing.assert_allclose(found.p[1:], expected.pvalue[1:], rtol=1e-9)
    n, m = inside.sum(), (~inside).sum()
    assert ((found.score[1:] > 0).to_numpy() == (expected.statistic[1:] > n * m / 2)).all()
    assert np.isnan(found.score.iloc[0])  # never seen


@pytest.mark.parametrize("group", ["a", "b", "c"])
def test_t_is_welchs_with_the_rest_counted_as_the_group(cells, group):
    x, labels = cells
    found = rows(x, labels, group, "t")
    a, b = x[labels == group], x[labels != group]
    expected = stats.ttest_ind_from_stats(
        a.mean(0), a.std(0, ddof=1), len(a), b.mean(0), b.std(0, ddof=1), min(len(a), len(b)),
        equal_var=False,
    )  # fmt: skip
    np.testing.assert_allclose(found.score[1:], expected.statistic[1:], rtol=1e-7)
    np.testing.assert_allclose(found.p[1:], expected.pvalue[1:], rtol=1e-6)


def test_p_values_are_adjusted_within_a_group(cells):
    x, labels = cells
    found = rows(x, labels, "b", "wilcoxon")
    expected = stats.false_discovery_control(found.p.fillna(1))
    np.testing.assert_allclose(found.p_adjusted, expected)


def test_fold_changes_are_of_mean_counts_per_10000(cells):
    x, labels = cells
    found = rows(x, labels, "c", "t")
    level = np.expm1(x)
    expected = np.log2(level[labels == "c"].mean(0)[1:] / level[labels != "c"].mean(0)[1:])
    np.testing.assert_allclose(found.log2_fold_change[1:], expected, rtol=1e-6)


def test_unlabelled_cells_do_not_count(cells):
    x, labels = cells
    more = np.concatenate([x, x[:7] * 3])
    told = np.concatenate([labels.astype(object), [None] * 7])
    assert rows(more, told, "a", "t").equals(rows(x, labels, "a", "t"))


def test_a_group_of_one_is_refused(cells):
    x, labels = cells
    labels = labels.copy()
    labels[labels == "c"] = "a"
    labels[0] = "z"
    with pytest.raises(DataError, match="fewer than two"):
        differential_expression(x, labels)


@pytest.mark.parametrize("form", [sp.csr_matrix, sp.csc_matrix, sp.csr_array, sp.csc_array])
def test_every_form_of_rows_and_columns_is_taken(cells, form):
    x, labels = cells
    expected = differential_expression(sp.csr_matrix(x), labels)
    assert differential_expression(form(x), labels).equals(expected)
    with pytest.raises(TypeError, match="sparse matrix .CSR or CSC."):
        differential_expression(sp.coo_matrix(x), labels)


def test_names_and_labels_are_one_for_each(cells):
    x, labels = cells
    for wrong, said in (
        ({"x": x, "labels": labels[1:]}, "one label per cell"),
        ({"x": x, "labels": labels, "genes": ["a"]}, "give one for each"),
        ({"x": x * np.nan, "labels": labels}, "NaN or infinite"),
    ):
        with pytest.raises(DataError, match=said):
            differential_expression(**wrong)
