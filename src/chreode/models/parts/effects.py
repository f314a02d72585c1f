"""What attributes do to features beyond what a decoder predicts from a latent state; counted, not learned."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ...data.batch import SparseRows
from ...nn.attributes import Numbering, attribute_names
from ...nn.sparse import add_at
from ...schema import Spec

#: Counts seen, as many of which were expected, that stand beside those of each category.
PRIOR = 2.0
#: Expected counts at which a type has half of its full weight in the effect of another attribute.
HALF_WEIGHT_COUNTS = 10.0
#: Weight of the prior (no effect) beside the weights of the types.
PRIOR_WEIGHT = 0.25
#: Times that each of several attributes is counted, the others being known a little better each time.
ROUNDS = 3
#: Entries of the largest table of combinations and features; beyond, single attributes decide.
MOST_ENTRIES = 2**25

#: How fast the weight of a type falls with the squared distance of its profile. Like the constants above,
#: chosen on pairs of Kang's types and conditions that no benchmark hides.
NEARNESS = 2.0

Codes = Int[Tensor, "b c"]
Table = Float[Tensor, "n g"]
#: Per chunk of cells: what was observed, the codes, and what is expected under all effects so far.
Compared = tuple[SparseRows, Codes, Float[Tensor, "b g"]]


class AttributeEffects(nn.Module):
    """A shift of every feature's logit by each category of a cell, and by their combination.

    A latent state separates the types of cells less sharply than their names do, and a decoder that
    reads it alone draws markers of one type a little too often in its neighbours. The effect of cells
    of which x counts were seen and m were expected is the posterior mean of a factor on m::

        log (x + κ) / (m + κ),        κ = `PRIOR`

    under a gamma prior of mean 1 and shape κ: of each category in turn given the others, then of each
    combination given its categories. Of features that are there or not (Bernoulli), the odds take the
    place of the counts. An unknown category adds nothing.

    What a treatment or a batch does by itself is averaged over the types of cells (the label), each having
    the same weight once it has counts enough. Taken from sums, it would be the effect on the largest cells of
    the most frequent type, which predicts that on a type never treated less well. What is peculiar to a
    type that was never seen with it is averaged over the others by `NEARNESS` of their profiles.
    """

    combination: Tensor

    def __init__(self, spec: Spec, n_features: int, *, binary: bool = False) -> None:
        super().__init__()
        self.binary, self.names = binary, attribute_names(spec)[0]
        self.number = Numbering(spec)
        for i, name in enumerate(self.names):  # a column's name may hold what a buffer's may not
            self.register_buffer(f"effect_{i}", torch.zeros(sum(spec.blocks[name]), n_features))
        rows = len(self.number)
        combined = 1 < rows <= MOST_ENTRIES / n_features and len(self.names) > 1
        self.register_buffer("combination", torch.zeros(rows if combined else 0, n_features))

    def forward(
        self, codes: Codes, weights: Sequence[float] | None = None
    ) -> Float[Tensor, "b g"] | float:
        """Return the effects of each cell's categories, times the weight of each attribute.

        The combination has the least of the weights, the label's aside.
        """
        weighted = list(zip(self.names, weights or [1.0] * len(self.names), strict=True))
        total: Tensor | float = 0.0
        for i, (_, weight) in enumerate(weighted):
            if weight:
                effect = self.of(i)[codes[:, i].clamp(min=0)]
                total = total + effect * (weight * (codes[:, i, None] >= 0))
        least = min((weight for name, weight in weighted if name != "label"), default=0.0)
        if least and len(self.combination):
            total = total + least * self.combination[self.number(codes)]
        return total

    @torch.no_grad()
    def fit(self, compare: Callable[[], Iterator[Compared]]) -> None:
        """Estimate the effects; `compare` goes over all cells once, a pass per attribute and round."""
        attributes = range(len(self.names))
        for effect in (*map(self.of, attributes), self.combination):
            effect.zero_()
        for _ in range(ROUNDS if len(self.names) > 1 else 1):
            for i in attributes:
                effect = self.of(i).zero_()
                effect.copy_(self._effects_of(compare, i, len(effect)))
        if len(self.combination):
            found = self._ratios(compare, len(self.combination), self.number, attributes)
            self.combination.copy_(
                self._from_similar_types(*found) if self.names[0] == "label" else found[0]
            )

    def _effects_of(
        self, compare: Callable[[], Iterator[Compared]], i: int, n: int
    ) -> Float[Tensor, "n g"]:
        """Return the effects of the `n` categories of an attribute, the others as they are."""
        # cells without a label are one more type
        types = len(self.of(0)) + 1 if self.names[0] == "label" and i else 0
        if not 0 < types * n <= MOST_ENTRIES / self.combination.shape[1]:
            return self._ratios(compare, n, lambda codes: codes[:, i], [i])[0]
        found, expected, _ = self._ratios(
            compare, types * n, lambda codes: (codes[:, 0] + 1) * n + codes[:, i], [i]
        )
        weight = expected / (expected + HALF_WEIGHT_COUNTS)
        found, weight = (t.reshape(types, n, -1) for t in (found, weight))
        return (weight * found).sum(0) / (weight.sum(0) + PRIOR_WEIGHT)

    def _from_similar_types(self, found: Table, expected: Table, seen: Table) -> Table:
        """Give unseen combinations the effects that similar types have with the same other categories.

        Both the distance of two types and the effects of the one as the other would have them are of
        where both were seen. The weight of a type falls with that distance (Shepard 1968).
        """
        types = len(self.of(0)) + 1  # the label comes first; 0 stands for none
        found, expected, seen = (t.reshape(types, -1, t.shape[1]) for t in (found, expected, seen))
        profile = (1e4 * seen / seen.sum(-1, keepdim=True).clamp(min=1)).log1p()
        known, weight = expected.sum(-1) > 0, expected / (expected + HALF_WEIGHT_COUNTS)
        estimate = torch.zeros_like(found)
        for t in range(types):
            both = known & known[t]
            both[t] = False
            compared, shared = both[..., None], both.sum(1)
            distance = ((profile - profile[t]).square() * compared).sum((1, 2)) / shared
            distance = distance.clamp(min=1e-6).nan_to_num(torch.inf)  # types may look the same
            nearness = ((distance.amin() / distance) ** NEARNESS).nan_to_num()
            similar = weight * nearness[:, None, None]
            offset = ((found - found[t]) * compared).sum(1) / shared.clamp(min=1)[:, None]
            total = (similar * (found - offset[:, None])).sum(0)
            estimate[t] = total / (similar.sum(0) + PRIOR_WEIGHT)
        return found.where(known[..., None], estimate).flatten(0, 1)

    def of(self, i: int) -> Float[Tensor, "categories g"]:
        """Return the effects of the categories of an attribute."""
        return self.get_buffer(f"effect_{i}")

    def _ratios(
        self,
        compare: Callable[[], Iterator[Compared]],
        n: int,
        group: Callable[[Codes], Int[Tensor, " b"]],
        needed: Sequence[int],
    ) -> tuple[Table, Table, Table]:
        """Return log ratios of `n` groups of cells, and what was expected and seen of each.

        Cells that lack one of the categories `needed` are of none.
        """
        device = self.combination.device
        exact = torch.float32 if device.type == "mps" else torch.float64  # which has no doubles
        shape = n, self.combination.shape[1]
        seen, expected = torch.zeros(2, *shape, dtype=exact, device=device)
        cells = torch.zeros(n, 1, dtype=exact, device=device)
        for x, codes, mean in compare():
            at, known = group(codes), (codes[:, list(needed)] >= 0).all(1)
            stored = known[x.cells]
            values = x.values[stored].sign() if self.binary else x.values[stored]
            where = at[x.cells[stored]], x.columns[stored]
            seen.index_put_(where, values.to(exact), accumulate=True)
            add_at(expected, at[known], mean[known].to(exact))
            cells += at[known].bincount(minlength=n)[:, None]
        found = ((seen + PRIOR) / (expected + PRIOR)).log()
        if self.binary:
            found = found + ((cells - expected + PRIOR) / (cells - seen + PRIOR)).log()
        return found.float(), expected.float(), seen.float()
