"""Effects of attributes: what is counted, how it is shrunk, and several at once."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import chreode as ch
from chreode.data.batch import SparseRows
from chreode.models.parts.effects import PRIOR, ROUNDS, AttributeEffects

GENES = 6


def spec_of(**sizes):
    names = {role: tuple(f"{role} {i}" for i in range(n)) for role, n in sizes.items()}
    genes = tuple(f"g{i}" for i in range(GENES))
    return ch.Spec(
        ("counts", *sizes), {"counts": genes}, names, {r: (n,) for r, n in sizes.items()}
    )


def compared(effects, x, codes, base):
    """Return the data as `fit` wants them: Poisson counts whose expectation `base` effects multiply."""

    def once():
        logits = base.log() + effects(codes)
        yield SparseRows.of(x), codes, logits.sigmoid() if effects.binary else logits.exp()

    return once


def test_the_effect_of_one_attribute_is_a_shrunk_ratio():
    effects = AttributeEffects(spec_of(label=2), GENES)
    torch.manual_seed(0)
    x = torch.poisson(torch.full((40, GENES), 3.0))
    codes = torch.tensor([[0]] * 25 + [[1]] * 10 + [[-1]] * 5)
    base = torch.full((40, GENES), 2.0)
    effects.fit(compared(effects, x, codes, base))
    for category, rows in ((0, slice(0, 25)), (1, slice(25, 35))):
        seen, expected = x[rows].sum(0), base[rows].sum(0)
        found = effects(torch.tensor([[category]]))[0]
        torch.testing.assert_close(found, ((seen + PRIOR) / (expected + PRIOR)).log())
    assert not effects(torch.tensor([[-1]])).any()  # an unknown category changes nothing
    half = effects(torch.tensor([[0]]), [0.5])
    torch.testing.assert_close(half, effects(torch.tensor([[0]])) / 2)


def test_effects_of_two_attributes_are_told_apart():
    """Unbalanced attributes: the means of each alone would mix the effects of both."""
    effects = AttributeEffects(spec_of(label=2, perturbation=2), GENES)
    rng = np.random.default_rng(0)
    label = rng.integers(2, size=20_000)
    treated = (rng.random(20_000) < np.where(label == 1, 0.6, 0.4)).astype(int)
    codes = torch.from_numpy(np.stack([label, treated], 1))
    truth = (
        torch.tensor([[0.0] * 6, [1.0, -1, 0, 0, 0.5, 0.5]]),
        torch.tensor([[0.0] * 6, [0, 0, 1.0, -1, 0.5, -0.5]]),
    )
    base = torch.full((20_000, GENES), 5.0)
    torch.manual_seed(0)
    both = (
        0.8 * codes.prod(1, keepdim=True) * torch.eye(GENES)[2]
    )  # one gene, treated cells of type 1
    x = torch.poisson(base * (truth[0][codes[:, 0]] + truth[1][codes[:, 1]] + both).exp())
    calls = []
    once = compared(effects, x, codes, base)
    effects.fit(lambda: (calls.append(1), once())[1])
    assert len(calls) == 2 * ROUNDS + 1
    for at in ([0, 0], [0, 1], [1, 0], [1, 1]):
        found = effects(torch.tensor([at]))[0]
        expected = truth[0][at[0]] + truth[1][at[1]] + 0.8 * at[0] * at[1] * torch.eye(GENES)[2]
        torch.testing.assert_close(found, expected, atol=0.05, rtol=0)
    # on average over the two types, and an imagined one of a quarter's say in which it does nothing
    treatment = effects.of(1)[1] - effects.of(1)[0]
    shrunk = (truth[1][1] + 0.4 * torch.eye(GENES)[2]) * 2 / 2.25
    torch.testing.assert_close(treatment, shrunk, atol=0.1, rtol=0)
    assert effects(codes[:1], [0.0, 0.0]) == 0.0


def test_a_combination_never_seen_has_the_effects_of_its_parts():
    effects = AttributeEffects(spec_of(label=8, perturbation=2), GENES)
    pairs = torch.cartesian_prod(torch.arange(8), torch.arange(2))[:-1]  # type 7 is never treated
    codes = pairs.repeat(200, 1)
    base = torch.full((len(codes), GENES), 5.0)
    torch.manual_seed(0)
    x = torch.poisson(base * (0.1 * codes[:, :1] - codes[:, 1:]).exp())
    effects.fit(compared(effects, x, codes, base))
    never = torch.tensor([[7, 1]])
    found = effects(never)[0] - effects(torch.tensor([[7, 0]]))[0]
    torch.testing.assert_close(found, torch.full((GENES,), -1.0), atol=0.12, rtol=0)


def test_a_type_never_treated_reacts_as_types_like_it_do():
    effects = AttributeEffects(spec_of(label=7, perturbation=2), GENES)
    pairs = torch.cartesian_prod(torch.arange(7), torch.arange(2))[:-1]  # type 6 is never treated
    codes = pairs.repeat(400, 1)
    lymphoid = torch.tensor([1.0, 1, 1, 0, 0, 0, 0])[codes[:, 0]]
    gene = torch.eye(GENES)
    logits = 2.0 + lymphoid[:, None] * gene[0] - 2 * (1 - lymphoid[:, None]) * gene[0]
    logits += codes[:, 1:] * (2 * lymphoid[:, None] - 1) * gene[3]
    torch.manual_seed(0)
    x = torch.poisson(logits.exp())
    effects.fit(compared(effects, x, codes, torch.full((len(codes), GENES), 5.0)))
    found = effects(torch.tensor([[6, 1]]))[0] - effects(torch.tensor([[6, 0]]))[0]
    torch.testing.assert_close(found, -gene[3], atol=0.12, rtol=0)


def test_types_that_look_the_same_have_the_same_say():
    effects = AttributeEffects(spec_of(label=3, perturbation=2), GENES)
    codes = torch.cartesian_prod(torch.arange(3), torch.arange(2))[:-1].repeat(50, 1)
    base = torch.full((len(codes), GENES), 5.0)
    x = torch.full((len(codes), GENES), 4.0)
    x[(codes[:, 1] == 1) & (codes[:, 0] == 0), 0] = 8
    x[(codes[:, 1] == 1) & (codes[:, 0] == 1), 0] = 2
    effects.fit(compared(effects, x, codes, base))
    assert effects.combination.isfinite().all()
    treated = effects(torch.tensor([[2, 1], [2, 0]]))[:, 0]
    assert abs(treated[0] - treated[1]) < 0.1  # what the two others do cancels


def test_a_batch_without_labels_has_effects_too():
    effects = AttributeEffects(spec_of(label=2, batch=2), GENES)
    codes = torch.tensor([[0, 0], [1, 0], [-1, 1]]).repeat(1000, 1)
    base = torch.full((3000, GENES), 5.0)
    torch.manual_seed(0)
    effects.fit(compared(effects, torch.poisson(base * codes[:, 1:].exp()), codes, base))
    found = effects(torch.tensor([[-1, 1]]))[0] - effects(torch.tensor([[-1, 0]]))[0]
    assert (found > 0.7).all()  # 1, shrunk for one type of four says that it is known in


def test_odds_take_the_place_of_counts_where_features_are_there_or_not():
    effects = AttributeEffects(spec_of(label=2), GENES, binary=True)
    torch.manual_seed(0)
    codes = torch.arange(4000)[:, None] % 2
    base = torch.full((4000, GENES), 0.25)  # odds: a probability of a fifth
    x = torch.bernoulli(torch.where(codes == 1, 0.6, 0.2).expand(4000, GENES))
    effects.fit(compared(effects, 3 * x, codes, base))
    shifted = (base[:2].log() + effects(torch.tensor([[0], [1]]))).sigmoid()
    torch.testing.assert_close(shifted[0], torch.full((GENES,), 0.2), atol=0.03, rtol=0)
    torch.testing.assert_close(shifted[1], torch.full((GENES,), 0.6), atol=0.03, rtol=0)


@pytest.mark.slow
def test_calibrated_means_are_those_observed(cells):
    """By type, expected counts of the training cells are what was counted; without, they are further."""
    roles = ch.Schema(counts="layers/counts", batch="obs/batch", label="obs/cell_type")
    counts, types = cells.layers["counts"], cells.obs["cell_type"].astype(str).to_numpy()
    told = {"hidden": (64, 32), "n_latent": 8, "flow_width": 32, "max_epochs": 5, "flow_epochs": 1}
    errors = []
    for effects in (True, False):
        fitted = ch.CFGen(**told, effects=effects).fit(cells, roles, validation=0, progress=False)
        mean = fitted.reconstruct(cells).X
        parts = [
            np.log((mean[types == t].sum(0) + 1) / (counts[types == t].sum(0) + 1))
            for t in np.unique(types)
        ]
        errors.append(float(np.abs(np.stack(parts)).mean()))
    assert errors[0] < 0.5 * errors[1]
    assert errors[0] == pytest.approx(0, abs=0.15)
    assert fitted.history["phase"].unique().tolist() == ["autoencoder", "flow"]
