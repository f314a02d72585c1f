"""Coverage: simulated positives that resample a known share of a factor's range read so."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

import chreode as ch

COUNTS = ch.Schema(counts="X")


class World:
    """Cells of two continuous programmes and a class, of Poisson counts, with positives of any kind."""

    def __init__(self, n=400, g=120, shares=(0.25,) * 4, seed=0):
        rng = np.random.default_rng(seed)
        self.loadings = rng.normal(0, 0.6, (2, g))
        self.base, self.classes = rng.normal(0, 0.7, g), rng.normal(0, 0.7, (len(shares), g))
        self.one, self.two = rng.random((2, n))
        self.code = rng.choice(len(shares), n, p=shares)
        self.data = self.cells(self.one, self.code, rng)

    def cells(self, one, code, rng):
        two = self.two
        rate = np.exp(self.base + 3 * np.c_[one, two] @ self.loadings + self.classes[code])
        counts = rng.poisson(600 * rate / rate.sum(1, keepdims=True)).astype("f4")
        names = pd.Categorical([f"type {i}" for i in code])
        obs = pd.DataFrame(
            {"one": one, "two": two, "type": names}, index=[f"c{i}" for i in range(len(one))]
        )
        return ad.AnnData(sp.csr_matrix(counts), obs=obs)

    def positives(self, share, chance):
        """Return positives uniform in a window of the first programme, and of another class by chance."""

        def draw(cells, seed):
            rng = np.random.default_rng(seed)
            n = len(self.one)
            within = np.floor(self.one / share) if share else 0
            one = share * (within + rng.random(n)) if share else self.one
            code = np.where(rng.random(n) < chance, rng.permutation(self.code), self.code)
            return self.cells(one, code, rng)

        return draw


@pytest.fixture(scope="module")
def world():
    return World()


@pytest.mark.parametrize("share", [0, 0.25, 0.5, 1])
def test_the_share_that_positives_resample_is_read(world, share):
    found = ch.identify.coverage(
        world.positives(share, share), world.data, ["one", "two", "type"], schema=COUNTS, n_views=6
    ).table()["coverage"]
    assert found["one"] == pytest.approx(share, abs=0.05)
    assert found["type"] == pytest.approx(share, abs=0.05)
    assert found["two"] == pytest.approx(0, abs=0.08)
