"""How cells of a type differ in a feature: the spread and the share of cells that have it."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp
import torch

import chreode as ch
from chreode.data.batch import SparseRows
from chreode.distributions import NegativeBinomial
from chreode.models.parts.within import Expected, WithinTypes


def chunks(*tensors, size=700):
    """Return what goes over these cells once."""

    def over():
        for x, *rest in zip(*(t.split(size) for t in tensors), strict=True):
            yield Expected(SparseRows.of(x), *rest)

    return over


def test_a_type_has_its_own_theta_where_its_counts_say_so():
    """Shifts are found where there are many counts, and stay near 0 where there are few."""
    torch.manual_seed(0)
    types = torch.tensor([0] * 2000 + [1] * 2000 + [2] * 2 + [-1] * 500)
    truth = torch.tensor([1.5, -1.0, 2.0, 3.0])[types, None].expand(-1, 3)
    log_mean = torch.tensor([4.0, 40.0, 0.001]).log().expand(len(types), 3)
    x = NegativeBinomial(log_mean.exp(), truth.exp()).sample()
    within = WithinTypes(3, 3)
    said = log_mean.log_softmax(1)
    within.fit(chunks(x, types, said, log_mean, torch.zeros_like(x), torch.zeros_like(x)))
    torch.testing.assert_close(within.shift[0, :2], torch.full((2,), 1.5), atol=0.25, rtol=0)
    torch.testing.assert_close(within.shift[1, :2], torch.full((2,), -1.0), atol=0.25, rtol=0)
    assert within.shift[:, 2].abs().max() < 0.1  # hardly a count
    assert within.shift[2].abs().max() < 1.5  # two cells
    untyped = torch.tensor([-1, -1])
    assert not within.shift[untyped].any()
    logits = torch.randn(2, 3)
    assert torch.equal(within.tilted(logits, untyped), logits)


def test_a_tilt_lets_as_many_cells_have_a_feature_as_do():
    """A decoder that spreads a type too far says that many cells lack what nearly all have."""
    torch.manual_seed(0)
    n = 1000
    types, log_theta = torch.tensor([0, 1]).repeat_interleave(n), torch.zeros(2 * n, 2) + 3.0
    away = torch.stack([torch.randn(2 * n), torch.zeros(2 * n)], 1)
    truth = torch.tensor([0.2, 1.0])[types, None] * away  # of type 1, what the decoder says holds
    rest = torch.tensor([1.0, 500.0])  # so that frequencies have a rest to sum up to 1 with
    x = NegativeBinomial(rest * truth.exp(), log_theta.exp()).sample()
    log_mean = rest.log() + away
    level = (x[:, 0].reshape(2, n).sum(1) / log_mean[:, 0].exp().reshape(2, n).sum(1)).log()
    log_mean = log_mean + torch.stack([level[types], torch.zeros(2 * n)], 1)
    within = WithinTypes(2, 2)
    said = log_mean.log_softmax(1)
    within.fit(chunks(x, types, said, log_mean, log_theta, torch.zeros_like(x)))
    assert within.tilt[0, 0] == pytest.approx(-0.8, abs=0.2)
    assert within.tilt[1, 0] == pytest.approx(0.0, abs=0.2)
    assert not within.tilt[:, 1].any()  # where cells are alike, nothing is tilted


def test_a_tilt_knows_that_theta_rises_with_the_frequency():
    """Of cells drawn with a tilt it is found again; with a θ that stays where it is, -1 would be."""
    torch.manual_seed(0)
    n, w = 400, 0.95
    said = torch.stack([-3 + 2 * torch.randn(n), torch.zeros(n)], 1).log_softmax(1)
    log_mean, away = said + 5, said[:, 0] - said[:, 0].mean()
    tilted = log_mean[:, 0] - 0.6 * away
    tilted = tilted + log_mean[:, 0].logsumexp(0) - tilted.logsumexp(0)

    def theta(times: torch.Tensor) -> torch.Tensor:
        return 1 - w + w * times  # of the usual frequency

    x = NegativeBinomial(tilted.exp(), theta((tilted - log_mean[:, 0] + away).exp())).sample()
    x = torch.stack([x, log_mean[:, 1].exp().round()], 1)
    log_theta = torch.stack([theta(away.exp()).log(), torch.zeros(n)], 1)
    rising = torch.stack([w * away.exp() / theta(away.exp()), torch.zeros(n)], 1)
    within = WithinTypes(1, 2)
    within.fit(chunks(x, torch.zeros(n, dtype=torch.long), said, log_mean, log_theta, rising))
    assert within.tilt[0, 0] == pytest.approx(-0.6, abs=0.2)


def test_a_tilt_is_known_where_nothing_is_left_of_theta():
    said = torch.tensor([[-3.0, 0.0]] * 4 + [[-40.0, 0.0]] * 36).log_softmax(1)
    log_mean, rising = said + 7, torch.tensor([[1.0, 0.0]]).expand(40, 2)
    within, types = WithinTypes(1, 2), torch.zeros(40, dtype=torch.long)
    within.fit(chunks(log_mean.exp().round(), types, said, log_mean, 0 * rising, rising))
    assert within.tilt[0, 0] == 0


@pytest.mark.slow
def test_cells_drawn_anew_have_what_their_type_has(cells):
    """Over all types and genes, the share of cells that express is nearer with `WithinTypes`."""
    roles = ch.Schema(counts="layers/counts", label="obs/cell_type")
    counts, types = cells.layers["counts"], cells.obs["cell_type"].astype(str).to_numpy()
    told = {"hidden": (64, 32), "n_latent": 8, "flow_width": 32, "max_epochs": 20, "flow_epochs": 1}
    errors = []
    for dispersion in ("gene-state", "gene"):
        model = ch.CFGen(**told, dispersion=dispersion)
        fitted = model.fit(cells, roles, seed=0, validation=0, progress=False)
        new = sp.csr_matrix(fitted.predict(cells, to={}, seed=0).X)
        errors.append(
            np.mean([
                np.abs((new[types == t] > 0).mean(0) - (counts[types == t] > 0).mean(0)).mean()
                for t in np.unique(types)
            ])
        )  # fmt: skip
    assert errors[0] < errors[1]
