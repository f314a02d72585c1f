"""Simulated cells with positives of any kind, of which the truth is known."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp

import chreode as ch

COUNTS, VALUES = ch.Schema(counts="X"), ch.Schema(expression="X")


class World:
    """Cells of two continuous programmes and a class, with positives of any kind.

    `kind` says what is measured: Poisson "counts", or values with "fresh" noise, or with the "own" noise of
    each cell in its positives too.
    """

    def __init__(self, n=600, g=200, shares=(0.25,) * 4, kind="counts", seed=0):
        rng = np.random.default_rng(seed)
        self.loadings, self.kind = rng.normal(0, 0.6, (2, g)), kind
        self.base, self.classes = rng.normal(0, 0.7, g), rng.normal(0, 0.7, (len(shares), g))
        self.one, self.two = rng.random((2, n))
        self.code = rng.choice(len(shares), n, p=shares)
        self.noise = rng.normal(0, 0.5, (n, g))
        self.data = self.cells(self.one, self.code, rng, self.noise)

    def cells(self, one, code, rng, noise):
        rate = self.base + 2 * np.c_[one, self.two] @ self.loadings + self.classes[code]
        if self.kind == "counts":
            share = np.exp(rate) / np.exp(rate).sum(1, keepdims=True)
            values = sp.csr_matrix(rng.poisson(600 * share).astype("f4"))
        else:
            values = (rate + noise).astype("f4")
        types = pd.Categorical([f"type {i}" for i in code])
        names = [f"cell {i}" for i in range(len(one))]
        obs = pd.DataFrame({"one": one, "two": self.two, "type": types}, index=names)
        return ad.AnnData(values, obs=obs)

    def positives(self, share, chance):
        """Return positives uniform in a window of the first programme, and of another class by chance."""

        def draw(cells, seed):
            rng = np.random.default_rng(seed)
            n = len(self.one)
            one = share * (np.floor(self.one / share) + rng.random(n)) if share else self.one
            code = np.where(rng.random(n) < chance, rng.permutation(self.code), self.code)
            fresh = rng.normal(0, 0.5, self.noise.shape)
            return self.cells(one, code, rng, self.noise if self.kind == "own" else fresh)

        return draw
