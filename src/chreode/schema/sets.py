"""Sets of names as users write them: ``KLF1+MAP2K6``, in any order."""

from __future__ import annotations

from collections.abc import Iterable

from ..errors import SchemaError


def members(value: str, control: str = "") -> tuple[str, ...]:
    """Return the names in a set that is written with ``+``, sorted; none, if it is the control.

    Parameters
    ----------
    value
        As in ``obs``.
    control
        The value that means the empty set ("": none does).

    Raises
    ------
    SchemaError
        If it names the control beside others, a name twice, or nothing.

    Examples
    --------
    >>> members("MAP2K6+KLF1"), members("ctrl", "ctrl")
    (('KLF1', 'MAP2K6'), ())
    """
    if control and value == control:
        return ()
    names = [name.strip() for name in value.split("+")]
    if control and control in names:
        raise SchemaError(
            f"{value!r} names the control {control!r} beside others. A combination names what was done "
            "together: leave the control out."
        )
    if "" in names or len(set(names)) < len(names):
        raise SchemaError(
            f"{value!r} is no combination of names, each once, as in 'A+B'. Mend the value; how much of a "
            "perturbation there was is given by dose."
        )
    return tuple(sorted(names))


def written(names: Iterable[str], control: str = "") -> str:
    """Return how a set is written: names in order.

    Examples
    --------
    >>> written(("MAP2K6", "KLF1")), written((), "ctrl")
    ('KLF1+MAP2K6', 'ctrl')
    """
    return "+".join(sorted(names)) or control
