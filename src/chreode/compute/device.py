"""What there is to compute on."""

from __future__ import annotations

import torch

from ..errors import ConfigError


def choose_device(device: str, *, double: bool) -> str:
    """Return a device that exists; ``"auto"`` takes CUDA, then MPS, then the CPU.

    MPS has no float64, so what computes in `double` stays on the CPU there.

    Raises
    ------
    ConfigError
        If this machine has no such device.
    """
    mps = torch.backends.mps.is_available() and not double
    available = {"cuda": torch.cuda.is_available(), "mps": mps}
    found = [*(name for name, there in available.items() if there), "cpu"]
    if device == "auto":
        return found[0]
    if device.partition(":")[0] not in found:
        raise ConfigError(f"device={device!r}: this model runs on {' and '.join(found)} here.")
    return device
