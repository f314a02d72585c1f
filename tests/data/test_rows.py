"""Cells chosen by a condition: it is read, never run."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

import chreode as ch
from chreode.data.rows import rows_where

OBS = pd.DataFrame(
    {
        "type": pd.Categorical(["NK", "B", None, "nan"]),
        "n counts": [500, 20, 700, 900],
        "score": [0.5, np.nan, -1.0, 2.0],
        "kept": [True, True, False, True],
        "leiden": pd.Categorical(["0", "1", "2", "0"]),
        "times": pd.array([1, 2, None, 2**60 + 1], dtype="Int64"),
        "passed": pd.array([True, None, False, True], dtype="boolean"),
        "doublet": [False, None, True, False],
        "text": pd.array(["x", None, "y", "z"], dtype="string"),
        "mixed": ["x", 1, None, 2.0],
        "nothing": None,
    },
    index=list("abcd"),
)


@pytest.mark.parametrize(
    ("condition", "expected"),
    [
        ('obs.type == "NK"', "a"),
        ('obs.type != "nan"', "abc"),
        ('obs.type != "nan" and not missing(obs.type)', "ab"),
        ('obs.type in ["NK", "B"] or obs["n counts"] >= 900', "abd"),
        ('obs.type not in ("NK",)', "bcd"),
        ("20 < obs['n counts'] <= 700", "ac"),
        ("obs.score > -2", "acd"),
        ("obs.score == obs.score", "acd"),
        ("obs.kept", "abd"),
        ("not obs.kept", "c"),
        ("obs.kept == True", "abd"),
        ('obs.leiden in ["0", "1"]', "abd"),
        ('obs.mixed in ["x"] or obs.mixed == 2', "ad"),
        # a cell without a value is different from every value, whatever the type of its column
        ("obs.score != 2", "abc"),
        ("obs.times != 2", "acd"),
        ("obs.times not in [1, 2]", "cd"),
        (f"obs.times in [{2**60 + 1}, {2**60}]", "d"),
        ("obs.times < 2 or obs.times >= 2", "abd"),
        ("obs.passed", "ad"),
        ("not obs.passed", "bc"),
        ("obs.passed != True", "bc"),
        ("obs.passed == False", "c"),
        ("obs.doublet", "c"),
        ('obs.text != "x"', "bcd"),
        ("obs.text != obs.type", "abcd"),
        ("obs.text < obs.type", ""),
        ('obs.nothing != "x"', "abcd"),
        ("obs.nothing == 3", ""),
    ],
)
def test_conditions_choose_cells(condition, expected):
    assert "".join(OBS.index[rows_where(condition, OBS)]) == expected


@pytest.mark.parametrize(
    ("condition", "why"),
    [
        ("obs.typ == 'NK'", "no column 'typ' in obs. Did you mean 'type'"),
        ("type == 'NK'", "'type' is no value"),
        ("obs.type", "is no condition"),
        ("obs.type = 'NK'", "cannot be read"),
        ("obs.type == 3", "compares text with numbers"),
        ("obs.score > 'a'", "compares text with numbers"),
        ("obs.leiden in [0, 1]", 'compares text with numbers. Text stands in quotes, as "0"'),
        ("obs.leiden not in ['0', 1]", "compares text with numbers"),
        ("obs.score not in ['1']", "compares text with numbers"),
        ("obs.mixed > 0", "cannot be compared"),
        (f"obs.score < {10**400}", "cannot be compared"),
        ("obs.score in obs.times", "is no list"),
        ("3 < 4", "names no column"),
        ("__import__('os').system('true')", "is no condition"),
        ("obs.type.__class__ == 'x'", "is no column"),
        ("obs.type == 'a' if obs.kept else obs.kept", "is no condition"),
        ("(lambda: obs)()", "is no condition"),
        ("obs.score in range(3)", "is no list"),
        ("", "cannot be read"),
        ("(" * 5000, "cannot be read"),
        ("not " * 5000 + "obs.kept", "cannot be read"),
    ],
)
def test_what_is_no_condition_is_refused_with_an_example(condition, why):
    with pytest.raises(ch.SchemaError, match=why) as refused:
        rows_where(condition, OBS)
    assert "obs" in str(refused.value)


def test_a_fit_takes_a_condition(cells, schema, quick):
    text = 'obs.batch != "batch_0" and obs.age < 40'
    mask = ((cells.obs["batch"] != "batch_0") & (cells.obs["age"] < 40)).to_numpy()
    one, other = (quick(ch.PCA).fit(cells, schema, rows=rows) for rows in (text, mask))
    assert one.provenance["cells"] == mask.sum()
    np.testing.assert_array_equal(one.embed(cells), other.embed(cells))
