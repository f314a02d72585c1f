"""A folder that keeps results as they come: a line of JSON each, and arrays beside it."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from .. import store
from ..errors import StoreError, counted
from ..version import code_hash
from .trial import Outcome

#: Seconds in which a line that another process is writing must grow.
_GROWING = 0.2
#: What a line says of a result, at the least.
_RESULT = {"key", "failed", "seconds", "attempts", "arrays", "row"}


class Ledger:
    """The results of a run, by key; without a folder it keeps nothing.

    ``rows.jsonl`` opens with what all results depend on. Each result is one line, written and flushed
    whole after its arrays, so that a crash can tear the last line alone; that one is dropped.

    Parameters
    ----------
    folder
        Where, or None.
    about
        What all results depend on, JSON-able.

    Raises
    ------
    StoreError
        If the folder holds something else, or results of another `about`.
    """

    def __init__(self, folder: str | Path | None, about: Mapping[str, Any]) -> None:
        self.folder = Path(folder) if folder else None
        self.kept: dict[str, dict[str, Any]] = {}
        self.about = json.loads(json.dumps(dict(about)))
        if self.folder is None:
            return
        self.file = self.folder / "rows.jsonl"
        self._refuse_something_else()
        torn = self.file.exists()  # its first line, if it has no whole one
        if not (lines := self._whole_lines()):
            self._begin(first=not torn)
            lines = self._whole_lines()
        self._refuse_another(lines[0])
        self.kept = {line["key"]: line for line in lines[1:]}

    def find(self, key: str) -> dict[str, Any] | None:
        """Return what `add` was given under `key`, unless it had failed or its arrays were removed."""
        line = self.kept.get(key)
        if self.folder is None or line is None or line["failed"]:
            return None
        arrays = {}
        if line["arrays"]:
            file = self.folder / f"{key}.safetensors"
            if not file.exists():
                return None
            arrays = {name: t.numpy() for name, t in store.read_tensors(file)[0].items()}
        outcome = {name: line[name] for name in ("row", "seconds", "attempts")}
        return {**outcome, "arrays": arrays}

    def add(self, key: str, name: str, outcome: Outcome) -> None:
        """Keep a result; it is on the disk when this returns.

        Raises
        ------
        StoreError
            If the disk is full or the folder cannot be written.
        """
        if self.folder is None:
            return
        if outcome.arrays:
            with store.aside(self.folder / f"{key}.safetensors") as path:
                tensors = {k: torch.tensor(v) for k, v in outcome.arrays.items()}
                store.write_tensors(path, tensors, {})
        line = {
            "key": key, "trial": name, "failed": outcome.failed, "seconds": outcome.seconds,
            "attempts": outcome.attempts, "arrays": sorted(outcome.arrays), "row": outcome.row,
            "code": code_hash(),
        }  # fmt: skip
        self._append(line)
        self.kept[key] = line

    def summary(self) -> str:
        """Say what is kept, and how to go on."""
        if self.folder is None:
            return "nothing is kept, as no folder was named for it (into)"
        done = sum(not line["failed"] for line in self.kept.values())
        return (
            f"{self.folder} keeps {counted(done, 'result')}, and the same call goes on from there"
        )

    def _refuse_something_else(self) -> None:
        assert self.folder is not None
        names = {f.name for f in self.folder.iterdir()} if self.folder.is_dir() else set()
        begun = self.file.name in names or all(
            name.startswith(f".{self.file.name}.writing-") for name in names
        )
        if not begun or (self.folder.exists() and not self.folder.is_dir()):
            raise StoreError(f"{self.folder} exists and holds no results; choose another place.")

    def _begin(self, *, first: bool) -> None:
        """Write the first line; where there was no file, another process may do so at the same time."""
        with store.aside(self.file, first=first) as made:
            made.write_bytes(_line(self.about))

    def _append(self, line: Mapping[str, Any]) -> None:
        if not self.file.exists():  # somebody has removed it
            self._begin(first=True)
        try:
            self._cut()
            with self.file.open("ab") as file:
                file.write(_line(line))
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise StoreError(
                f"{self.file} cannot be written ({error.strerror or error}); what it holds is kept. "
                "Free some space, and the same call goes on from there."
            ) from error

    def _cut(self) -> None:
        """Cut off a last line that a crash has torn: the next one would be written behind it.

        One that still grows is no torn one: another process is writing it.
        """
        before, end = -1, 0
        with self.file.open("r+b") as file:
            while True:
                before, end = end, file.seek(0, os.SEEK_END)
                file.seek(max(end - 1, 0))
                if file.read() == b"\n":
                    return
                if end == before:
                    break
                time.sleep(_GROWING)
            file.seek(0)
            file.truncate(file.read().rfind(b"\n") + 1)

    def _whole_lines(self) -> list[dict[str, Any]]:
        """Return the lines of the file, without a last one that a crash has torn."""
        if not self.file.exists():
            return []
        text = self.file.read_bytes()
        try:
            lines = [json.loads(line) for line in text[: text.rfind(b"\n") + 1].splitlines()]
            if not all(isinstance(line, dict) for line in lines) or any(
                not line.keys() >= _RESULT for line in lines[1:]
            ):
                raise ValueError("a line is no result")
        except (ValueError, RecursionError) as error:
            raise StoreError(
                f"{self.file} was changed since it was written ({error}). Remove the folder or name another."
            ) from error
        return lines

    def _refuse_another(self, theirs: Mapping[str, Any]) -> None:
        ours = self.about
        differ = [k for k in {**theirs, **ours} if theirs.get(k) != ours.get(k)]
        if differ:
            differences = "; ".join(
                f"{k}: {theirs.get(k)} there, {ours.get(k)} here" for k in differ
            )
            raise StoreError(
                f"{self.folder} holds results of another run ({differences}). "
                "Name another folder, or remove this one."
            )


def _line(record: Mapping[str, Any]) -> bytes:
    return json.dumps(record).encode() + b"\n"
