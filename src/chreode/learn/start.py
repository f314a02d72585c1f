"""What a fit takes of the fit that it starts from, and what both must agree on."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from torch import Tensor

from ..errors import CapabilityError, ConfigError, counted, listed, warn
from ..module import Module
from ..verbs.state import FittedState


def continue_from(module: Module, from_: FittedState, *, mapping: bool, extends: bool) -> None:
    """Copy the tensors of a fit of the same model, but for those of its training cells (`of_cells`).

    Parameters
    ----------
    mapping
        Whether those of new categories are beside them, and alone learn.
    extends
        Whether the model can learn new categories.

    Raises
    ------
    CapabilityError
        If it cannot, and shall.
    """
    own, cells = module.state_dict(), tuple(f"{name}." for name in module.of_cells)
    old = {n: t for n, t in from_.module.state_dict().items() if not n.startswith(cells)}
    fresh = {name for name, _ in module.named_parameters() if name not in old}
    kept = {name: t for name, t in old.items() if not _goes_on(own[name], t)}
    formed_alike = all(own[name].shape == t.shape for name, t in kept.items())
    if not formed_alike or (mapping and not (extends and fresh)):
        raise CapabilityError(
            f"{from_.model.key} cannot learn categories that are new to the fit it starts from: "
            "fit it on the old and the new cells together."
        )
    if mapping:
        for name, parameter in module.named_parameters():
            parameter.requires_grad_(parameter.requires_grad and name in fresh)
    module.load_state_dict({**own, **kept})


def _goes_on(own: Tensor, old: Tensor) -> bool:
    """Return whether a tensor has the rows of an older one and more, as of vectors of names."""
    longer = own.shape[1:] == old.shape[1:] and len(own) > len(old) if own.ndim else False
    return longer and own[: len(old)].equal(old)


def start_part_from(module: Module, part: str, from_: FittedState) -> str:
    """Copy the tensors of a fit of another model into a part; return a note of those taken and those fresh.

    Taken are those of the same name, within the part, and shape.

    Parameters
    ----------
    part
        Dotted name of the submodule that is the other model ("": the whole).

    Returns
    -------
    A note for the reader.

    Raises
    ------
    ConfigError
        If none can be taken.

    Warns
    -----
    UserWarning
        Of tensors of the same name and another shape, which come of other options.
    """
    old, target = from_.module.state_dict(), module.get_submodule(part)
    own = target.state_dict()
    taken = {name: t for name, t in old.items() if name in own and own[name].shape == t.shape}
    odd = [name for name in old if name in own and name not in taken]
    key = from_.model.key
    if not taken:
        raise ConfigError(
            f"from_ is a fitted {key}, none of whose weights has the shape of one here: "
            f"{_shape_of(odd, own)} here, {_shape_of(odd, old)} there. Choose the same options, such as "
            "n_latent."
        )
    target.load_state_dict({**own, **taken})
    prefix = f"{part}." if part else ""
    fresh = [name for name in module.state_dict() if name not in {prefix + t for t in taken}]
    if odd:
        warn(
            f"The {key} to start from has {listed(odd)} in another shape "
            f"({_shape_of(odd, old)} there, {_shape_of(odd, own)} here): learned anew."
        )
    return (
        f"started from a fitted {key}, with {len(taken)} of its {counted(len(old), 'tensor')}; fresh are "
        f"{listed(fresh) or 'none'}"
    )


def _shape_of(names: Collection[str], tensors: Mapping[str, Tensor]) -> str:
    return " x ".join(map(str, tensors[next(iter(names))].shape)) if names else "none"
