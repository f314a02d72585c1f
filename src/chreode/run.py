"""How to compute."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Literal

from .config import config, param


@config
class Run:
    """How to compute. Nothing here changes what is learned, apart from the last bits of numbers.

    It is given to fits, verbs and benches as ``run=Run(device="cuda")``, or field by field:
    ``fit(data, schema, device="cuda")`` means the same. What a call has no use for it does not read: verbs
    keep no checkpoint, nor do benches and `tune`, which keep results by ``into``. The verb `loadings`
    takes no run, as it computes nothing.

    Examples
    --------
    >>> Run(progress=False).with_(threads=2)
    Run(device='auto', precision='fp32', compile=False, threads=2, checkpoint=None, progress=False, \
distributed=False)
    """

    device: str = param("auto", "auto takes CUDA, then MPS, then the CPU.")
    precision: Literal["fp32", "bf16"] = param(
        "fp32", "bf16 for autocast in fits, which pays on GPUs and large minibatches."
    )
    compile: bool = param(False, "torch.compile in fits, which pays in long ones.")
    threads: int | None = param(None, "Threads to compute with; None: as many as there are.", low=1)
    checkpoint: str | Path | None = param(
        None, "Folder that keeps the state of a fit after every epoch, and from which it resumes."
    )
    progress: bool | None = param(None, "Show progress bars; None: on a terminal.")
    distributed: bool = param(
        False, "Share the minibatches of a fit with the processes that torchrun started."
    )

    def with_(self, /, **settings: Any) -> Run:
        """Return a copy with some settings changed.

        Raises
        ------
        ConfigError
            If there is no setting of a name, or a value is out of range.
        """
        return dataclasses.replace(self, **settings) if settings else self
