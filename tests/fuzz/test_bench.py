"""A report is made of any bench that can be read, and what is none is refused."""

from __future__ import annotations

import contextlib
import io
import json

import pytest
from fuzz.common import JSON, examples
from fuzz.test_store import changed
from hypothesis import given
from hypothesis import strategies as st

import chreode as ch
from chreode.commands.app import main


class Saved(dict):
    """What a bench was saved as."""

    def __repr__(self):
        return "saved"


@pytest.fixture(scope="module")
def saved(_simulated, tmp_path_factory):
    file = tmp_path_factory.mktemp("bench") / "bench.json"
    roles = ch.Schema(counts="X", batch="obs/batch", label="obs/cell_type")
    metrics = ["silhouette_label", "bras"]
    cells = _simulated[:120, :60].copy()
    ch.bench.integration(cells, roles, [ch.PPCA()], seeds=(0,), metrics=metrics).save(file)
    return Saved(json.loads(file.read_text()))


def reported(folder, told):
    (folder / "bench.json").write_text(json.dumps(told))
    with (
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        return main(["report", str(folder / "bench.json"), "-o", str(folder / "out.html")])


@pytest.mark.slow
@examples(60)
@given(data=st.data())
def test_a_changed_bench_is_reported_or_refused(saved, tmp_path, data):
    assert reported(tmp_path, changed(data, saved, ("set", "remove"))) in (0, 1)


@pytest.mark.slow
@examples(60)
@given(told=JSON)
def test_what_is_no_bench_is_refused(tmp_path, told):
    assert reported(tmp_path, told) == 1
