"""The kernel is built once, privately, and left out wherever something is wrong with it."""

from __future__ import annotations

import contextlib
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from chreode.losses import kernel


@pytest.fixture
def fresh(monkeypatch, tmp_path):
    """An empty cache of its own, and no memory of a library."""
    monkeypatch.setenv("CHREODE_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("CHREODE_KERNEL", raising=False)
    kernel._library.cache_clear()
    yield tmp_path / "cache"
    kernel._library.cache_clear()


def needs_a_compiler():
    if not kernel.available():
        pytest.skip("no kernel: there is no C compiler")


@pytest.mark.slow
def test_it_is_built_once_where_others_cannot_write(fresh, monkeypatch):
    needs_a_compiler()
    (built,) = fresh.rglob("*.so")
    assert stat.S_IMODE(built.parent.stat().st_mode) == 0o700
    before = built.stat().st_mtime_ns
    kernel._library.cache_clear()
    assert kernel.available()
    assert [f.stat().st_mtime_ns for f in fresh.rglob("*.so")] == [before]


@pytest.mark.slow
def test_a_folder_that_others_can_write_to_is_not_used(fresh):
    needs_a_compiler()
    kernel._library.cache_clear()
    (fresh / "kernel").chmod(0o770)
    assert not kernel.available()


@pytest.mark.slow
def test_a_place_that_everybody_can_write_to_is_not_used(fresh):
    fresh.mkdir()
    fresh.chmod(0o777)
    assert not kernel.available()
    fresh.chmod(0o1777)  # as /tmp: nobody can replace what others have made there
    kernel._library.cache_clear()
    needs_a_compiler()


@pytest.mark.slow
def test_it_shares_the_threads_of_torch(fresh):
    needs_a_compiler()
    if not Path("/proc/self/maps").exists():
        pytest.skip("no /proc to look at")
    # in a process of its own: what other tests import may bring a pool of threads with it
    script = (
        "from pathlib import Path; from chreode.losses import kernel; assert kernel.available(); "
        "print(Path('/proc/self/maps').read_text())"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], check=True, capture_output=True, text=True
    )
    loaded = {line.split()[-1] for line in done.stdout.splitlines() if "gomp" in line}
    packages = Path(torch.__file__).parents[1]  # the system's own would be a second pool of threads
    assert loaded
    assert all(Path(library).is_relative_to(packages) for library in loaded), loaded


@pytest.mark.slow
def test_it_can_do_without_threads(fresh, monkeypatch):
    needs_a_compiler()
    monkeypatch.setattr(kernel, "_threading", lambda: [["-no-such-flag"], []])
    kernel._library.cache_clear()
    assert kernel.available()


def test_without_a_compiler_it_is_left_out(fresh, monkeypatch):
    monkeypatch.setenv("CC", "no-such-compiler")
    assert not kernel.available()
    assert not kernel.serves(torch.zeros(1, 1))


def test_a_compiler_that_fails_is_survived(fresh, monkeypatch):
    monkeypatch.setenv("CC", "false")
    assert not kernel.available()


@pytest.mark.slow
def test_a_wrong_kernel_is_not_used(fresh, monkeypatch, tmp_path):
    needs_a_compiler()
    wrong = tmp_path / "wrong.c"
    source = kernel._SOURCE.read_text()
    assert "weights[i] * by_mu" in source
    wrong.write_text(source.replace("weights[i] * by_mu", "2 * weights[i] * by_mu"))
    monkeypatch.setattr(kernel, "_SOURCE", wrong)
    kernel._library.cache_clear()
    assert not kernel.available()
    assert len(list(fresh.rglob("*.so"))) == 1  # the right one, built before


def test_the_environment_turns_it_off(monkeypatch):
    monkeypatch.setenv("CHREODE_KERNEL", "0")
    assert not kernel.available()


def test_it_serves_float32_on_the_cpu(monkeypatch):
    monkeypatch.delenv("CHREODE_KERNEL", raising=False)
    needs_a_compiler()
    assert kernel.serves(torch.zeros(1, 1))
    assert not kernel.serves(torch.zeros(1, 1, dtype=torch.float64))
    assert not kernel.serves(torch.zeros(1, 1, device="meta"))


@pytest.mark.slow
def test_what_is_damaged_foreign_or_stale_is_built_anew(fresh):
    """None of it is loaded: a name tells the content, and a file of others is not ours to run."""
    needs_a_compiler()
    assert kernel._library.__wrapped__() is not None
    (path,) = (fresh / "kernel").glob("*.so")
    whole = path.read_bytes()
    for content in (b"short", whole[:5000], whole + b"more", whole[:-9] + bytes(9)):
        path.unlink()  # it is mapped: the test must not change it in place
        path.write_bytes(content)
        assert kernel._library.__wrapped__() is not None
        assert path.read_bytes() == whole
    path.chmod(0o777)
    kernel._library.__wrapped__()
    assert path.stat().st_mode & 0o022 == 0
    elsewhere = fresh / "elsewhere.so"
    path.rename(elsewhere)
    path.symlink_to(elsewhere)
    assert kernel._library.__wrapped__() is not None
    assert not path.is_symlink()
    assert {p.name for p in (fresh / "kernel").iterdir()} == {path.name}


@pytest.mark.parametrize(
    "compiler", ['gcc "', "true", "echo", "/", "/etc/passwd", "cc -no-such-flag", "' '"]
)
def test_an_odd_compiler_is_survived(fresh, monkeypatch, compiler):
    monkeypatch.setenv("CC", compiler)
    assert kernel._library.__wrapped__() is None


@pytest.mark.slow
def test_a_compiler_may_have_arguments(fresh, monkeypatch):
    needs_a_compiler()
    monkeypatch.setenv("CC", "env -u NOTHING cc -g0")
    assert kernel._library.__wrapped__() is not None


def test_a_compiler_that_hangs_is_ended_with_what_it_has_started(
    fresh, monkeypatch, tmp_path, caplog
):
    hanging = tmp_path / "cc"
    hanging.write_text(f"#!/bin/sh\necho $$ > {tmp_path}/pid\nsleep 600\n")
    hanging.chmod(0o755)
    monkeypatch.setenv("CC", str(hanging))
    monkeypatch.setattr(kernel, "_PATIENCE", (2, 2))
    assert kernel._library.__wrapped__() is None
    group = int((tmp_path / "pid").read_text())
    end = time.monotonic() + 10
    while (running := alive(group)) and time.monotonic() < end:
        time.sleep(0.05)
    assert not running


def alive(group):
    """Return the processes of a group that have not ended."""
    found = []
    for file in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it ends meanwhile
            state, _, of = file.read_text().rpartition(")")[2].split()[:3]
            found += [file] if int(of) == group and state != "Z" else []
    return found


def test_no_home_and_a_place_that_cannot_be_written_are_survived(fresh, monkeypatch, tmp_path):
    def homeless():
        raise RuntimeError("Could not determine home directory.")

    (tmp_path / "file").write_text("")
    monkeypatch.setenv("CHREODE_CACHE", str(tmp_path / "file" / "cache"))
    assert kernel._library.__wrapped__() is None
    for name in ("CHREODE_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(kernel.Path, "home", homeless)
    assert kernel._library.__wrapped__() is None
