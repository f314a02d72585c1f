"""Two functions count as one only where they run the same code on the same captured values."""

from __future__ import annotations

import functools
import subprocess
import sys
import threading

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch

import chreode as ch
from chreode.bench.identity import identity

LIMIT = {"n": 1}


def helper(x):
    return x + 1


def captures(value):
    return lambda fitted, cells: value


def power(fitted, cells, sign=1, *, scale=2):
    return sign * scale


class Weighted:
    def __init__(self, weight):
        self.weight = weight

    def __call__(self, fitted, cells):
        return self.weight

    def method(self, fitted, cells):
        return -self.weight


def recursive(n):
    def down(k):
        return down(k - 1) + n if k else n

    return down


def in_code(text):
    """Return the function `f` of a module of the user's, as a notebook defines it."""
    made = {"__name__": "__main__"}
    exec(text, made)
    return made["f"]


def records(name):
    return np.array([(name * 20, 1.0)], dtype=[("gene", object), ("score", float)])


def noted(weight):
    return ad.AnnData(np.ones((2, 2)), uns={"weight": weight, "genes": records("a")})


PAIRS = [
    (captures(1), captures(2)),
    (captures(True), captures(1)),
    (captures("a"), captures(b"a")),
    (captures((1, 2)), captures([1, 2])),
    (captures([1, [2]]), captures([[1], 2])),
    (captures({"a": 1}), captures({"a": 2})),
    (captures({1, 2}), captures({1, 3})),
    (captures(np.arange(3)), captures(np.arange(3.0))),
    (captures(np.zeros((2, 3))), captures(np.zeros((3, 2)))),
    (captures(np.array(["a", None])), captures(np.array(["b", None]))),
    (captures(np.ma.array([1, 2], mask=[0, 1])), captures(np.ma.array([1, 2], mask=[0, 0]))),
    (captures(records("a")), captures(records("b"))),
    (captures(noted(1)), captures(noted(2))),
    (captures(torch.zeros(2)), captures(torch.ones(2))),
    (captures(pd.Series([1, 2])), captures(pd.Series([1, 2], index=["a", "b"]))),
    (captures(pd.Series(["b"], dtype=pd.CategoricalDtype(["a", "b"]))),
     captures(pd.Series(["b"], dtype=pd.CategoricalDtype(["b", "a"])))),
    (captures(range(2)), captures(range(3))),
    (captures(pd.DataFrame({"a": [1]})), captures(pd.DataFrame({"b": [1]}))),
    (captures(sp.eye(3)), captures(sp.eye(4))),
    (captures(ch.PCA(n_latent=2)), captures(ch.PCA(n_latent=3))),
    (captures(captures(1)), captures(captures(2))),
    (functools.partial(power, sign=1), functools.partial(power, sign=-1)),
    (functools.partial(power, sign=1), functools.partial(power, scale=1)),
    (functools.partial(power), power),
    (Weighted(1), Weighted(2)),
    (Weighted(1).method, Weighted(2).method),
    (Weighted(1).method, Weighted(1)),
    (recursive(1), recursive(2)),
    (np.log, np.exp),
    (np.mean, np.median),
    (functools.lru_cache(captures(1)), functools.lru_cache(captures(2))),
    (in_code("def f(a, b=1): return b"), in_code("def f(a, b=2): return b")),
    (in_code("def f(a, *, b=1): return b"), in_code("def f(a, *, b=2): return b")),
    (in_code("def f(a): return a.x"), in_code("def f(a): return a.y")),
    (in_code("def f(a): return f.k\nf.k = 1"), in_code("def f(a): return f.k\nf.k = 2")),
    (in_code("def f(a): return a + 1"), in_code("def f(a): return a - 1")),
    (in_code("def f(a): return [b + 1 for b in a]"), in_code("def f(a): return [b + 2 for b in a]")),
    (in_code("n = 1\ndef f(a): return n"), in_code("n = 2\ndef f(a): return n")),
    (in_code("n = 1\ndef f(a): return g()\ndef g(): return n"),
     in_code("n = 2\ndef f(a): return g()\ndef g(): return n")),
    (in_code("class C:\n  k = 1\ndef f(a): return C.k"), in_code("class C:\n  k = 2\ndef f(a): return C.k")),
    (in_code("class C:\n  def m(s): return 1\nf = C().m"),
     in_code("class C:\n  def m(s): return 2\nf = C().m")),
    (in_code("class B:\n  def m(s): return 1\nclass C(B): pass\nf = C().m"),
     in_code("class B:\n  def m(s): return 2\nclass C(B): pass\nf = C().m")),
    (in_code("class C:\n  @property\n  def p(s): return 1\ndef f(a): return C().p"),
     in_code("class C:\n  @property\n  def p(s): return 2\ndef f(a): return C().p")),
]  # fmt: skip


@pytest.mark.parametrize(("one", "other"), PAIRS)
def test_what_differs_anywhere_is_another(one, other):
    assert identity(one) == identity(one)
    assert identity(one) != identity(other)


@pytest.mark.parametrize(
    "value",
    [1.5, "a", (1, [2, {"b": {3}}]), np.arange(4), pd.DataFrame({"a": ["x", "y"]}), sp.eye(3),
     torch.ones(2), ch.PCA(n_latent=2), helper, np, np.log, torch.float32, Weighted(2)],
)  # fmt: skip
def test_equal_captures_are_the_same(value):
    import copy

    other = value if callable(value) or value is np else copy.deepcopy(value)
    assert identity(captures(value)) == identity(captures(other))


def test_equal_records_are_the_same_wherever_their_text_lies_in_memory():
    assert identity(captures(records("a"))) == identity(captures(records("a")))


def test_where_a_function_stands_does_not_matter():
    one, other = in_code("def f(a): return a + 1"), in_code("\n\n# moved\ndef f(a): return a + 1")
    assert identity(one) == identity(other)


@pytest.mark.slow
def test_another_process_finds_the_same():
    code = """
import numpy as np
from chreode.bench.identity import identity
names = {"a", "b", "c", "d"}
def f(fitted, cells): return [names, np.mean(cells), fitted in {"x", "y", "z"}]
print(identity(f))
"""
    told = {
        subprocess.run(
            [sys.executable, "-c", code], env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path)},
            capture_output=True, text=True, check=True,
        ).stdout
        for seed in ("1", "2")
    }  # fmt: skip
    assert len(told) == 1


@pytest.mark.parametrize("thing", [threading.Lock(), iter([1]), np.random.default_rng(0)])
def test_what_cannot_be_told_is_refused(thing):
    with pytest.raises(ch.ConfigError, match=type(thing).__name__):
        identity(captures(thing))
