"""``chreode check``: what a file holds, what is wrong with it, and what to type next."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import anndata as ad
import mudata
import numpy as np
import pandas as pd
import pytest

import chreode as ch
from chreode import models
from chreode.compute import progress
from chreode.data.cells import Cells
from chreode.data.simulate import simulate_citeseq

KEYS = models.keys()
DATA = Path(__file__).parents[3] / "shared" / "data"


def test_check_leads_from_a_file_to_a_fit(say, there):
    code, out, _ = say("check cells.h5ad --json")
    first = json.loads(out)
    assert code == 0
    assert first["suggested"] == (
        "chreode check cells.h5ad --counts layers/counts --batch obs/batch --label obs/cell_type"
    )
    code, out, _ = say(first["suggested"].removeprefix("chreode ") + " --json")
    second = json.loads(out)
    assert code == 0
    assert second["findings"] == []
    assert {m["key"] for m in second["models"]} == set(KEYS)
    fit = second["suggested"].removeprefix("chreode ")
    assert fit.startswith("fit scvi cells.h5ad --counts layers/counts")
    assert say(f"{fit} --max-epochs 1")[0] == 0
    assert ch.load("runs/scvi").schema.label == "obs/cell_type"


def test_check_tells_counts_from_what_is_not(say, there):
    cells = ad.read_h5ad("cells.h5ad")
    cells.raw = cells.copy()
    cells.X = np.log1p(cells.X.toarray())
    cells.layers["scaled"] = cells.X - cells.X.mean(0)
    cells.layers["seen"] = (cells.X > 0).astype(np.float32)
    cells.obsm["words"] = np.full((200, 2), "a", dtype=object)
    cells.obsm["lacking"] = np.where(np.arange(400).reshape(200, 2) % 7, 2.0, np.nan)
    cells.write_h5ad("mixed.h5ad")
    _, out, _ = say("check mixed.h5ad --json")
    told = {m["place"]: m for m in json.loads(out)["matrices"]}
    assert {place for place, m in told.items() if m["counts"]} == {
        "raw",
        "layers/counts",
        "layers/seen",
    }
    assert "normalised" in told["X"]["holds"]
    assert "scaled" in told["layers/scaled"]["holds"]
    assert "detected or not" in told["layers/seen"]["holds"]
    assert "no numbers" in told["obsm/words"]["holds"]
    assert "58 NaN" in told["obsm/lacking"]["holds"]
    assert told["layers/counts"] == {
        "place": "layers/counts", "shape": [200, 80], "dtype": "float32", "sparse": True,
        "counts": True, "holds": f"raw counts: whole numbers, 0 to {int(cells.raw.X.max())}",
    }  # fmt: skip


def test_check_looks_at_every_value(say, there):
    cells = ad.read_h5ad("cells.h5ad")
    cells.layers["nearly"] = cells.X.copy()
    cells.layers["nearly"].data[-1] += 0.5
    cells.write_h5ad("nearly.h5ad")
    _, out, _ = say("check nearly.h5ad --json")
    told = {m["place"]: m["counts"] for m in json.loads(out)["matrices"]}
    assert told["X"]
    assert not told["layers/nearly"]


def test_check_describes_columns(say, there):
    cells = ad.read_h5ad("cells.h5ad")
    cells.obs["day"] = np.linspace(0, 3.5, 200)
    cells.obs["treatment"] = np.where(np.arange(200) % 2, "ctrl", "IFN beta")
    cells.obs["guide"] = np.where(np.arange(200) % 2, "A", "B")
    cells.obs["bar"] = [f"cell{i}" for i in range(200)]
    cells.obs["annotation"] = np.where(np.arange(200) % 2, "", "T")
    cells.obs["nothing"] = np.nan
    cells.write_h5ad("columns.h5ad")
    _, out, _ = say("check columns.h5ad --json")
    told = json.loads(out)
    columns = {c["place"]: c for c in told["columns"]}
    assert columns["obs/day"]["suits"] == ["time"]
    assert columns["obs/treatment"]["control"] == "ctrl"
    assert columns["obs/guide"]["suits"] == []  # none of its values could be the control
    assert columns["obs/bar"]["kind"] == "names"
    assert columns["obs/annotation"]["lacking"] == 100
    assert columns["obs/nothing"]["holds"] == "no value at all"
    assert told["suggested"].endswith("--perturbation obs/treatment --control ctrl")
    _, out, _ = say("check columns.h5ad --perturbation obs/treatment --control CTRL")
    assert "no category 'CTRL' (the control). Did you mean 'ctrl'?" in out


def test_check_fails_on_errors_and_names_the_flag_that_mends_them(say, there):
    cells = ad.read_h5ad("cells.h5ad")
    cells.X = cells.X * 0.5
    cells.obs["type"] = np.where(np.arange(200) % 2, "unknown", "T")
    cells.write_h5ad("half.h5ad")
    code, out, _ = say("check half.h5ad --counts X --label obs/type")
    assert code == 1
    assert "error:   counts (X) holds" in out
    assert "set --fractional" in out
    assert "set --missing unknown" in out
    assert "chreode fit" not in out
    code, out, _ = say("check half.h5ad --counts X --fractional --label obs/type --missing unknown")
    assert code == 0
    assert (
        "chreode fit scvi half.h5ad --counts X --label obs/type --missing unknown --fractional"
        in out
    )


def test_check_for_one_model(say, there):
    code, out, _ = say("check cells.h5ad --batch obs/batch --for scvi")
    assert code == 1
    assert "scvi needs counts" in out
    code, out, _ = say("check cells.h5ad --counts X --for pca --json")
    told = json.loads(out)
    assert code == 0
    assert [m["key"] for m in told["models"]] == ["pca"]
    assert told["suggested"] == "chreode fit pca cells.h5ad --counts X -o runs/pca"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("roles", "model"),
    [
        ("", "scvi"),
        ("--label obs/cell_type", "scvi"),
        ("--time obs/day", "neuralode"),
        ("--time obs/day --trajectory obs/clone", "neuralode"),
        ("--time obs/day --trajectory obs/mouse", "cfgen"),  # each was killed at one time
        ("--time obs/once", "scvi"),
        ("--perturbation obs/drug --control none", "cfgen"),
        ("--perturbation obs/drug --dose obs/day --label obs/cell_type", "cfgen"),
        ("--time obs/day --perturbation obs/drug", "cfgen"),
    ],
)
def test_what_is_suggested_reads_the_roles_that_were_named(say, there, roles, model):
    cells = ad.read_h5ad("cells.h5ad")
    n = np.arange(200)
    cells.obs["day"], cells.obs["once"] = n % 4 * 1.5, 2.0
    cells.obs["mouse"] = [f"m{i % 4}" for i in n]
    cells.obs["clone"] = [f"c{i // 100}" for i in n]
    cells.obs["drug"] = np.where(n % 3, "none", "IFN")
    cells.write_h5ad("more.h5ad")
    code, out, _ = say(f"check more.h5ad --counts layers/counts {roles} --json")
    suggested = json.loads(out)["suggested"]
    assert code == 0
    assert suggested.startswith(f"chreode fit {model} more.h5ad --counts layers/counts")
    short = {
        "scvi": "--max-epochs 1",
        "cfgen": "--max-epochs 1 --flow-epochs 1 --hidden 8",
        "neuralode": "--match-steps 2 --piece-steps 1 --path-steps 1",
    }[model]
    assert say(f"{suggested.removeprefix('chreode ')} {short}")[0] == 0
    for role in roles.split()[::2]:
        assert role in suggested


def test_check_of_a_mudata_names_modalities_and_drops_copies_of_columns(say, there):
    with mudata.set_options(pull_on_update=False):
        simulate_citeseq(120, 60, 8, n_batches=2, seed=0).write("m.h5mu")
    code, out, _ = say("check m.h5mu --json")
    told = json.loads(out)
    assert code == 0
    assert "--counts rna:" in told["suggested"]
    assert "--batch obs/batch" in told["suggested"]
    assert not any(c["place"].endswith(":obs/batch") for c in told["columns"])
    assert say(told["suggested"].removeprefix("chreode "))[0] == 0


def test_check_survives_what_is_odd(say, there):
    cells = ad.read_h5ad("cells.h5ad")[:20].copy()
    cells.obs["whole"] = pd.array([1, None] * 10, dtype="Int64")
    cells.obs["code"] = pd.Categorical([1.0, 2.0] * 10)
    cells.obs["none"] = pd.Categorical([None] * 20, categories=["a"])
    cells.obsm["table"] = pd.DataFrame({"a": 1, "b": "z"}, index=cells.obs_names)
    cells.layers["zero"] = cells.X * 0
    cells.X = None
    cells.obs_names = ["twice", "twice", *cells.obs_names[2:]]
    cells.write_h5ad("odd.h5ad")
    code, out, _ = say("check odd.h5ad --counts X --json")
    told = json.loads(out)
    assert code == 1
    assert "'twice'" in told["findings"][0]["text"]
    assert "no X" in told["findings"][1]["text"]
    assert {m["place"]: m["holds"] for m in told["matrices"]}["layers/zero"] == "zeros alone"
    ad.AnnData(np.zeros((0, 3), np.float32)).write_h5ad("empty.h5ad")
    assert say("check empty.h5ad")[0] == 1


@pytest.mark.parametrize(
    ("place", "roles", "fewer"),
    [
        ("X", "--expression X", True),
        ("X", "--expression X --time obs/day", True),
        ("layers/log", "--counts X --expression layers/log", True),
        ("X", "--counts X", True),
        ("raw", "--counts raw", False),  # fit narrows no raw
        ("obsm/few", "--counts X --expression obsm/few --time obs/day", False),
    ],
)
def test_fewer_genes_are_suggested_where_the_model_reads_many(say, there, place, roles, fewer):
    x = np.random.default_rng(0).poisson(1.0, (20, 5001)).astype(np.float32)
    cells = ad.AnnData(x, layers={"log": np.log1p(x)}, obsm={"few": x[:, :30]})
    cells.obs["day"] = np.arange(20) % 4 * 1.5
    cells.raw = cells
    cells.write_h5ad("wide.h5ad")
    _, out, _ = say(f"check wide.h5ad {roles} --json")
    suggested = json.loads(out)["suggested"]
    n = 100 if "time" in roles else 2000  # a model of time follows every gene
    assert (f"--n-genes {n} " in suggested) == fewer
    if suggested.startswith("chreode fit pca"):  # it can be typed
        assert say(f"{suggested.removeprefix('chreode ')} --n-latent 2")[0] == 0


def test_a_control_like_a_flag_is_suggested_so_that_it_can_be_typed(say, there):
    cells = ad.read_h5ad("cells.h5ad")
    cells.obs["treatment"] = np.where(np.arange(200) % 2, "-ctrl", "IFN")
    cells.write_h5ad("odd.h5ad")
    suggested = json.loads(say("check odd.h5ad --json")[1])["suggested"]
    assert "--control=-ctrl" in suggested
    code, out, _ = say(f"{suggested.removeprefix('chreode ')} --json")
    assert code == 0
    assert "--control=-ctrl" in json.loads(out)["suggested"]


def test_a_bar_does_not_steer_the_terminal(say, there, monkeypatch):
    shown, tqdm = [], progress.tqdm
    spy = lambda **given: shown.append(given["desc"]) or tqdm(**given)  # noqa: E731
    monkeypatch.setattr(progress, "tqdm", spy)
    cells = ad.read_h5ad("cells.h5ad")
    cells.layers["\x1b]0;owned\x07"] = cells.X
    cells.write_h5ad("odd.h5ad")
    assert say("check odd.h5ad")[0] == 0
    assert r"look at layers/\x1b]0;owned\x07" in shown
    assert all(text.isprintable() for text in shown)


def test_check_warns_of_whole_numbers_in_the_wrong_role(say, there):
    cells = ad.read_h5ad("cells.h5ad")
    x = cells.X.toarray()
    cells.layers["rounded"] = np.round(1e4 * x / x.sum(1, keepdims=True))
    cells.write_h5ad("more.h5ad")
    code, out, _ = say("check more.h5ad --expression X")
    assert code == 0
    assert "warning: expression (X) looks like raw counts" in out
    code, out, _ = say("check more.h5ad --counts layers/rounded")
    assert code == 0
    assert "warning: counts (layers/rounded) looks normalised and rounded" in out
    assert "chreode fit" in out


@pytest.mark.parametrize(
    ("role", "values", "kept"),
    [
        ("--time obs/t", [np.nan, 0.5], 100),
        ("--time obs/t", [np.inf, 0.5, np.nan, 1.0], 100),
        ("--batch obs/t", [None, "a", "b", "c"], 150),
        ("--missing nan --batch obs/t", ["nan", "a", "b", "c"], 150),
        ("--batch 'obs/of day'", [None, "a", "b", "c"], 150),
    ],
)
def test_what_is_said_to_remove_cells_can_be_typed(say, there, role, values, kept):
    cells = ad.read_h5ad("cells.h5ad")
    name = role.partition("obs/")[2].removesuffix("'")
    cells.obs[name] = np.resize(np.array(values, dtype=object), 200)
    if "time" in role:
        cells.obs[name] = cells.obs[name].astype(float)
    cells.write_h5ad("more.h5ad")
    line = f"check more.h5ad --expression X {role} --json"
    code, out, _ = say(line)
    (text,) = (f["text"] for f in json.loads(out)["findings"] if f["level"] == "error")
    assert code == 1
    rows = shlex.split(
        text.partition("Remove such cells: ")[2].partition(", or give")[0].rstrip(".")
    )
    assert rows[0] == "--rows"
    code, out, _ = say(f"{line} {shlex.join(rows)}")
    told = json.loads(out)
    assert (code, [f for f in told["findings"] if f["level"] == "error"]) == (0, [])
    assert shlex.join(rows) in told["suggested"]
    found = Cells.of(cells, ch.Schema()).positions(rows[1], "rows")
    assert len(found) == kept


@pytest.mark.parametrize("kind", ["category", "object"])
@pytest.mark.parametrize(
    ("names", "expected"), [(["day_7", "day_7.5"], [7, 7.5]), (["7", "1e1"], [7, 10])]
)
def test_what_is_said_to_make_numbers_makes_them(cells_of_text, kind, names, expected):
    data = cells_of_text
    data.obs["t"] = pd.Series(np.resize(names, data.n_obs), data.obs_names).astype(kind)
    with pytest.raises(ch.SchemaError, match="holds text .such as '7|day_7'") as told:
        Cells.of(data, ch.Schema(time="obs/t")).numbers("time")
    exec(str(told.value).partition("expected numbers: ")[2].partition(". If it")[0], {"data": data})
    assert data.obs["t"].tolist()[:2] == expected


@pytest.fixture
def cells_of_text(there):
    return ad.read_h5ad("cells.h5ad")


FILES = sorted(p.relative_to(DATA) for p in DATA.rglob("*.h5*")) or [Path("kang_pbmc_ifnb")]


@pytest.mark.slow
@pytest.mark.parametrize("file", FILES, ids=str)
def test_check_suggests_sound_roles_for_real_files(say, real, file):
    code, out, _ = say(f"check {real(file)} --json")
    suggested = json.loads(out)["suggested"]
    assert code == 0
    assert suggested.split()[3] in ("--counts", "--expression", "--views")
    code, out, _ = say(suggested.removeprefix("chreode ") + " --json")
    errors = [f["text"] for f in json.loads(out)["findings"] if f["level"] == "error"]
    assert code == bool(errors)
    assert all("without any counts" in text for text in errors)  # as files of real cells may


def test_check_shows_matrices_of_nothing_and_names_of_any_length(say, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cells = ad.AnnData(np.zeros((4, 0), np.float32), obsm={"none": np.zeros((4, 0))})
    cells.obs["long"], cells.obs["y" * 3000], cells.obs["huge"] = "x" * 10**5, 1, 1e300
    cells.write_h5ad("odd.h5ad")
    code, out, _ = say("check odd.h5ad")
    assert code == 0
    assert out.count("no features") == 2
    assert len(out) < 2000
    told = json.loads(say("check odd.h5ad --json")[1])
    assert f"obs/{'y' * 3000}" in [c["place"] for c in told["columns"]]  # whole, to be copied
