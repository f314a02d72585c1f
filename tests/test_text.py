"""Names out of strangers' files: at a terminal, in Markdown, HTML, pictures and spreadsheets."""

from __future__ import annotations

import io
import re

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from markdown_it import MarkdownIt

import chreode as ch
from chreode import text
from chreode.commands.app import main

WICKED = (
    "\x1b]0;OWNED\x07\x1b[2J", "\x9b31m", "a\nerror: forged", "a\r\x08b", "\u202egnp.exe", "\u2066x",
    "\x00", "\x7f", "\ud800", "\u2028", "# head\n# forged", "<script>alert(1)</script>", "a|b|c",
    "[x](http://e.vil)", "`x`", "*x*", "~~x~~", "$\\frac{$", "IFN$a$b", "&amp;", "\\", "=cmd()|x", "@x",
)  # fmt: skip
STEERING = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)


@pytest.mark.parametrize("name", WICKED)
def test_a_name_steers_no_terminal_and_begins_no_line(name):
    shown = text.visible(name)
    assert not STEERING.search(shown)
    assert "\n" not in shown
    shown.encode()


def test_letters_of_all_scripts_stay_as_they_are():
    for name in ("CD8⁺ T", "基因", "é", "e\u0301", "Größe µm", "👩", "a\u00a0b", "م"):
        assert text.visible(name) == name


@pytest.mark.parametrize("name", WICKED)
def test_markdown_shows_a_name_as_it_is(name):
    page = (
        MarkdownIt("commonmark")
        .enable("table")
        .render(f"| a | b |\n|---|---|\n| {text.markdown(name)} | 1 |")
    )
    cells = re.findall("<td>(.*?)</td>", page)
    assert len(cells) == 2
    assert "<" not in cells[0]


def test_a_spreadsheet_runs_nothing():
    names = ["=1+1", "+1+cmd()", "-HYPERLINK()", "@SUM(A1)", " =1", "\t=1", "\r=1", "-1", "+2.5e3"]
    names += ["CD8A", None]
    table = pd.DataFrame({"gene": names, "=weight": np.arange(11.0), "kind": pd.Categorical(names)})
    safe = text.spreadsheet(table)
    assert table["gene"][0] == "=1+1"
    read = pd.read_csv(io.StringIO(safe.to_csv(index=False)), dtype=str)
    assert read.columns[1] == "'=weight"
    for column in ("gene", "kind"):
        assert read[column][:5].str.startswith("'").all()
        assert read[column][5:7].tolist() == [r"\t=1", r"\r=1"]
        assert read[column][7:10].tolist() == names[7:10]


@pytest.mark.parametrize("error", [ch.SchemaError, ch.StoreError, ch.FitError])
def test_errors_quote_visibly_and_not_at_length(error):
    said = str(error("what \x1b[2J is this\nand that" + 10**6 * "x"))
    assert "\\x1b[2J is this\nand that" in said
    assert len(said) < 5000


@pytest.fixture
def wicked(cells) -> ad.AnnData:
    out = cells[:200, :30].copy()
    out.obs["\x1b[31mdonor\n# forged"] = np.resize(np.array(WICKED[:3], object), 200)
    out.obs["batch"] = np.resize(np.array(WICKED[:3], object), 200)
    out.obs = out.obs.astype({"batch": "category"})
    out.var_names = [f"{WICKED[i % 6]}{i}" for i in range(30)]
    return out


@pytest.mark.slow
def test_commands_and_pages_show_names_visibly(wicked, tmp_path, capsys):
    wicked.write_h5ad(tmp_path / "a.h5ad")
    schema = ch.Schema(
        counts="layers/counts",
        batch="obs/batch",
        label="obs/cell_type",
        categorical=("obs/\x1b[31mdonor\n# forged",),
    )
    ch.SCVI(max_epochs=1).fit(wicked, schema).save(tmp_path / "model")
    card = (tmp_path / "model" / "card.md").read_text()
    assert not STEERING.search(card)
    assert "\n# forged" not in card
    roles = ["--counts", "layers/counts", "--batch", "obs/batch"]
    for command in (
        ["check", f"{tmp_path}/a.h5ad"], ["check", f"{tmp_path}/a.h5ad", *roles],
        ["show", f"{tmp_path}/model"], ["check", f"{tmp_path}/a.h5ad", "--json"],
        ["check", f"{tmp_path}/a.h5ad", "--counts", "X\x1b[2J"],
        ["generate", f"{tmp_path}/model", "-n", "3", "-o", f"{tmp_path}/x.h5ad", "--given.batch", "q"],
        ["embed", f"{tmp_path}/no\x1b[2J", f"{tmp_path}/a.h5ad"], ["fit", "sc\x1b[2Jvi", "x"],
        ["report", f"{tmp_path}/model", "-o", f"{tmp_path}/page.html"],
    ):  # fmt: skip
        main(command)
        said = "".join(capsys.readouterr())
        assert said
        assert not STEERING.search(said), command
        assert "\n# forged" not in said
        assert "\nerror: forged" not in said
    assert not STEERING.search((tmp_path / "page.html").read_text())
