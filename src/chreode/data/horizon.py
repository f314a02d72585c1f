"""How far beyond what was seen a question may go."""

from __future__ import annotations

import math

from ..errors import ConfigError, warn

#: Share of what was seen by which a question may go beyond it unsaid, and beyond which it is refused.
NEAR, FAR = 0.1, 1.0


class ForecastWarning(UserWarning):
    """A forecast goes beyond the times and values of the cells of the fit."""


def plain(*values: float) -> list[str]:
    """Return numbers in full, with the decimals that their span needs: dates in seconds too.

    Examples
    --------
    >>> plain(1700000000, 1700086400), plain(0, 0.1234567), plain(3.0)
    (['1700000000', '1700086400'], ['0', '0.1235'], ['3'])
    """
    span = max(values) - min(values) or max(map(abs, values)) or 1.0
    decimals = max(0, 3 - math.floor(math.log10(min(span, 1e3))))
    return [f"{round(float(value), decimals) + 0.0:.15g}" for value in values]


def refuse_far(text: str, beyond: float) -> None:
    """Warn of a question that is `beyond` what was seen by more than `NEAR` of its span.

    Raises
    ------
    ConfigError
        If it is by more than `FAR`.
    """
    if beyond <= NEAR:
        return
    text = f"{text}: {beyond:.3g} times that span beyond its end, where no cell tells what happens."
    if beyond > FAR:
        raise ConfigError(f"{text} Ask for what is no further beyond than {FAR:g} span.")
    warn(text, ForecastWarning)
