"""Die at a chosen call of the file system, or find the disk full from a chosen size on."""

from __future__ import annotations

import functools
import os
import resource
import signal
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py

#: Where a process may be cut off: whatever makes, fills, flushes, renames or removes a file.
CALLS = (
    (os, ("mkdir", "rename", "replace", "unlink", "rmdir", "fsync", "chmod")),
    (Path, ("write_bytes", "write_text")),
    (h5py.File, ("close",)),
    (h5py.Dataset, ("__setitem__", "resize")),
    (h5py.Group, ("create_dataset", "create_group")),
)
WHEN = ("before", "half", "after")


@dataclass
class Fuse:
    """Count the calls; kill this process before, after, or in the middle of number `at`."""

    at: int = -1
    when: str = "before"
    calls: list[str] = field(default_factory=list)

    def arm(self) -> None:
        """Put a counter around every call, in this process alone."""
        for owner, names in CALLS:
            for name in names:
                setattr(owner, name, self._counted(name, getattr(owner, name)))

    def _counted(self, name: str, plain: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(plain)
        def counted(*args: Any, **keywords: Any) -> Any:
            mine = len(self.calls) == self.at
            self.calls.append(name)
            if mine and self.when == "half" and name.startswith("write_"):
                _write_half(*args)
            if mine and self.when != "after":
                _die()
            result = plain(*args, **keywords)
            if mine:
                _die()
            return result

        return counted


def limit_files(size: int) -> None:
    """Let every write beyond `size` bytes of a file fail, as on a full disk."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


def _write_half(path: Path, content: str | bytes) -> None:
    with path.open("wb") as file:
        file.write((content.encode() if isinstance(content, str) else content)[: len(content) // 2])


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)
