"""A linear probe: how well a logistic regression reads the classes from an embedding."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

#: L2 penalties that are tried, and the most steps of each.
PENALTIES, EPOCHS, LR = (0.0, 1e-3, 1e-2, 1e-1), 300, 0.05


@dataclass(frozen=True, eq=False)
class Probe:
    """A multinomial logistic regression, whose penalty and number of steps were chosen on validation images.

    Coordinates are centred, and divided by one number such that their mean variance is 1.

    Attributes
    ----------
    weights, bias
        The logits are ``x @ weights + bias``.
    penalty
        L2 penalty that was chosen.
    epoch
        Steps of Adam that were chosen, each on all training images.
    validation
        Accuracy on the validation images by which these were chosen: it flatters.
    """

    weights: Float[Tensor, "z k"]
    bias: Float[Tensor, " k"]
    penalty: float
    epoch: int
    validation: float

    @classmethod
    def fit(
        cls,
        x: Float[Tensor, "n z"],
        y: Int[Tensor, " n"],
        unseen: Float[Tensor, "m z"],
        of_unseen: Int[Tensor, " m"],
        n_classes: int,
    ) -> Probe:
        """Learn on training images, under every penalty at once, and keep the best on validation images.

        Of equals the first one is kept: the fewest steps, then the smallest penalty.

        Parameters
        ----------
        x, y
            Embedding and classes of the training images.
        unseen, of_unseen
            Those of the validation images.
        n_classes
            Number of classes, which are numbered from 0.
        """
        mean, scale = x.mean(0), x.var(0, correction=0).mean().sqrt().clamp_min(1e-12)
        x, unseen = (x - mean) / scale, (unseen - mean) / scale
        n, shape = len(PENALTIES), (x.shape[1], len(PENALTIES), n_classes)
        weights = x.new_zeros(shape, requires_grad=True)
        bias = x.new_zeros(shape[1:], requires_grad=True)
        penalties, labels = x.new_tensor(PENALTIES), y.repeat_interleave(n)
        adam = torch.optim.Adam([weights, bias], LR)
        best = cls(weights[:, 0], bias[0], PENALTIES[0], 0, -1.0)
        for epoch in range(1, EPOCHS + 1):
            logits = (x @ weights.flatten(1)).unflatten(1, shape[1:]) + bias
            # a sum over penalties of means over images: none has a say in the gradient of another
            loss = F.cross_entropy(logits.flatten(0, 1), labels, reduction="sum") / len(x)
            adam.zero_grad()
            (loss + (penalties * weights.square().sum((0, 2))).sum()).backward()
            adam.step()
            with torch.no_grad():
                logits = (unseen @ weights.flatten(1)).unflatten(1, shape[1:]) + bias
            right = (logits.argmax(2) == of_unseen[:, None]).float().mean(0)
            at = int(right.argmax())
            if right[at] > best.validation:
                w = weights[:, at].detach() / scale
                b = bias[at].detach() - mean @ w
                best = cls(w, b, PENALTIES[at], epoch, right[at].item())
        return best

    def recall(self, x: Float[Tensor, "n z"], y: Int[Tensor, " n"]) -> Float[Tensor, " k"]:
        """Return the share of each class's images that are named right."""
        right = ((x @ self.weights + self.bias).argmax(1) == y).to(x.dtype)
        n = torch.bincount(y, minlength=len(self.bias))
        return torch.bincount(y, right, minlength=len(self.bias)) / n
