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
    kind, _, number = device.partition(":")
    if kind not in found:
        raise ConfigError(f"device={device!r}: this model runs on {' and '.join(found)} here.")
    cards = torch.cuda.device_count() if kind == "cuda" else 1
    if number and not (number.isdecimal() and int(number) < cards):
        last = f" to {kind}:{cards - 1}" if cards > 1 else ""
        raise ConfigError(f"device={device!r}: there is {kind}:0{last} here.")
    return device
