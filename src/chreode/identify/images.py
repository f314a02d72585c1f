"""Which augmentations and which encoders make SimCLR see what images show: a grid of small experiments."""

from __future__ import annotations

import dataclasses
import platform
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from sklearn.decomposition import PCA
from torch import Tensor

from ..compute.convergence import state_of
from ..compute.device import choose_device
from ..compute.progress import bar
from ..compute.rng import Rng
from ..compute.settings import settled
from ..compute.threads import pinned
from ..config.arguments import checked
from ..errors import ConfigError, near
from ..run import Run
from ..trials.digest import digest
from ..trials.runner import require_one, require_seeds, run_of_trials, running
from ..trials.trial import Outcome, Result, Trial
from ..version import __version__, code_hash
from .imaging.augment import REGIMES
from .imaging.data import Parts, check, parts
from .imaging.networks import ENCODERS, SIZES
from .imaging.probe import Probe
from .imaging.simclr import Training, embed, train

#: Rows of the table that no augmentation made.
PIXELS, PCA_ROW, CHANCE, UNTRAINED = "raw pixels", "PCA", "chance", "untrained"
_COMPONENTS = 50
_NUMBERS = (
    "accuracy", "worst", "validation", "test_images", "seconds", "epochs", "first_loss", "last_loss",
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class ImageResult:
    """What the image experiment found.

    Attributes
    ----------
    rows
        A row for each encoder, regime and seed, and for each baseline and seed: ``accuracy`` on the
        ``test_images``, the lowest share of a class that is named right (``worst``, of ``worst_class``),
        accuracy on the ``validation`` images that chose the probe, ``seconds`` and ``epochs`` of training,
        its ``first_loss`` and ``last_loss`` (means over an epoch), the ``state`` of the fit when it stopped,
        and a ``note`` on a row that failed.
    about
        What the numbers depend on: data, settings, versions.
    """

    rows: pd.DataFrame
    about: dict[str, Any]

    def table(self) -> pd.DataFrame:
        """Return the means over seeds with the lowest and highest accuracy, and why rows failed."""
        by = ["encoder", "regime"]
        grouped = self.rows[self.rows["note"] == ""].groupby(by, sort=False)
        table = pd.DataFrame({
            "accuracy": grouped["accuracy"].mean(), "lowest": grouped["accuracy"].min(),
            "highest": grouped["accuracy"].max(), "worst class": grouped["worst"].mean(),
            "validation": grouped["validation"].mean(), "seconds": grouped["seconds"].mean(),
            "test images": grouped["test_images"].first(), "seeds": grouped.size(),
            "still improving": grouped["state"].agg(lambda of: int((of == "still improving").sum())),
        })  # fmt: skip
        notes = self.rows.groupby(by, sort=False)["note"].agg(
            lambda of: "; ".join(filter(None, of.unique()))
        )
        return (
            table.reindex(notes.index).assign(note=notes).fillna({"seeds": 0, "still improving": 0})
        )


@dataclass(frozen=True, eq=False)
class _Given:
    """What every trial is given."""

    x: Float[np.ndarray, "n 3 32 32"]
    classes: Int[np.ndarray, " n"]
    names: list[str]
    size: str
    how: Training
    device: str


@settled()
@checked
def images(
    x: Any,
    y: Any,
    *,
    encoders: Sequence[str] = ("resnet", "vit", "mlp"),
    regimes: Sequence[str] = ("all", "crop", "no crop"),
    seeds: Sequence[int] = (0, 1, 2, 3, 4),
    epochs: int = 30,
    size: Literal["small", "paper"] = "small",
    batch_size: int = 128,
    lr: float = 3e-4,
    into: str | Path | None = None,
    run: Run = Run(),
    **settings: Any,
) -> ImageResult:
    """Train encoders by SimCLR under several regimes of augmentation, and probe what they see.

    Each seed splits the images anew: three fifths train the encoder and the probe, a fifth chooses the
    probe's penalty and number of steps, and a fifth is scored once. There is no projection head. Both views
    of an image are augmented. The published code augments one of them, and reports the best test epoch.

    Parameters
    ----------
    x
        Images as an array or tensor (n, 3, 32, 32), with values from 0 to 1.
    y
        Class of each image: numbers or text.
    encoders
        ``"resnet"`` (ResNet-18 with a first layer for small images), ``"vit"``, ``"mlp"``.
    regimes
        ``"all"`` (jitter, crop, flip, grey, blur, erasing), ``"crop"``, ``"no crop"`` (all others), and
        ``"no flip"`` (all but the flip), for images that a mirror turns into something else.
    seeds
        Seeds of splits, weights and augmentations.
    epochs
        How often an encoder sees each training image; 200 in the paper.
    size
        Widths of the encoders: ``"paper"`` is for a graphics card.
    batch_size
        Images of a minibatch at the least; 2,000 in the paper.
    lr
        Learning rate of Adam.
    into
        Folder that keeps every row as it comes, and from which the same call goes on.
    run
        How to compute (see `Run`); device, threads and progress are read.

    Raises
    ------
    ConfigError
        If there is no encoder or regime of a name, or a number is out of range.
    DataError
        If images have another shape or values outside of [0, 1], labels do not match them, or a class has
        too few images; or if every row failed.
    StoreError
        If `into` holds results of other data, settings or versions.

    Returns
    -------
    ImageResult
        Rows, and `ImageResult.table` of them, with baselines: the probe on raw pixels, on 50 principal
        components and on each encoder before it learns, and the commonest class.

    References
    ----------
    The loss is not enough (2026), arXiv 2606.04280, section on CIFAR-10 (regimes, widths, optimiser). Chen
    et al. (2020), A simple framework for contrastive learning of visual representations, ICML.

    Examples
    --------
    >>> import chreode as ch
    >>> x, y = ch.identify.digits()
    >>> found = ch.identify.images(x[:200], y[:200], encoders=["mlp"], regimes=["crop"], seeds=[0],
    ...                            epochs=2, lr=1e-3, batch_size=64, progress=False)
    >>> [" ".join(row) for row in found.table().index]
    ['chance -', 'raw pixels -', 'PCA -', 'mlp untrained', 'mlp crop']
    """
    _refuse_unknown("encoder", encoders, ENCODERS)
    _refuse_unknown("regime", regimes, REGIMES)
    for name, value, least in (("epochs", epochs, 1), ("batch_size", batch_size, 2)):
        if value < least:
            raise ConfigError(f"{name}={value}: expected at least {least}.")
    if not 0 < lr < np.inf:
        raise ConfigError(f"lr={lr}: expected a number above 0.")
    encoders, regimes = [*dict.fromkeys(encoders)], [*dict.fromkeys(regimes)]
    seeds, run = [*dict.fromkeys(require_seeds(seeds))], run_of_trials(run, settings)
    pictures, classes, names = check(x, y)
    how = Training(epochs, batch_size, lr)
    device = choose_device(run.device, double=False)
    given = _Given(pictures, classes, names, size, how, device)
    with pinned(run.threads or torch.get_num_threads()):
        about = _about(given)
        trials = _trials(encoders, regimes, seeds)
        with (
            bar(len(trials), "images", run.progress) as shown,
            running(given, about, into=into) as runner,
        ):
            found = runner.run(trials, shown)
    require_one(trials, found)
    rows = [_told(trial, outcome) for trial, outcome in zip(trials, found, strict=True)]
    return ImageResult(pd.DataFrame(rows), about)


def _refuse_unknown(what: str, given: Sequence[str], known: Any) -> None:
    if not len(given):
        raise ConfigError(f"There is no {what}: name one at least.{near('', known)}")
    for name in given:
        if name not in known:
            raise ConfigError(f"There is no {what} {name!r}.{near(name, known)}")


def _about(given: _Given) -> dict[str, Any]:
    return {
        "data": digest(given.x, given.classes), "classes": given.names, "size": given.size,
        **dataclasses.asdict(given.how), "device": given.device,
        "chreode": __version__, "code": code_hash(), "torch": torch.__version__,
        "machine": platform.machine(), "threads": torch.get_num_threads(),
    }  # fmt: skip


def _trials(encoders: Sequence[str], regimes: Sequence[str], seeds: Sequence[int]) -> list[Trial]:
    """Return the pieces of work, baselines first."""
    rows: list[tuple[str, str, Any]] = [
        (CHANCE, "-", _chance), (PIXELS, "-", _pixels), (PCA_ROW, "-", _components),
        *((e, regime, partial(_encoder, e, regime)) for e in encoders for regime in (UNTRAINED, *regimes)),
    ]  # fmt: skip
    return [
        Trial(
            f"{encoder}, {regime}, seed {seed}", partial(work, seed),
            {"encoder": encoder, "regime": regime, "seed": seed},
        )
        for encoder, regime, work in rows
        for seed in seeds
    ]  # fmt: skip


def _told(trial: Trial, outcome: Outcome) -> dict[str, Any]:
    empty = {**dict.fromkeys(_NUMBERS, np.nan), "worst_class": "", "state": ""}
    return {**trial.about, **empty, **outcome.row, "note": outcome.note}


# a trial


def _chance(seed: int, given: _Given) -> Result:
    rows = parts(given.classes, seed)
    commonest = np.bincount(given.classes[rows.train]).argmax()
    scores = [float((given.classes[r] == commonest).mean()) for r in (rows.test, rows.validation)]
    worst = int(commonest == 0)  # any class that is not the commonest is never named
    row = {
        "accuracy": scores[0], "validation": scores[1], "worst": 0.0, "test_images": len(rows.test),
    }  # fmt: skip
    return {**row, "worst_class": given.names[worst]}, {}


def _pixels(seed: int, given: _Given) -> Result:
    x = torch.from_numpy(given.x).flatten(1).to(given.device)
    return scored(x, given.classes, parts(given.classes, seed), given.names), {}


def _components(seed: int, given: _Given) -> Result:
    rows, x = parts(given.classes, seed), given.x.reshape(len(given.x), -1)
    n = min(_COMPONENTS, len(rows.train))
    pca = PCA(n, random_state=seed).fit(x[rows.train])
    z = torch.from_numpy(pca.transform(x)).to(given.device)
    return scored(z, given.classes, rows, given.names), {}


def _encoder(encoder: str, regime: str, seed: int, given: _Given) -> Result:
    rows, x = parts(given.classes, seed), torch.from_numpy(given.x).to(given.device)
    with Rng(seed).scope(f"weights of {encoder}"):
        network = ENCODERS[encoder](**SIZES[given.size][encoder]).to(given.device)
    start = time.perf_counter()
    about: dict[str, Any] = {}
    if regime != UNTRAINED:
        losses = train(network, x[rows.train], REGIMES[regime], given.how, seed)
        about = {"epochs": len(losses), "first_loss": losses[0], "last_loss": losses[-1]}
        about["state"] = state_of(losses, held_out=False)
    seconds = time.perf_counter() - start
    return {
        **scored(embed(network, x), given.classes, rows, given.names),
        "seconds": seconds,
        **about,
    }, {}


def scored(
    z: Float[Tensor, "n z"], classes: Int[np.ndarray, " n"], rows: Parts, names: Sequence[str]
) -> dict[str, Any]:
    """Return what a probe reads from an embedding; no test image has a say in the probe."""
    y = torch.from_numpy(classes).to(z.device)
    probe = Probe.fit(
        z[rows.train], y[rows.train], z[rows.validation], y[rows.validation], len(names)
    )
    recall, of_test = probe.recall(z[rows.test], y[rows.test]), y[rows.test]
    return {
        "accuracy": recall[of_test].mean().item(), "validation": probe.validation,
        "worst": recall.min().item(), "worst_class": names[int(recall.argmin())],
        "test_images": len(rows.test), "penalty": probe.penalty, "probe_epoch": probe.epoch,
    }  # fmt: skip
