"""`rank` in its two forms: how much each feature matters, and which drives which.

The models are 32 and 17 lines: Fisher's F of each gene between types (a marker panel, with the share of
random halves of the cells that choose the gene too), and correlations of genes. Cells: 3k PBMC.
"""

from __future__ import annotations

import json
from typing import ClassVar

import anndata as ad
import mudata
import numpy as np
import pytest
import torch
from sklearn.feature_selection import f_classif

import chreode as ch
from chreode.commands.app import main
from chreode.config import config, param
from chreode.learn import Exact, Phase
from chreode.model import Model
from chreode.module import Module
from chreode.ranking import Edges, Scores

FILE = "pbmc3k/pbmc3k_2700.h5ad"
ROLES = ch.Schema(counts="X", label="obs/cell_type")


class PanelModule(Module):
    """F of every gene, and how often it is among the best of a half of the cells."""

    def __init__(self, n_genes, n_best):
        super().__init__()
        self.n_best = n_best
        self.register_buffer("score", torch.zeros(n_genes, dtype=torch.float64))
        self.register_buffer("confidence", torch.zeros(n_genes, dtype=torch.float64))

    def solve(self, batches, rng):
        x = torch.cat([batch.log_expression() for batch in batches()]).double()
        y = torch.cat([batch["label"] for batch in batches()])
        self.score.copy_(fisher(x, y))
        for _ in range(20):
            half = torch.randperm(len(x))[: len(x) // 2]
            self.confidence[fisher(x[half], y[half]).topk(self.n_best).indices] += 1
        self.confidence /= 20

    def rank(self):
        return Scores(self.score, self.confidence)


def fisher(x, y):
    """Return the variance of the means of classes by that within them, of every column."""
    types = [x[y == k] for k in y.unique()]
    between = sum(len(part) * (part.mean(0) - x.mean(0)).square() for part in types)
    within = sum((part - part.mean(0)).square().sum(0) for part in types)
    return (between / (len(types) - 1)) / (within / (len(x) - len(types)))


@config
class Panel(Model):
    """Toy."""

    needs: ClassVar = ("counts", "label")
    n_best: int = param(30, "Genes of a panel.")

    def build(self, spec):
        return PanelModule(spec.n_features("counts"), self.n_best)

    def phases(self):
        return [Phase(Exact())]


class CorrelationModule(Module):
    """Correlations of genes."""

    def __init__(self, n):
        super().__init__()
        self.register_buffer("weight", torch.zeros(n, n))

    def solve(self, batches, rng):
        self.weight.copy_(torch.corrcoef(torch.cat([b.log_expression() for b in batches()]).T))

    def rank(self):
        return Edges(self.weight, torch.full_like(self.weight, torch.nan))


@config
class Correlation(Model):
    """Toy."""

    needs: ClassVar = ("counts",)

    def build(self, spec):
        return CorrelationModule(spec.n_features("counts"))

    def phases(self):
        return [Phase(Exact())]


@pytest.fixture(scope="module")
def pbmc(real):
    cells = ad.read_h5ad(real(FILE))[::2].copy()
    cells = cells[~cells.obs["cell_type"].astype(str).isin(["", "nan"])].copy()
    return cells[:, np.asarray((cells.X > 0).sum(0)).ravel() > 30].copy()


@pytest.fixture(scope="module")
def panel(pbmc):
    return Panel().fit(pbmc, ROLES)


def log_expression(cells):
    x = cells.X.toarray().astype(np.float64)
    return np.log1p(x * 1e4 / x.sum(1, keepdims=True))


@pytest.mark.slow
def test_scores_are_those_of_scikit_learn_and_name_the_markers(pbmc, panel):
    table = panel.rank()
    assert table.columns.tolist() == ["feature", "score", "confidence"]
    assert len(table) == pbmc.n_vars
    assert (table["score"].diff().dropna() <= 0).all()
    f, _ = f_classif(log_expression(pbmc), pbmc.obs["cell_type"].astype(str))
    found = table.set_index("feature")["score"].reindex(pbmc.var_names)
    np.testing.assert_allclose(found, f, rtol=1e-3)
    assert {"LYZ", "NKG7", "CD79A", "S100A9"} < set(table["feature"][:30])
    assert table["confidence"].between(0, 1).all()
    assert table["confidence"][:10].mean() > 0.9
    assert table["confidence"][100:].mean() < 0.05


def test_scores_are_written_beside_the_features_of_the_data(pbmc, panel):
    other = pbmc[:, ::-1].copy()
    other.var_names = ["absent", *other.var_names[1:]]
    table = panel.rank(other).set_index("feature")["score"]
    written = other.var["panel_score"]
    assert written.dtype == np.float32
    assert np.isnan(written.iloc[0])
    np.testing.assert_allclose(written.iloc[1:], table.reindex(other.var_names[1:]), rtol=1e-6)
    assert json.loads(other.uns["chreode"]["panel_score"])["model"] == "panel"


def test_scores_go_to_the_modality_that_has_the_features(pbmc):
    with mudata.set_options(pull_on_update=False):
        both = mudata.MuData({"rna": pbmc[:, :300].copy(), "other": pbmc[:, 300:310].copy()})
    both.obs["cell_type"] = both["rna"].obs["cell_type"]
    fitted = Panel().fit(both, ROLES.with_(counts="rna:X"))
    table = fitted.rank(both).set_index("feature")["score"]
    found = both["rna"].var["panel_score"]
    np.testing.assert_allclose(found, table.reindex(both["rna"].var_names), rtol=1e-6)


def test_edges_are_the_other_form_of_the_same_answer(pbmc):
    few = pbmc[:, :40].copy()
    few = few[np.asarray(few.X.sum(1)).ravel() > 0].copy()
    fitted = Correlation().fit(few, ROLES)
    table = fitted.rank(few)
    assert table.columns.tolist() == ["source", "target", "weight", "confidence"]
    r = np.corrcoef(log_expression(few).T)
    np.fill_diagonal(r, 0)
    at = [few.var_names.get_indexer(table[end]) for end in ("source", "target")]
    np.testing.assert_allclose(table["weight"], r[at[0], at[1]], atol=1e-4)
    assert (table["weight"].abs().diff().dropna() <= 0).all()
    np.testing.assert_allclose(few.var["correlation_score"], np.abs(r).sum(1), rtol=1e-3)


def test_the_command_prints_either_form(pbmc, panel, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("chreode.commands.paths.load_model", lambda *_: panel)
    assert main(["rank", "run", "-n", "3", "-o", str(tmp_path / "panel.csv"), "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert [row["feature"] for row in shown] == panel.rank()["feature"][:3].tolist()
    assert len((tmp_path / "panel.csv").read_text().splitlines()) == pbmc.n_vars + 1


@pytest.mark.usefixtures("as_users_have_it")
def test_scores_are_written_to_cells_in_memory_alone(panel):
    with pytest.raises(ch.ConfigError, match="AnnData in memory"):
        panel.rank("pbmc.h5ad")
