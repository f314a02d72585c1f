"""The masked autoencoder: what is hidden, what is seen, and what is told of it."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import chreode as ch
from chreode.compute.rng import Rng
from chreode.data.align import open_source
from chreode.data.cells import Cells
from chreode.data.simulate import simulate_cells, simulate_linear_gaussian
from chreode.models import maskedautoencoder
from chreode.module import Step

COUNTS = ch.Schema(counts="layers/counts")
QUICK = {"max_epochs": 3, "batch_size": 64}


@pytest.fixture(scope="module")
def some():
    """240 cells x 120 genes of four types."""
    return simulate_cells(240, 120, n_types=4, n_batches=2, seed=0)


def batch_of(fitted, cells):
    source = open_source(Cells(cells, COUNTS), fitted.spec, ["counts"], {})
    return source.batch(np.arange(cells.n_obs))


def test_the_encoder_never_sees_what_is_hidden(some, monkeypatch):
    """Other values there give the same embedding, and shown ones give another."""
    fitted = ch.MaskedAutoencoder(**QUICK).fit(some, COUNTS)
    module, batch = fitted.module, batch_of(fitted, some)
    hidden = torch.rand(240, 120, generator=torch.Generator().manual_seed(0)) < 0.5
    monkeypatch.setattr(maskedautoencoder, "coins", lambda *_: hidden.flatten())
    seen = []
    plain = module.network.encode
    monkeypatch.setattr(module.network, "encode", lambda view: seen.append(view) or plain(view))
    loss = module.loss(batch, Step(Rng(0), 0, 1.0)).objectives["model"]
    x = batch.log_expression()
    torch.testing.assert_close(seen[0].values["counts"], torch.where(hidden, 0, x))
    with torch.no_grad():
        found = module.decoders["counts"](plain(seen[0])["counts"])
    assert loss.item() == pytest.approx(((found - x)[hidden] ** 2).mean().item(), rel=1e-5)
    assert (x[hidden] == 0).any()  # genes that are not expressed are hidden too
    assert (x[hidden] > 0).any()


def test_batch_norms_of_the_masked_autoencoder_end_with_the_statistics_of_whole_cells(some):
    """Else all cells would be shown to it with sums that it never saw."""
    fitted = ch.MaskedAutoencoder(**QUICK).fit(some, COUNTS, validation=0)
    encoder, x = fitted.module.network.encoders["counts"], batch_of(fitted, some).log_expression()
    with torch.no_grad():
        first = encoder.trunk.layers[0](x)
        second = encoder.last(encoder.trunk(x))
    for norm, seen in ((encoder.trunk.norms[0], first), (encoder.norm, second)):
        torch.testing.assert_close(norm.running_mean, seen.mean(0), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(
            norm.running_var, seen.var(0, correction=0), rtol=1e-3, atol=1e-5
        )
    assert fitted.embed(some).std(0) == pytest.approx(np.ones(64), abs=0.1)


def test_every_gene_is_hidden_with_the_same_chance(some, monkeypatch):
    drawn = []
    plain = maskedautoencoder.coins
    monkeypatch.setattr(
        maskedautoencoder, "coins", lambda *args: drawn.append(plain(*args)) or drawn[-1]
    )
    ch.MaskedAutoencoder(max_epochs=2, batch_size=60, mask=0.3).fit(some, COUNTS, validation=0)
    share = torch.cat([d.view(-1, 120) for d in drawn]).float().mean(0)
    assert len(drawn) == 8
    assert (share - 0.3).abs().max() < 5 * math.sqrt(0.21 / 480)


@pytest.mark.slow
def test_hidden_genes_are_told_better_than_by_their_means(monkeypatch):
    """And if the cell that is to be told is another one, they are not."""
    cells = simulate_linear_gaussian(600, 40, 2, noise=0.3, seed=0)
    of_means = np.asarray(cells.X).var(0).mean()
    options = {"max_epochs": 40, "batch_size": 60, "lr": 1e-2, "mask": 0.25}
    schema = ch.Schema(expression="X")
    told = ch.MaskedAutoencoder(**options).fit(cells, schema).history
    plain = maskedautoencoder.masked_error
    monkeypatch.setattr(
        maskedautoencoder, "masked_error", lambda found, x, *more: plain(found, x.roll(1, 0), *more)
    )
    others = ch.MaskedAutoencoder(**options).fit(cells, schema).history
    assert told["validation_objective"].min() < 0.6 * of_means
    assert others["validation_objective"].min() > 0.9 * of_means
