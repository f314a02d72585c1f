"""The pages are true: their blocks run, their links and names resolve, their tables are the code's.

On a page, ```python blocks run in order in one namespace, in a folder that holds ``pbmc.h5ad`` and
``query.h5ad``, with the cells of the first as `a` and a schema of them as `s`, and simulated ones over
time as `paths`; ```sh lines that
begin with ``chreode`` run in the same folder. To save time, fits without `max_epochs` are cut to two
epochs, and bootstraps to 20 resamples.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest

import chreode as ch
from chreode import config, models
from chreode.commands import app as cli
from chreode.metrics import METRICS
from chreode.schema import ROLES

ROOT = Path(__file__).parents[1]
_spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
generate = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(generate)

PAGES = generate.pages()
WRITTEN = [*PAGES, *sorted((ROOT / "docs" / "adr").glob("*.md")), ROOT / "benchmarks" / "README.md"]
FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
WALKTHROUGH = "truncatedsvd"
#: Pages whose blocks other tests run: one is a model, one needs scanpy (`test_with_scanpy.py`).
ELSEWHERE = {"python": {"CONTRIBUTING.md", "with-scanpy.md"}, "sh": {"CONTRIBUTING.md"}}


def named(page: Path) -> str:
    return str(page.relative_to(ROOT))


def blocks(page: Path, language: str) -> list[tuple[int, str]]:
    """Return the (line number, text) of every block of a language."""
    text = page.read_text(encoding="utf-8")
    found = [(m, text[: m.start()].count("\n") + 2) for m in FENCED.finditer(text)]
    return [(line, m[2]) for m, line in found if m[1] == language]


def spans(page: Path) -> list[str]:
    """Return the code spans outside of blocks."""
    return re.findall(r"`([^`\n]+)`", FENCED.sub("", page.read_text(encoding="utf-8")))


@pytest.fixture
def desk(monkeypatch, tmp_path, _simulated):
    """Return cells as users have them, and go to a folder that holds them as files."""
    cells = _simulated[:300, :200].copy()
    cells.obs["donor"] = cells.obs["batch"].cat.rename_categories(["p1", "p2", "p3"])
    cells.write_h5ad(tmp_path / "pbmc.h5ad")
    cells[:100].write_h5ad(tmp_path / "query.h5ad")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("chreode.learn.sgd.default_epochs", lambda _: 2)
    bench = importlib.import_module("chreode.bench.integration")  # the function has the same name
    monkeypatch.setattr(bench, "DRAWS", 20)
    return cells


def with_blocks(language: str) -> list[Path]:
    return [
        page for page in PAGES if page.name not in ELSEWHERE[language] and blocks(page, language)
    ]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*are held at its end")  # fits of a few steps wander
@pytest.mark.parametrize("page", with_blocks("python"), ids=named)
def test_python_on_the_page_runs(page, desk):
    schema = ch.Schema(counts="layers/counts", batch="obs/donor", label="obs/cell_type")
    paths = ch.simulate.simulate_system("predators", ch.simulate.Sampling(n_trajectories=4))
    names = {"a": desk, "s": schema, "paths": paths}
    for line, code in blocks(page, "python"):
        exec(compile("\n" * (line - 1) + code, str(page), "exec"), names)


def commands(page: Path) -> list[list[str]]:
    lines = "".join(code for _, code in blocks(page, "sh")).replace("\\\n", "").splitlines()
    words = [shlex.split(line, comments=True) for line in lines]
    return [line for line in words if line]


@pytest.mark.slow
@pytest.mark.parametrize("page", with_blocks("sh"), ids=named)
@pytest.mark.usefixtures("desk")
def test_commands_on_the_page_run(page, capsys):
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    for _, text in blocks(page, "toml"):
        Path("scvi.toml").write_text(text, encoding="utf-8")  # in the folder of `desk`
    for program, *words in commands(page):
        if program == "make":
            assert set(words) <= set(targets), words
        elif program == "pip":
            asked = re.findall(r"\[(\w+)\]", " ".join(words))
            assert set(asked) <= set(extras)
        elif program == "chreode" and words != ["demo"]:
            code = cli.main(words)
            said = capsys.readouterr()
            assert code == 0, (words, said.out, said.err)


@pytest.mark.parametrize(
    "page", [p for p in PAGES if "<!-- from the code" in p.read_text()], ids=named
)
def test_tables_are_those_of_the_code(page):
    assert page.read_text(encoding="utf-8") == generate.current(page), (
        "run: python docs/generate.py"
    )


@pytest.mark.parametrize("page", WRITTEN, ids=named)
def test_links_lead_somewhere(page):
    text = FENCED.sub("", page.read_text(encoding="utf-8"))
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"https?:", link):
            continue
        file, _, anchor = link.partition("#")
        target = page if not file else (page.parent / file)
        assert target.exists(), link
        if anchor:
            headings = re.findall(r"^#+ (.+)$", target.read_text(encoding="utf-8"), re.MULTILINE)
            slugs = [re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings]
            assert anchor in slugs, link


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_names_on_the_page_exist(page):
    for span in spans(page):
        if match := re.match(r"(?:ch|chreode)((?:\.[A-Za-z_]\w*)+)", span):
            names = match[1][1:].split(".")
            assert names[0].lower() == WALKTHROUGH or resolve(names)
        if match := re.fullmatch(r"(tests/[\w/]+\.py)(?:::(\w+))?", span):
            assert f"def {match[2] or ''}" in (ROOT / match[1]).read_text(encoding="utf-8"), span
        elif re.fullmatch(r"(src|docs|examples|benchmarks|tests)/[\w./-]+", span):
            assert (ROOT / span).exists(), span
        if match := re.fullmatch(r"make ([\w-]+)", span):
            assert f"\n{match[1]}:" in (ROOT / "Makefile").read_text(), span


def resolve(names: list[str]) -> object:
    """Return what a dotted name of the package stands for, submodules first."""
    found: object = ch
    path = "chreode"
    for name in names:
        path = f"{path}.{name}"
        try:
            found = importlib.import_module(path)
        except ModuleNotFoundError:
            found = getattr(found, name)
    return found


@pytest.mark.parametrize("key", models.keys())
def test_every_model_has_a_page(key):
    text = (ROOT / "docs" / "models" / f"{key}.md").read_text(encoding="utf-8")
    for heading in ("Story", "When", "When not", "Cost", "Options", "In the bench"):
        assert re.search(rf"^## {heading}$", text, re.MULTILINE), heading
    assert f"<!-- from the code: options {key} -->" in text
    for field in config.describe(models.find(key)):
        assert f"| `{field['name']}` |" in text


def test_every_metric_is_explained():
    text = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
    for metric in METRICS:
        section = re.search(rf"^### `{metric.key}`$(.*?)(?=^#|\Z)", text, re.DOTALL | re.MULTILINE)
        assert section, metric.key
        for word in ("Range", "Misses"):
            assert f"**{word}.**" in section[1], (metric.key, word)


def test_every_role_is_explained():
    text = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")
    for role in (*ROLES, "missing", "fractional"):
        assert f"`{role}`" in text, role


def test_pages_are_reached_from_the_index():
    text = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    for page in (ROOT / "docs").rglob("*.md"):
        link = page.relative_to(ROOT / "docs").as_posix()
        if link != "index.md":
            assert f"({link})" in text or link.startswith("adr/"), link


@pytest.fixture
def walkthrough(tmp_path):
    """Write the model of CONTRIBUTING.md to a file of its own, in a folder of models."""
    ((_, code),) = blocks(ROOT / "CONTRIBUTING.md", "python")
    folder = tmp_path / "models"
    folder.mkdir()
    (folder / f"{WALKTHROUGH}.py").write_text(code, encoding="utf-8")
    return folder


def test_the_model_of_the_walkthrough_is_a_model(walkthrough, monkeypatch, cells, schema):
    code = (walkthrough / f"{WALKTHROUGH}.py").read_text(encoding="utf-8")
    assert sum(bool(line.strip()) for line in code.splitlines()) <= 45
    monkeypatch.setattr(models, "__path__", [*models.__path__, str(walkthrough)])
    models.keys.cache_clear()
    try:
        fitted = ch.TruncatedSVD(n_latent=5).fit(cells, schema)
        z = fitted.embed(cells)
        loaded = ch.load(fitted.save(walkthrough / "saved"))
        np.testing.assert_array_equal(loaded.embed(cells), z)
    finally:
        models.keys.cache_clear()
        sys.modules.pop(f"chreode.models.{WALKTHROUGH}", None)
    x = cells.layers["counts"].toarray()
    log_x = np.log1p(x / x.sum(1, keepdims=True) * 1e4)
    u, size, _ = np.linalg.svd(log_x, full_matrices=False)
    np.testing.assert_allclose(np.abs(z), np.abs(u[:, :5] * size[:5]), atol=1e-2)
    assert json.loads(cells.uns["chreode"][f"X_{WALKTHROUGH}"])["model"] == WALKTHROUGH


@pytest.mark.slow
def test_the_model_of_the_walkthrough_passes_the_conformance_suite(walkthrough, tmp_path):
    (tmp_path / "with_it.py").write_text(
        "def pytest_sessionstart():\n"  # not earlier: jaxtyping checks what is imported after it
        "    from chreode import models\n"
        f"    models.__path__.append({str(walkthrough)!r})\n"
        "    models.keys.cache_clear()\n"  # the fixtures have asked already
    )
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "tests/conformance", "-q", "-p", "with_it",
         "-p", "no:cacheprovider", "-k", WALKTHROUGH],
        cwd=ROOT, env={**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT / 'src'}"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    assert int(re.search(r"(\d+) passed", done.stdout)[1]) > 25
