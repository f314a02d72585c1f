"""What attributes do to features beyond what a decoder says of a latent state; counted, not learned."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ..data.batch import SparseRows
from ..schema import Spec
from .attributes import attribute_names

#: Counts seen, as many of which were expected, that stand beside those of each category.
PRIOR = 2.0
#: Times that each of several attributes is counted, the others being known a little better each time.
ROUNDS = 3

Codes = Int[Tensor, "b c"]
#: Per chunk of cells: what was observed, the codes, and what is expected under all effects so far.
Compared = tuple[SparseRows, Codes, Float[Tensor, "b g"]]


class AttributeEffects(nn.Module):
    """A shift of every feature's logit by each category of a cell; none for an unknown category.

    A latent state tells the types of cells apart less sharply than their names do, and a decoder that
    reads it alone draws markers of one type a little too often in its neighbours. The effect of a
    category of which x counts were seen and m were expected is the posterior mean of a factor on m::

        log (x + κ) / (m + κ),        κ = `PRIOR`

    under a gamma prior of mean 1 and shape κ, in turn for each attribute given the others. Of features
    that are there or not (Bernoulli), the odds take the place of the counts.
    """

    def __init__(self, spec: Spec, n_features: int, *, binary: bool = False) -> None:
        super().__init__()
        self.binary = binary
        for i, name in enumerate(attribute_names(spec)[0]):
            self.register_buffer(f"effect_{i}", torch.zeros(sum(spec.blocks[name]), n_features))

    def forward(
        self, codes: Codes, weights: Sequence[float] | None = None
    ) -> Float[Tensor, "b g"] | float:
        """Return the sum of the effects of each cell's categories, times the weight of each attribute."""
        total: Tensor | float = 0.0
        for i, effect in enumerate(self.buffers()):
            weight = 1.0 if weights is None else weights[i]
            if not weight:
                continue
            total = total + effect[codes[:, i].clamp(min=0)] * (weight * (codes[:, i, None] >= 0))
        return total

    @torch.no_grad()
    def fit(self, compare: Callable[[], Iterator[Compared]]) -> None:
        """Estimate the effects; `compare` goes over all cells once, a pass per attribute and round."""
        effects = list(self.buffers())
        for effect in effects:
            effect.zero_()
        for _ in range(ROUNDS if len(effects) > 1 else 1):
            for i, effect in enumerate(effects):
                effect.zero_()
                # of each chunk on its device, of all in double on the CPU: not every device has that
                seen, expected = torch.zeros(2, *effect.shape, dtype=torch.float64)
                cells = torch.zeros(len(effect), 1, dtype=torch.float64)
                for x, codes, mean in compare():
                    known = codes[:, i] >= 0
                    at, stored = codes[known, i], known[x.cells]
                    values = x.values[stored].sign() if self.binary else x.values[stored]
                    where = codes[x.cells[stored], i], x.columns[stored]
                    nothing = torch.zeros_like(effect)
                    seen += nothing.index_put(where, values, accumulate=True).cpu()
                    expected += nothing.index_add(0, at, mean[known]).cpu()
                    cells += at.bincount(minlength=len(effect))[:, None].cpu()
                found = ((seen + PRIOR) / (expected + PRIOR)).log()
                if self.binary:
                    found += ((cells - expected + PRIOR) / (cells - seen + PRIOR)).log()
                effect.copy_(found)
