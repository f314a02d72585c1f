"""What an optimiser of options suggests, and the outcomes that it gets."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import pandas as pd

from .. import config
from ..errors import CapabilityError, ConfigError, FitError, near
from ..model import Model
from ..trials.runner import Runner
from .candidate import columns, trial_of

#: Option -> lowest and highest value (a tuple), or values to choose from (a list).
Space: TypeAlias = Mapping[str, tuple[float, float] | Sequence[Any]]


class Study:
    """What optuna suggests, and the outcomes that it gets.

    It gets them in the order of the trials, whichever finished first, so the same seed and number of
    workers bring the same suggestions again, and a run that was cut off finds its trials on disk.
    """

    def __init__(self, model: Model, space: Space, seed: int) -> None:
        try:
            import optuna
        except ImportError as error:
            raise CapabilityError(
                "optuna is not installed: pip install 'chreode[tune]'."
            ) from error
        self.given, self.seed = model, seed
        self.space = {name: _distribution(model, name, values) for name, values in space.items()}
        if not self.space:
            raise ConfigError(f"{model.key} has no option to search; name some: space=….")
        level = optuna.logging.get_verbosity()
        optuna.logging.set_verbosity(optuna.logging.WARNING)  # else it tells that it was made
        self.study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=seed))
        optuna.logging.set_verbosity(level)
        self.study.enqueue_trial({name: getattr(model, name) for name in space})

    def search(self, runner: Runner, trials: int, shown: Any) -> tuple[pd.DataFrame, list[Model]]:
        """Return a row and a model per trial; as many are suggested at once as run at once."""
        from optuna.trial import TrialState

        rows: list[dict[str, Any]] = []
        tried: list[Model] = []
        while len(rows) < trials:
            n = min(runner.workers, trials - len(rows))
            asked = [self.study.ask(self.space) for _ in range(n)]
            models: list[Any] = [dataclasses.replace(self.given, **one.params) for one in asked]  # type: ignore[type-var]  # as above
            todo = [
                trial_of(f"trial {one.number}", model, self.seed, "validation")
                for one, model in zip(asked, models, strict=True)
            ]
            for one, outcome in zip(asked, runner.run(todo, shown), strict=True):
                if outcome.failed:
                    self.study.tell(one, state=TrialState.FAIL)
                else:
                    self.study.tell(one, outcome.row["objective"])
                rows.append({**one.params, **columns(outcome), "seed": self.seed})
            tried += models
            if rows[0]["note"]:
                raise FitError(f"{self.given.key}, as given, {rows[0]['note']}.")
        return pd.DataFrame(rows).rename_axis("trial"), tried


def _distribution(model: Model, name: str, values: Any) -> Any:
    """Return a range or choice as optuna has it; the model's own value must lie in it."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    known = [option["name"] for option in config.describe(type(model))]
    if name not in known:
        raise ConfigError(f"{type(model).__name__} has no option {name!r}.{near(name, known)}")
    own = getattr(model, name)
    made: Any
    if isinstance(values, tuple) and len(values) == 2:
        low, high = values
        if not (
            all(isinstance(v, (int, float)) for v in values) and -np.inf < low <= high < np.inf
        ):
            raise ConfigError(
                f"space: {name} in {values}: expected the lowest and the highest value, or a list of values."
            )
        inside = own is not None and low <= own <= high
        kind = (
            IntDistribution if isinstance(low, int) and isinstance(high, int) else FloatDistribution
        )
        made = kind(low, high, log=low > 0 and high >= 10 * low)
    else:
        inside, made = own in values, CategoricalDistribution(values)
    if not inside:
        raise ConfigError(
            f"space: {name} in {values} leaves out {type(model).__name__}'s own value, {own!r}, with which "
            f"the others are compared. Widen it, or give a model whose {name} lies in it."
        )
    return made
