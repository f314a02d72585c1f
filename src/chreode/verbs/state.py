"""The values that make up a fitted model, without its verbs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import pandas as pd

from ..errors import CapabilityError
from ..module import Module, Option, Recipe, capabilities
from ..schema import Place, Schema, Spec

#: Questions whose names are no verbs.
_NOUNS = ("posterior", "loadings", "variance_explained", "trajectory")


@dataclass(frozen=True, eq=False)
class FittedState:
    """What a fit leaves.

    Attributes
    ----------
    model
        The hyper-parameters.
    schema
        Where the roles lived; verbs look there, unless given another `schema`.
    spec
        Names of features and categories.
    module
        The trained tensors, on the CPU.
    history
        One row per epoch and phase.
    statistics
        Conditions and depths of training cells, from which `generate` draws.
    provenance
        Model, version, configuration, spec, seed, and the state of the fit: *still improving*,
        *overfitted*, *moving target* or *rested* (see `compute.convergence`).
    """

    model: Recipe
    schema: Schema
    spec: Spec
    module: Any  # a Module; its capabilities depend on the model
    history: pd.DataFrame
    statistics: Mapping[str, np.ndarray]
    provenance: Mapping[str, Any]

    @property
    def verbs(self) -> list[str]:
        """The questions that this model can answer."""
        return capabilities(self.module)

    @property
    def scale(self) -> str:
        """What the values that it decodes are, in words; those of `expression` are as that was."""
        fitted_on = self.schema.expression if "expression" in self.spec.features else None
        return f"expression as in {fitted_on}" if fitted_on else self.model.scale

    def verb_options(self, verb: str) -> Mapping[str, Option]:
        """Return what more the model takes where it is asked this, by name: the weight of guidance, say."""
        return cast(Module, self.module).verb_options(verb)

    def require(self, verb: str) -> None:
        """Refuse a question that the model cannot answer.

        Raises
        ------
        CapabilityError
            It lists the questions that it can.
        """
        if verb not in self.verbs:
            lacks = f"has no {verb}" if verb in _NOUNS else f"cannot {verb}"
            reasons = getattr(self.module, "unable", ())
            why = f" {reasons[verb]}" if isinstance(reasons, Mapping) and verb in reasons else ""
            raise CapabilityError(
                f"{type(self.model).__name__} {lacks}; it offers {', '.join(self.verbs)}.{why}"
            )

    def column(self, condition: str, schema: Schema | None = None) -> str:
        """Return the obs column of a condition, a role or the name of a covariate: in `schema` or the fit."""
        places = (getattr(where, condition, None) for where in (schema, self.schema))
        return next((Place.parse(p).key for p in places if isinstance(p, str)), condition)

    def feature_weight(self) -> dict[str, np.ndarray]:
        """Return, per matrix role, how much each feature matters to `embed`."""
        return {role: w.detach().cpu().numpy() for role, w in self.module.feature_weight().items()}
