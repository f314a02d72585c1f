"""What a fit keeps of its training cells: labelled ones to classify by, and measured pairs to fill in by."""

from __future__ import annotations

from functools import partial
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor, nn

from ...data.source import Source
from ...errors import ConfigError, DataError, counted, near, warn
from ...learn.components import having_expression
from ...metrics.classifiers import HeldOut, LinearProbe, NearestLabels
from ...module import Option
from ...schema import Spec

#: Cells that are kept at most, of each kind.
LARGEST = 20_000
#: Cells whose measured values `Paired` averages.
NEIGHBOURS = 5
#: New cells that are compared with all kept ones at a time.
_CHUNK = 1024
METHODS = ("neighbours", "linear")


class Labelled(nn.Module):
    """Embedding and label of training cells, and both classifiers of them.

    Where more than `LARGEST` cells are labelled, as many of each type are drawn, and rare types are whole.
    Probabilities are then weighed so that they are those of all labelled cells, and so is novelty where too
    few cells are held out for it to be a rank among those.

    Parameters
    ----------
    width
        Number of dimensions of the embedding.
    """

    x: Tensor
    codes: Tensor
    shares: Tensor
    weight: Tensor
    near_spacing: Tensor
    weights: Tensor
    bias: Tensor
    whiten: Tensor
    centres: Tensor
    probe_spacing: Tensor

    def __init__(self, spec: Spec, width: int) -> None:
        super().__init__()
        n, n_labels = min(LARGEST, spec.n_cells), len(spec.categories["label"])
        self.register_buffer("codes", torch.full((n,), -1))  # below 0: a row that is not used
        self.register_buffer("x", torch.zeros(n, width))
        self.register_buffer("shares", torch.ones(n_labels))
        self.register_buffer("weight", torch.zeros((), dtype=torch.float64))
        for name in ("near_spacing", "probe_spacing"):
            self.register_buffer(name, torch.full((n,), -1.0, dtype=torch.float64))
        sizes = {"weights": (width, n_labels), "bias": (n_labels,), "whiten": (width, width)}
        for name, size in {**sizes, "centres": (n_labels, width)}.items():
            self.register_buffer(name, torch.zeros(size, dtype=torch.float64))

    def keep(
        self,
        x: Float[np.ndarray, "n z"],
        codes: Int[np.ndarray, " n"],
        groups: Int[np.ndarray, " n"] | None,
        generator: np.random.Generator,
        held_out: HeldOut | None = None,
    ) -> None:
        """Keep labelled cells (those whose code is not below 0), and learn from them.

        Of labelled cells held out, as many as there is room for say how far new cells lie.
        """
        labelled = np.flatnonzero(codes >= 0)
        rows = labelled[evenly(codes[labelled], len(self.codes), generator)]
        n_labels = len(self.bias)
        there = np.bincount(codes[labelled], minlength=n_labels)
        kept = np.bincount(codes[rows], minlength=n_labels)
        shares = there / np.maximum(kept, 1)
        given: dict[str, Any] = {
            "groups": None if groups is None else groups[rows], "sample_weight": shares[codes[rows]],
        }  # fmt: skip
        if held_out is not None:
            new = generator.permutation(np.flatnonzero(held_out.codes >= 0))[: len(self.codes)]
            groups = held_out.groups
            given["held_out"] = HeldOut(
                held_out.x[new], held_out.codes[new], None if groups is None else groups[new]
            )
        nearest = NearestLabels.fit(x[rows], codes[rows], n_labels, **given)
        probe = LinearProbe.fit(x[rows], codes[rows], n_labels, **given)
        found: dict[str, Any] = {
            "x": nearest.x, "codes": nearest.codes, "shares": shares,
            "weight": nearest.weight, "near_spacing": nearest.spacing, "weights": probe.weights,
            "bias": probe.bias, "whiten": probe.whiten, "centres": probe.centres,
            "probe_spacing": probe.spacing,
        }  # fmt: skip
        for unused in (self.codes, self.near_spacing, self.probe_spacing):
            unused.fill_(-1)
        for name, value in found.items():
            values, buffer = torch.as_tensor(value), getattr(self, name)
            (buffer[: len(values)] if values.ndim else buffer).copy_(values)

    @property
    def n_compared(self) -> int:
        """Return the number of cells that novelty is a rank among, by either classifier."""
        return min(int((kept >= 0).sum()) for kept in (self.near_spacing, self.probe_spacing))

    def judge(
        self, x: Float[np.ndarray, "m z"], method: Literal["neighbours", "linear"]
    ) -> tuple[Float64[np.ndarray, "m c"], Float64[np.ndarray, " m"]]:
        """Return the probability of every label, and how new each cell is."""
        kept = {name: value.cpu().numpy() for name, value in self.named_buffers()}
        codes, n_labels = kept["codes"], len(kept["bias"])
        used = (codes >= 0) & (codes < n_labels)
        if used.sum() < 2:
            raise DataError("The model keeps no labelled cells: fit it anew.")
        spacing = kept["near_spacing" if method == "neighbours" else "probe_spacing"]
        spacing = spacing[spacing >= 0]
        by: NearestLabels | LinearProbe
        if method == "neighbours":
            by = NearestLabels(
                kept["x"][used], codes[used], n_labels, float(kept["weight"]), spacing
            )
        else:
            known = np.isin(np.arange(n_labels), codes[used])
            by = LinearProbe(
                kept["weights"], kept["bias"], known, kept["whiten"], kept["centres"], spacing
            )
        probabilities, novelty = by.judge(x)
        weighed = probabilities * kept["shares"]
        return weighed / weighed.sum(1, keepdims=True), novelty


class Paired(nn.Module):
    """Embedding by expression alone, and measured proteins, of training cells that have both."""

    x: Tensor
    proteins: Tensor
    n: Tensor

    def __init__(self, spec: Spec, width: int) -> None:
        super().__init__()
        most = min(LARGEST, spec.n_cells)
        self.register_buffer("x", torch.zeros(most, width))
        self.register_buffer("proteins", torch.zeros(most, spec.n_features("protein")))
        self.register_buffer("n", torch.zeros((), dtype=torch.int64))

    def draw(self, both: Bool[Tensor, " n"], generator: np.random.Generator) -> Bool[Tensor, " n"]:
        """Return which of the cells that have both are kept."""
        rows = generator.permutation(both.nonzero()[:, 0].cpu().numpy())[: len(self.x)]
        chosen = torch.zeros_like(both)
        chosen[torch.from_numpy(rows).to(both.device)] = True
        return chosen

    def keep(self, x: Float[Tensor, "n z"], proteins: Float[Tensor, "n p"]) -> None:
        """Keep cells, as many as there is room for."""
        for buffer, values in ((self.x, x), (self.proteins, proteins)):
            buffer[: len(x)] = values
        self.n.fill_(len(x))

    def nearest_mean(self, x: Float[Tensor, "m z"]) -> Float[Tensor, "m p"]:
        """Return the mean of what was measured in the nearest kept cells by cosine; NaN: in none of them.

        Raises
        ------
        DataError
            If no training cell has both.
        """
        n = min(max(int(self.n), 0), len(self.x))
        if not n:
            raise DataError(
                "No cell of the fit has both expression and protein, so that neither tells the other. "
                "Fit on data in which some cells have both."
            )
        keys, proteins = F.normalize(self.x[:n], dim=1), self.proteins[:n]
        means = [
            proteins[(F.normalize(part, dim=1) @ keys.T).topk(min(NEIGHBOURS, n)).indices].nanmean(
                1
            )
            for part in x.split(_CHUNK)
        ]
        return torch.cat(means)


def evenly(
    codes: Int[np.ndarray, " n"], most: int, generator: np.random.Generator
) -> Int[np.ndarray, " k"]:
    """Return at most so many cells, as many of each type as far as they go, in their order.

    Examples
    --------
    >>> codes = np.repeat([0, 1, 2], [2, 50, 50])
    >>> np.bincount(codes[evenly(codes, 10, np.random.default_rng(0))]).tolist()
    [2, 4, 4]
    """
    sizes = np.bincount(codes)
    taken, left = np.zeros_like(sizes), most
    for done, label in enumerate(np.argsort(sizes, kind="stable")):
        taken[label] = min(sizes[label], left // (len(sizes) - done))
        left -= taken[label]
    order = generator.permutation(len(codes))
    order = order[np.argsort(codes[order], kind="stable")]
    rank = np.arange(len(codes)) - (np.cumsum(sizes) - sizes)[codes[order]]
    return np.sort(order[rank < taken[codes[order]]])


def refuse_too_few(source: Source, rows: Int[np.ndarray, " n"], options: Any) -> None:
    """Refuse labels or gene programmes of fewer than two cells, and CLIP where no cell has both modalities.

    Raises
    ------
    DataError
        Before anything is learned.
    """
    if "label" in source.columns and (source.columns["label"][rows] >= 0).sum() < 2:
        raise DataError(
            "Fewer than two of the cells to learn from have a label, and two are needed to classify others. "
            "Label more cells, or leave label out of the schema."
        )
    if "programmes" in options.augment and len(having_expression(source, rows)) < 2:
        raise DataError(
            "Fewer than two of the cells to learn from have expression, and gene programmes are learned from "
            "such cells. Give more, or leave programmes out of the augmentations."
        )
    both = np.logical_and.reduce([source.measured(role)[rows] for role in source.matrices])
    if options.fusion == "clip" and len(source.matrices) > 1 and not both.any():
        raise DataError(
            "fusion='clip' learns from cells that have both modalities, and none has. Choose another fusion, "
            "such as 'mean'."
        )


def classify_options(labelled: Labelled) -> dict[str, Option]:
    """Return what `classify` takes by name."""
    return {
        "method": Option("neighbours", "By the nearest training cells, or by a linear probe.", _method),
        "unseen": Option(
            0.95, "Novelty above which a cell is called unseen; 1: none is.", partial(_threshold, labelled)
        ),
    }  # fmt: skip


def _method(value: Any) -> str:
    if value not in METHODS:
        raise ConfigError(
            f"method={value!r}: there is no such classifier.{near(str(value), METHODS)}"
        )
    return str(value)


def _threshold(labelled: Labelled, value: Any) -> float:
    """Return the limit, and warn where no cell can be above it."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not (number and 0 <= value <= 1):
        raise ConfigError(f"unseen={value!r}: expected a number from 0 to 1.")
    n, unseen = labelled.n_compared, float(value)
    if n / (n + 1) <= unseen < 1:
        warn(
            f"unseen={unseen:g}: no cell can be called unseen, because novelty is a rank among "
            f"{counted(n, 'labelled cell')}, {n / (n + 1):.3g} at the most. Give a lower unseen, or "
            "fit on more labelled cells."
        )
    return unseen
