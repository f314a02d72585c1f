"""Help, errors and exit codes: in this process where that will do, in one of its own where not."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import anndata as ad
import pytest
import torch

import chreode as ch
from chreode import models
from chreode.commands import judge
from chreode.commands.app import main
from chreode.commands.common import schema_flags
from chreode.commands.spelling import spoken
from chreode.schema import ROLES as ALL_ROLES

KEYS = models.keys()
COMMANDS = [
    "demo", "check", "embed", "generate", "correct", "augment", "bench integration",
    "bench probe", "bench generation", "report", "models", "show",
]  # fmt: skip
ROLES = "--counts layers/counts --batch obs/batch"


def listing(folder: Path) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


# help


@pytest.mark.parametrize("command", ["", *COMMANDS, "fit", *(f"fit {k}" for k in KEYS)])
def test_every_command_has_help(say, command):
    code, out, err = say(f"{command} --help")
    assert (code, err) == (0, "")
    assert f"Usage: chreode {command}".strip() in out


PAGE = (Path(__file__).parents[2] / "docs" / "cli.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("command", re.findall("^## (.+)$", PAGE.partition("<!-- from")[2], re.M))
def test_the_page_of_commands_says_what_their_help_prints(say, command):
    section = PAGE.partition(f"## {command}\n")[2].partition("\n## ")[0]
    told = re.findall("^(?:Example: )?`(chreode .+)`$", section, re.M)
    helps = [command.replace("MODEL", "scvi"), command.removesuffix(" MODEL")]
    printed = " ".join(" ".join(say(f"{words} --help")[1] for words in helps).split())
    assert len(told) == 2
    assert f"Usage: {told[0].replace(' MODEL ', ' scvi ', command.count('MODEL'))}" in printed
    assert f"Example: {told[1]}" in printed


def test_every_bench_is_on_the_page():
    for name in judge.bench:
        assert name.startswith("-") or f"\n## bench {name}\n" in PAGE


@pytest.mark.parametrize(
    ("command", "reads"),
    [
        ("trajectory", lambda model: "time" in model.needs),
        ("bench dynamics", lambda model: "time" in model.needs),
        ("bench generation", lambda model: model.scale == "counts"),
        ("bench integration", lambda model: True),
        ("bench probe", lambda model: True),
        *((f"fit {key}", lambda model, key=key: model.__name__.lower() == key) for key in KEYS),
    ],
)
def test_help_shows_the_roles_that_are_read(say, command, reads):
    found = [model for key in KEYS if reads(model := models.find(key))]
    read = {r for m in found for r in "|".join((*m.needs, *m.uses)).split("|")}
    read |= {"batch", "label"} if command in ("bench integration", "bench probe") else set()
    _, out, _ = say(f"{command} --help")
    section = out.partition("Roles: where the data lives")[2].partition("How to run")[0]
    shown = set(re.findall(r"--([a-z-]+)", section)) & {
        role.replace("_", "-") for role in ALL_ROLES
    }
    assert shown == {role.replace("_", "-") for role in read}


def test_no_two_roles_have_the_same_help():
    helps = [flag.annotation.__metadata__[-1].help for flag in schema_flags()]
    assert all(helps)
    assert len(set(helps)) == len(helps)
    assert not any('("' in text for text in helps)  # no tuple of Python


def test_the_first_page_and_the_list_of_models_load_no_heavy_library():
    script = (
        "import sys; from chreode.commands.app import main\n"
        "codes = [main(line.split()) for line in ('--help', 'fit --help', '--version')]\n"
        "heavy = {'torch', 'anndata', 'numpy', 'pandas', 'scipy', 'matplotlib'} & set(sys.modules)\n"
        "sys.exit(f'{codes} {heavy}' if any(codes) or heavy else 0)"
    )
    done = in_a_process("-c", script)
    assert done.returncode == 0, done.stderr
    for key in KEYS:
        assert f" {key} " in done.stdout
    assert ch.__version__ in done.stdout


# errors: the code, the text, and nothing left behind


@pytest.mark.parametrize(
    ("line", "code", "said"),
    [
        ("fit scvi cells.h5ad --counts layers/count -o x", 1, "Did you mean 'counts'?"),
        ("fit scvi cells.h5ad -o x", 1, "SCVI needs counts; name its place, as in --counts"),
        ("fit scvi cells.h5ad --counts obsm/true_latent -o x", 1, "negative values"),
        ("fit scvi cells.h5ad --counts X --n-latent 0 -o x", 1, "expected a number of at least 1"),
        ("fit scvi cells.h5ad --counts X --validation 2 -o x", 1, "validation=2"),
        ("fit scvi cells.h5ad --counts X -o .", 1, "holds no model"),
        ("fit scvi gone.h5ad --counts X -o x", 1, "no file 'gone.h5ad'"),
        ("fit scvi broken.h5ad --counts X -o x", 1, "cannot be read"),
        ("fit pca cells.h5ad --n-genes 5 -o x", 1, "--counts layers/counts"),
        ("fit pca cells.h5ad --counts obsm/whole --n-genes 5 -o x", 1, "X or layers/NAME"),
        ("fit pca cells.h5ad --counts X --n-latent 5.5 -o x", 2, "'5.5' is no whole number"),
        ("fit scvi cells.h5ad --n_latnt 5 -o x", 2, "Did you mean --n-latent?"),
        ("fit scvi cells.h5ad --likelihood nbb -o x", 2, 'Did you mean "nb"?'),
        ("fit scvi cells.h5ad --threads 0 -o x", 2, "--threads"),
        ("fit scvi cells.h5ad --counts X", 2, "--output is missing: add --output VALUE. See:"),
        ("fit scvi", 2, "FILE is missing. See: chreode fit scvi --help"),
        ("fit scvii cells.h5ad", 2, "Did you mean 'scvi'?"),
        ("fit scVI cells.h5ad", 2, "no command 'scVI'. Did you mean 'scvi'? See: chreode fit --help"),
        ("show .", 1, "model folder: model.json is absent or a link. Models inside it: pca, scvi."),
        ("fit scvi cells.h5ad --counts counts -o x", 1, "a layer 'layers/counts'"),
        ("check cells.h5ad --batch batch", 1, "A column of that name is 'obs/batch'"),
        ("embed pca cells.h5ad -o out.csv", 1, "ends in .h5ad"),
        *((f"embed pca {file} {more}", 1, "expected a name that ends in .h5ad")
          for file in (".", "''", "/", "cells.csv") for more in ("", "--in-place")),
        ("embed pca cells.csv", 1, "anndata.io.read_csv('cells.csv')"),
        ("correct scvi cells.h5 --to.batch batch_1 --latent -o new.h5ad", 1,
         "scanpy.read_10x_h5('cells.h5')"),
        *((f"embed pca cells.h5ad --in-place --key-added {key}", 1, "is no name of a slot")
          for key in ("/X", "../X", "a/b", ".", "..")),
        ("tune ppca cells.h5ad --counts X --into runs -o ./runs", 1, "choose another place"),
        ("tune ppca cells.h5ad --counts X --into new/kept -o new", 1, "choose another place"),
        ("bench integration cells.h5ad --keys a --into b.json/x -o b.json", 1, "choose another place"),
        ("bench integration cells.h5ad --keys a --into b.json -o b.json", 1, "choose another place"),
        ("fit pca cells.h5ad --counts X --threads 100000 -o x", 2, "<= 1024"),
        ("embed gone cells.h5ad -o out.h5ad", 1, "no model folder"),
        ("generate scvi -n 5 --given.batch batch_7 -o new.h5ad", 1, "never seen"),
        ("generate scvi -n 5 --given p3 -o new.h5ad", 2, "Write --given batch=p3, or --given.batch p3. See:"),
        ("generate scvi -n 5 --given.a.b d -o new.h5ad", 1, "condition 'a.b'"),
        ("generate scvi -n 5 --given.batch p3 --given.batch.x d -o new.h5ad", 2,
         "--given.batch.x. See: chreode generate --help"),
        ("correct scvi cells.h5ad --to.batch.x d --to.batch p3 -o new.h5ad", 2, "cannot be read together"),
        ("generate scvi -n 5 --given.batch -o new.h5ad", 2,
         "--given.batch needs a value, as in --given.batch VALUE. See: chreode generate --help"),
        ("correct scvi cells.h5ad -o new.h5ad --to.batch", 2, "as in --to.batch VALUE. See"),
        ("fit scvi cells.h5ad --counts -o x", 2, "--counts needs a value, as in --counts VALUE. See"),
        ("correct scvi cells.h5ad --to p3 -o new.h5ad", 2, "--to batch=p3, or --to.batch p3. See:"),
        ("trajectory scvi cells.h5ad --times day0 -o new.h5ad", 2, "'day0'; expected a number. See"),
        ("fit pca cells.h5ad --counts X --n-latent ten -o x", 2, "'ten' is no whole number. See"),
        ("generate scvi -n 5 --given.donor d -o new.h5ad", 1, "Available: batch"),
        ("generate scvi -n 5 --given batch=a --given batch=b -o new.h5ad", 2, "batch is given twice"),
        ("generate scvi -n 5 --given.batch a --given.batch b -o new.h5ad", 2, "batch is given twice"),
        ("correct scvi cells.h5ad --to batch=a --to.label b -o new.h5ad", 2,
         "Write all of --to the same way: --to batch=p3, or --to.batch p3."),
        ("fit pca cells.h5ad --counts X --seed 99999999999999999999999 -o x", 2, "a number of 64 bits"),
        ("rank scvi -n 0", 2, ">= 1"),
        ("rank scvi -n -3", 2, ">= 1"),
        ("fit pca cells.h5ad --from scvi -o x", 1, "--from is a fitted scvi, this is pca"),
        ("fit scvi cells.h5ad --from scvi --n-hidden 7 -o x", 1, "Leave these out, so that they are as in"),
        ("fit pca cells.h5ad --config deep.toml -o x", 1, "cannot be read as TOML"),
        ("generate pca -n 5 -o new.h5ad", 1, "PCA cannot generate; it offers"),
        ("generate scvi -n 5 --guidance 2 -o new.h5ad", 1, "no guidance"),
        ("generate scvi -n -1 -o new.h5ad", 1, "n=-1"),
        ("generate scvi -n 0 -o new.h5ad", 1, "n=0: expected a whole number of at least 1"),
        ("correct pca cells.h5ad --to.batch batch_1 -o new.h5ad", 1, "PCA cannot correct; it offers"),
        ("correct scvi cells.h5ad --to.batch batch_1 -o cells.h5ad", 1, "is the input. Choose another"),
        ("correct scvi cells.h5ad --to.batch batch_1 --latent -o cells.h5ad", 1, "is the input"),
        ("augment scvi cells.h5ad --by batch -o cells.h5ad", 1, "is the input"),
        ("trajectory scvi cells.h5ad -o cells.h5ad", 1, "is the input"),
        ("generate scvi -n 5 -o new.csv", 1, "ends in .h5ad"),
        ("bench integration cells.h5ad --counts X --batch obs/batch --label obs/cell_type -o b.json",
         1, "Name what to score"),
        ("bench integration cells.h5ad --counts X --batch obs/batch --keys true_latent -o b.json",
         1, "needs label: --label obs/"),
        ("bench integration cells.h5ad --keys a -o b.csv", 1, "ends in .json"),
        ("report gone.json -o r.html", 1, "gone.json"),
        ("report scvi -o r.pdf", 1, "ends in .html"),
        ("show gone", 1, "no model folder"),
        ("check cells.h5ad --for scv", 1, "Did you mean 'scvi'?"),
    ],
)  # fmt: skip
def test_errors_say_what_to_do_and_leave_nothing_behind(say, there, line, code, said):
    (there / "broken.h5ad").write_bytes(Path("cells.h5ad").read_bytes()[:5000])
    (there / "deep.toml").write_text(f"[model]\nx = {5000 * '['}")
    if "whole" in line:
        cells = ad.read_h5ad("cells.h5ad")
        cells.obsm["whole"] = cells.X.toarray()
        (there / "cells.h5ad").unlink()
        cells.write_h5ad("cells.h5ad")
    before = listing(there)
    assert (*say(line)[:2],) == (code, "")
    again, out, err = say(f"{line} --json")
    assert again == code
    assert said in err
    assert f"\n{err}".partition("\nerror: ")[0].count("\n") <= 1  # a note on the model, at the most
    assert "\nerror: " in f"\n{err}"
    assert "Traceback" not in err
    told = json.loads(out)
    assert said in told["error"]
    assert told["kind"].endswith("Error")
    assert listing(there) == before


def test_a_device_that_is_not_there(say, there):
    if torch.cuda.is_available():
        pytest.skip("this machine has CUDA")
    code, _, err = say(f"fit scvi cells.h5ad {ROLES} --device cuda -o x")
    assert code == 1
    assert "device='cuda'" in err


def test_threads_are_set_before_the_work(say, there):
    before = torch.get_num_threads()
    try:
        code, *_ = say(f"fit pca cells.h5ad {ROLES} --threads 2 -o p")
        assert (code, torch.get_num_threads()) == (0, 2)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("set Schema(fractional=True).", "set --fractional."),
        ("set Schema(missing=('nan',)).", "set --missing nan."),
        ("Schema(size_factor='obs/…').", "--size-factor obs/…."),
        ("Schema(counts=3) stays", "Schema(counts=3) stays"),
        # names in a file may look like anything
        (r"never saw \"Schema(counts='\x')\"", r"never saw \"Schema(counts='\x')\""),
        ("Schema(counts='\ud800\0')", "--counts '\ud800\0'"),
        ("Schema(missing=('-',))", "--missing=-"),
        ("a model that cannot predict", "a model that cannot correct"),
        ("as in seeds=(0,).", "as in --seeds 0."),
        (
            "Map them: fitted.model.fit(query, schema, from_=fitted).",
            "Map them: chreode fit MODEL FILE --from FOLDER.",
        ),
    ],
)
def test_messages_are_in_the_words_of_the_command_line(text, said):
    assert spoken(text) == said


def test_ctrl_c_elsewhere_is_130_with_no_traceback(say, there, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("chreode.data.cells.read", stop)
    code, out, err = say("check cells.h5ad --json")
    assert code == 130
    assert json.loads(out)["kind"] == "KeyboardInterrupt"
    assert err == "error: interrupted\n"


@pytest.mark.parametrize("error", [RuntimeError("a bug"), OSError(5, "a disk"), MemoryError()])
def test_what_nobody_foresaw_is_one_document_too(there, monkeypatch, capsys, error):
    def fail(*_):
        raise error

    monkeypatch.setattr("chreode.data.cells.read", fail)
    with contextlib.suppress(RuntimeError, OSError):  # Python says where, and returns 1
        assert main(["check", "cells.h5ad", "--json=true"]) == 1
    assert json.loads(capsys.readouterr().out)["kind"] == type(error).__name__


@pytest.mark.parametrize(
    "line",
    [
        f"fit pca cells.h5ad {ROLES} -o PLACE",
        f"tune ppca cells.h5ad {ROLES} -o PLACE",
        "embed pca cells.h5ad -o PLACE.h5ad",
        "generate scvi -n 5 -o PLACE.h5ad",
        "correct scvi cells.h5ad --to.batch batch_1 -o PLACE.h5ad",
        "augment scvi cells.h5ad --by batch -o PLACE.h5ad",
        "trajectory scvi cells.h5ad -o PLACE.h5ad",
        "rank scvi -o PLACE.csv",
        f"bench integration cells.h5ad {ROLES} --label obs/cell_type --keys a -o PLACE.json",
        f"bench integration cells.h5ad {ROLES} --label obs/cell_type --keys a --report PLACE.html",
        f"bench generation cells.h5ad {ROLES} -o PLACE.json",
        "bench dynamics cells.h5ad --tests a --report PLACE.html",
        "report scvi -o PLACE.html",
        "demo --offline -o PLACE",
    ],
)
@pytest.mark.parametrize("place", ["notes/x", "/proc/x", "shut/deep/x"])
def test_a_place_that_cannot_be_written_is_told_before_the_work(
    say, there, monkeypatch, line, place
):
    def work(*_, **__):
        raise AssertionError("the work had begun")

    if place.startswith("shut"):
        if os.geteuid() == 0:
            pytest.skip("root may write everywhere")
        (there / "shut").mkdir(mode=0o500)
    (there / "notes").write_text("a file")
    before = listing(there)
    monkeypatch.setattr("chreode.data.cells.read", work)
    monkeypatch.setattr("chreode.verbs.cells.generate", work)
    monkeypatch.setattr("chreode.simulate.simulate_cells", work)
    code, out, err = say(line.replace("PLACE", place))
    assert (code, out) == (1, "")
    assert "cannot be written: " in err
    assert listing(there) == before


@pytest.mark.parametrize(
    "line",
    ["embed pca cells.h5ad", "generate scvi -n 5", "correct scvi cells.h5ad --to.batch batch_1"],
)
def test_a_folder_is_no_place_for_a_file(say, there, line):
    """It was said that it would be replaced, and after the work that the disk might be full."""
    (there / "out.h5ad").mkdir(exist_ok=True)
    code, out, err = say(f"{line} -o out.h5ad")
    assert (code, out) == (1, "")
    assert err == "error: out.h5ad is a folder; choose another place.\n"


def test_a_terminal_without_the_letters_is_shown_their_codes(there, monkeypatch):
    """Nor does it end a command whose work is done."""
    os.link(os.path.realpath("cells.h5ad"), "zelle_ä_細胞.h5ad")
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))
    assert main(["embed", "pca", "zelle_ä_細胞.h5ad"]) == 0
    assert rb"zelle_\xe4_\u7d30\u80de.embedded.h5ad" in raw.getvalue()


def test_closed_errors_are_no_answer(there, monkeypatch, capsys):
    """As ``2>&-`` asks for: they do not go to the document."""
    monkeypatch.setattr(sys, "stderr", None)
    assert main(["show", "gone", "--json"]) == 1
    sys.stderr.close()
    assert json.loads(capsys.readouterr().out)["kind"] == "StoreError"


def test_of_several_processes_one_tells_the_error(say, there, monkeypatch):
    for rank, told in (("0", 1), ("1", 0)):
        monkeypatch.setenv("RANK", rank)
        for name in ("WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
            monkeypatch.setenv(name, "2")
        code, out, err = say(
            "fit scvi cells.h5ad --counts X --n-latent 0 --distributed --json -o x"
        )
        assert (code, out.count("ConfigError")) == (1, told)
        assert "n_latent=0" in err
        assert "ConfigError" in say("fit scvi cells.h5ad --n-latent 0 --json -o x")[1]


@pytest.mark.parametrize("line", ["check cells.h5ad", "show scvi", "models", "--help"])
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no full device")
def test_an_answer_on_a_full_disk_is_lost_in_a_line(there, monkeypatch, capsys, line):
    with open("/dev/full", "w") as out:  # noqa: PTH123 (a device)
        monkeypatch.setattr(sys, "stdout", out)
        assert main(line.split()) == 1
    err = capsys.readouterr().err
    assert err == (
        "error: The answer cannot be printed (No space left on device); its work is done.\n"
    )


@pytest.mark.parametrize("line", ["check cells.h5ad", "show scvi", "models"])
def test_a_reader_that_stops_ends_no_command_in_a_traceback(there, monkeypatch, line):
    """As ``| head`` does."""
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as out:
        monkeypatch.setattr(sys, "stdout", out)
        assert main(line.split()) == 141


# as a process


def in_a_process(*tokens: str) -> subprocess.CompletedProcess[str]:
    source = str(Path(ch.__file__).parents[1])
    environment = os.environ | {"PYTHONPATH": source, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, *tokens], capture_output=True, text=True, env=environment, check=False
    )


@pytest.mark.slow
def test_a_notebook_s_way_to_draw_stands_in_no_report_s_way(there, monkeypatch):
    """As where a cell of a notebook calls the command of another environment."""
    monkeypatch.setenv("MPLBACKEND", "module://not.installed")
    done = in_a_process("-m", "chreode", "report", "scvi", "-o", "page.html")
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.slow
def test_a_process_of_its_own(there):
    done = in_a_process(
        "-m", "chreode.commands.app", "fit", "scvi", "gone.h5ad", "--counts", "X", "-ox"
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "error: There is no file 'gone.h5ad'.\n"


def test_a_file_in_place_of_a_bench_is_told_in_a_line(say, there):
    """Bytes of the file are no message."""
    for command in ("report cells.h5ad -o page.html", "show cells.h5ad", "rank cells.h5ad"):
        code, out, err = say(command)
        assert (code, out) == (1, "")
        assert len(err) < 500
        assert err.count("\n") == 1


def test_a_command_whose_output_nobody_reads_ends_well(there, monkeypatch):
    """As ``>&-`` asks for."""
    monkeypatch.setattr(sys, "stdout", None)
    assert main(["models"]) == 0
    sys.stdout.close()
