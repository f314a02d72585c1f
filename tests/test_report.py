"""The report is one file that runs nothing, fetches nothing, and says the answer and its doubts first."""

import json
import re
import shutil
import subprocess
import sys
import warnings
from dataclasses import replace
from html.parser import HTMLParser
from xml.etree import ElementTree as ET

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from anndata import AnnData
from matplotlib.figure import Figure
from matplotlib.image import imread

import chreode as ch
from chreode.bench import Bench
from chreode.commands.judging import answer
from chreode.data.horizon import ForecastWarning
from chreode.errors import StoreError
from chreode.metrics.table import ScoreTable
from chreode.plot.dots import AREA as DOT
from chreode.report import (
    Section,
    bench_sections,
    dynamics_sections,
    findings,
    fit_sections,
    sections,
    write,
)
from chreode.report import dynamics as report_dynamics
from chreode.report.generation import lead as generation_lead
from chreode.report.page import as_text

HOSTILE = "<script>alert('x')</script>\"onload=\"alert(1)"
METRICS = pd.DataFrame(
    {
        "metric": ["nmi", "ilisi", "total"],
        "name": ["NMI", "iLISI", "total"],
        "group": ["bio", "batch", "total"],
        "best": 1.0,
        "about": ["labels and clusters agree", "batches mix", "0.6 bio + 0.4 batch"],
    }
).set_index("metric")
ROLES = {"PCA": "baseline", "Harmony": "baseline", "oracle": "ceiling"}


def bench(totals, notes=None, seeds=3, about=None, embeddings=None, labels=None):
    """Make a bench in which every score of a method is its total, ± 0.01."""
    notes = notes or {}
    scores = [
        {
            "method": m, "seed": s, "metric": k, "value": v, "low": v - 0.01, "high": v + 0.01,
            "reason": "" if v == v else "There is one batch only.",
        }
        for m, v in totals.items()
        for s in range(seeds)
        for k in METRICS.index
    ]  # fmt: skip
    methods = pd.DataFrame(
        {
            "role": [ROLES.get(m, "method") for m in totals],
            "seeds": seeds,
            "state": "rested",
            "seconds": 1.25,
            "notes": [notes.get(m, []) for m in totals],
        },
        index=pd.Index(totals, name="method"),
    )
    return Bench(
        "integration", pd.DataFrame(scores), methods, METRICS, about or {}, embeddings or {}, labels or {}
    )  # fmt: skip


def pictured(n=120, z=2, label="NK"):
    rng = np.random.default_rng(0)
    labels = {
        "label": pd.Series(np.repeat([label, "B", None], n // 3), name="celltype"),
        "batch": pd.Series(np.tile(["p1", "p2"], n // 2), name="batch"),
    }
    return {m: rng.normal(size=(n, z)).astype(np.float32) for m in ("PCA", "SCVI")}, labels


class Page(HTMLParser):
    """Tags with their attributes, text by section, of a page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.texts: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, {k: v or "" for k, v in attrs}))

    def handle_data(self, data):
        self.texts.append(data)

    def named(self, tag: str) -> list[dict[str, str]]:
        return [attrs for name, attrs in self.tags if name == tag]

    @property
    def text(self) -> str:
        return " ".join(self.texts)


def line() -> Figure:
    figure = Figure(figsize=(3, 2))
    figure.add_subplot().plot([0, 1], [1, 0])
    return figure


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    """A report in which every name that a user may choose is an attack."""
    embeddings, labels = pictured(label=HOSTILE)
    made = bench(
        {"PCA": 0.5, HOSTILE: 0.4},
        {HOSTILE: [f"not run: {HOSTILE}"]},
        about={HOSTILE: {HOSTILE: HOSTILE}},
        embeddings={"PCA": embeddings["PCA"], HOSTILE: embeddings["SCVI"]},
        labels={**labels, HOSTILE: labels["batch"]},
    )
    own = Section(
        HOSTILE,
        f"{HOSTILE}\n\n- {HOSTILE}",
        tables=((HOSTILE, pd.DataFrame({HOSTILE: [HOSTILE]}, index=[HOSTILE])),),
        figures=((HOSTILE, line()),),
    )
    path = tmp_path_factory.mktemp("report") / "r.html"
    return write(path, HOSTILE, [*bench_sections(made), own], made.about)


# the page


def test_names_are_text_and_never_markup(hostile):
    html = hostile.read_text(encoding="utf-8")
    page = Page(html)
    assert not page.named("script")
    assert not [a for _, attrs in page.tags for a in attrs if a.startswith("on")]
    assert page.text.count("<script>alert") > 15  # it is there, as text
    assert {a["aria-label"] for a in page.named("svg")} >= {
        HOSTILE,
        f"{HOSTILE} by {HOSTILE}: its two dimensions",
    }
    policy = next(a["content"] for a in page.named("meta") if a.get("http-equiv"))
    assert "default-src 'none'" in policy
    assert "script-src" not in policy


def test_a_notebook_shows_names_as_text_too(cells):
    cells = cells[:60, :20].copy()
    cells.obs = cells.obs.rename(columns={"batch": HOSTILE})
    cells.layers[HOSTILE] = cells.layers["counts"]
    schema = ch.Schema(counts=f"layers/{HOSTILE}", batch=f"obs/{HOSTILE}")
    fitted = ch.PCA(n_latent=2).fit(cells, schema)
    noted = replace(fitted, provenance={**fitted.provenance, "notes": [HOSTILE]})
    made = bench({"PCA": 0.5, HOSTILE: 0.4}, {HOSTILE: [HOSTILE]})
    for shown in (schema, noted, replace(made, kind=HOSTILE)):
        page = Page(shown._repr_html_())
        assert not page.named("script")
        assert "<script>alert('x')</script>" in page.text.lower()


def test_nothing_is_fetched(hostile):
    html = hostile.read_text(encoding="utf-8")
    page = Page(html)
    for _, attrs in page.tags:
        for name, value in attrs.items():
            if name in ("src", "href", "xlink:href", "srcset", "data", "action"):
                assert value.startswith(("#", "data:image/png;base64,")), value[:80]
    assert not page.named("link")
    assert set(re.findall(r"url\((.)", html)) <= {"#"}
    assert "@import" not in html
    spaces = re.sub(r'xmlns(:xlink)?="http://www\.w3\.org/[^"]*"', "", html)
    assert not re.search("https?://", spaces)


def test_contents_lead_to_every_section_and_identifiers_are_unique(hostile):
    page = Page(hostile.read_text(encoding="utf-8"))
    ids = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    goals = [a["href"][1:] for a in page.named("a")]
    assert goals == [a["id"] for a in page.named("section")]
    assert len(goals) == 5
    used = {a["xlink:href"][1:] for a in page.named("use")}
    assert used <= set(ids)


def test_figures_are_drawings_that_follow_the_colours_of_the_page(hostile):
    html = hostile.read_text(encoding="utf-8")
    drawings = re.findall(r"<svg.*?</svg>", html, flags=re.DOTALL)
    assert len(drawings) == 1 + 2 * 3 + 1
    for drawing in drawings:
        ET.fromstring(drawing)
        assert "<style" not in drawing
        assert not re.search(r"<text[^>]*fill:", drawing)  # text takes the colour of the page
    assert html.count("data:image/png") == 6  # points, as pixels
    assert "<text" in drawings[0]


@pytest.mark.slow
def test_the_same_report_has_the_same_bytes_and_settings_come_back(tmp_path):
    before = mpl.rcParams.copy()
    embeddings, labels = pictured()
    made = [
        bench({"PCA": 0.5, "SCVI": 0.6}, embeddings=embeddings, labels=labels).report(tmp_path / n)
        for n in ("a.html", "b.html")
    ]
    assert made[0].read_bytes() == made[1].read_bytes()
    assert dict.__eq__(mpl.rcParams, before)  # `==` would import pyplot


def test_text_is_paragraphs_and_lists(tmp_path):
    text = "One\nparagraph.\n\n- first\n- second\n\n- no\nlist"
    html = write(tmp_path / "a.html", "T", [Section("S", text)]).read_text(encoding="utf-8")
    page = Page(html)
    assert (len(page.named("p")), len(page.named("ul")), len(page.named("li"))) == (2, 1, 3)
    assert "<p>One\nparagraph.</p>" in html
    assert "<li>second</li>" in html


def test_tables_show_names_numbers_and_what_is_absent(tmp_path):
    table = pd.DataFrame(
        {"score": [0.5, np.nan], "cells": [12345, 7], "good": [True, False], "note": ["a", None]},
        index=pd.Index(["PCA", "SCVI"], name="method"),
    )
    counted = pd.DataFrame({("a", "b"): [1]})
    path = write(tmp_path / "a.html", "T", [Section("S", tables=(("C", table), ("", counted)))])
    html = path.read_text(encoding="utf-8")
    rows = re.findall(r"<tr>(.*?)</tr>", html)
    cells = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row) for row in rows]
    assert cells == [
        ["method", "score", "cells", "good", "note"],
        ["PCA", "0.5", "12,345", "yes", "a"],
        ["SCVI", "–", "7", "no", "–"],
        ["a / b"],
        ["1"],
    ]
    assert html.count('<td class="number">') == 5
    assert html.count('<th scope="row">') == 2


def test_tables_are_folded_but_for_a_first_one_that_is_small(tmp_path):
    small = pd.DataFrame(np.zeros((2, 6)))
    wide, long = pd.DataFrame(np.zeros((2, 7))), pd.DataFrame(np.zeros((16, 1)))
    named = small.rename_axis("name")  # its index is a column too
    for table, folded in ((small, 1), (wide, 2), (long, 2), (named, 2)):
        tables = (("First one. More of it.", table), ("Second one. Further words.", small))
        html = write(tmp_path / "a.html", "T", [Section("S", tables=tables)]).read_text()
        page = Page(html)
        assert len(page.named("details")) == folded
        assert "open" not in page.named("details")[0]
        assert len(page.named("table")) == 2
        assert "<summary>Second one</summary>" in html
        assert '<p class="note">Further words.</p>' in html
        assert ("<figcaption>First one. More of it.</figcaption>" in html) == (folded == 1)


def test_numbers_have_the_decimals_they_need():
    assert as_text(pd.Series([0.5, 0.25])) == ["0.50", "0.25"]
    assert as_text(pd.Series([1 / 3, 1234.5])) == ["0.333", "1,234.500"]
    assert as_text(pd.Series([1e-5, 0.0])) == ["1e-05", "0"]
    assert as_text(pd.Series([-1e-4, 1234.5])) == ["-0.0001", "1,234.500"]
    assert as_text(pd.Series([np.inf, 2.0])) == ["inf", "2"]
    assert as_text(pd.Series([1e30, 2.0])) == ["1e+30", "2.000"]
    assert as_text(pd.Series([], dtype=float)) == []
    assert as_text(pd.Series([1, None], dtype="Int64")) == ["1", "–"]


def test_a_report_that_cannot_be_written_leaves_the_old_one(tmp_path):
    old = write(tmp_path / "a.html", "old", [])
    (tmp_path / "dir.html").mkdir()
    (tmp_path / "dir.html" / "x").touch()
    with pytest.raises(StoreError):
        write(old / "b.html", "new", [])
    with pytest.raises(StoreError):
        write(tmp_path / "dir.html", "new", [])
    assert "<h1>old</h1>" in old.read_text(encoding="utf-8")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.html", "dir.html"]


# what is said of a bench


def said(*args, **options) -> str:
    return "\n".join(findings(bench(*args, **options)))


def tables(made) -> dict[str, pd.DataFrame]:
    """Return the tables of a bench's report by the first sentences of their captions."""
    return {
        caption.partition(".")[0]: table
        for section in bench_sections(made)
        for caption, table in section.tables
    }


def test_the_winner_is_named_first():
    lines = findings(bench({"PCA": 0.5, "SCVI": 0.7, "oracle": 0.9}))
    assert lines[0] == (
        "SCVI has the highest total, 0.700 (95 % interval 0.690 to 0.710). The best baseline, PCA, has 0.500."
    )
    assert len(lines) == 2
    assert "oracle, has 0.900" in lines[1]


def test_a_baseline_that_wins_is_the_first_finding():
    text = said({"PCA": 0.5, "Harmony": 0.8, "SCVI": 0.7})
    assert text.startswith("No method beats the baselines: Harmony, a baseline, has the highest")


def test_baselines_alone_are_no_defeat():
    text = said({"PCA": 0.5, "Harmony": 0.8})
    assert text.startswith("Harmony has the highest total")
    assert "best baseline" not in text


def test_overlapping_intervals_settle_no_order():
    text = said({"PCA": 0.5, "A": 0.7, "B": 0.695, "C": 0.685})
    assert "The intervals of B and C overlap with that of A: their order is not settled." in text
    assert "overlap" not in said({"PCA": 0.5, "A": 0.7, "B": 0.6})


def test_the_paired_comparison_with_pca_goes_before_intervals():
    totals = {"PCA": 0.695, "A": 0.7}
    assert "overlap" not in said(totals)
    assert "The interval of PCA overlaps with that of A" in said(
        totals, {"A": ["not better than PCA"]}
    )


def test_notes_are_put_in_words():
    notes = {
        "A": ["not better than PCA", "still improving"],
        "Harmony": ["not run: harmonypy is not installed"],
        "X_b": ["one seed: a ready-made embedding"],
    }
    totals = {"PCA": 0.5, "Harmony": np.nan, "A": 0.4, "X_b": 0.7}
    text = said(totals, notes, seeds=1)
    assert "A is not better than PCA" in text
    assert "it was still improving when it stopped" in text
    assert "Harmony: not run: harmonypy is not installed." in text
    assert "X_b was judged under one seed" in text
    assert "ready-made" not in text
    assert "judged under" not in said(totals, notes, seeds=3)
    assert "PCA was judged" not in text  # a baseline in closed form needs one seed only


def test_a_note_of_several_sentences_stays_whole_and_ends_once(cells, schema):
    failing = ch.PCA(n_latent=400)
    found = ch.bench.integration(
        cells[:80, :40].copy(),
        schema,
        [failing],
        seeds=(0,),
        metrics=["silhouette_label"],
        progress=False,
    )
    (name,) = set(found.methods.index[found.methods["role"] == "method"])
    (note,) = found.methods.loc[name, "notes"]
    assert ";" in note
    said = [line for line in findings(found) if line.startswith(f"{name}:")]
    assert said == [f"{name}: {note}."]
    assert ".." not in said[0]
    assert tables(found)["Methods"].loc[name, "note"] == note


def test_totals_of_fewer_metrics_are_not_compared():
    made = bench({"PCA": 0.5, "A": 0.6, "B": 0.7})
    lost = (made.scores["method"] == "B") & (made.scores["metric"] == "ilisi")
    made.scores.loc[lost, ["value", "low", "high"]] = np.nan
    made.scores.loc[lost, "reason"] = "There is one batch only."
    text = "\n".join(findings(made))
    assert "Totals of B average fewer metrics" in text
    assert bench_sections(made)[-1].text == "- iLISI of B: There is one batch only."
    raw, intervals = (tables(made)[name] for name in ("All scores", "95 % intervals"))
    assert np.isnan(raw.loc["iLISI", "B"])
    assert pd.isna(intervals.loc["iLISI", "B"])
    assert intervals.loc["NMI", "B"] == "0.690 to 0.710"


def test_a_baseline_that_was_not_run_has_a_row_of_dashes(tmp_path):
    made = bench({"PCA": 0.5, "A": 0.6, "Harmony": 0.0}, {"Harmony": ["not run: no harmonypy"]})
    made.scores.drop(made.scores.index[made.scores["method"] == "Harmony"], inplace=True)
    assert "Harmony: not run: no harmonypy." in bench_sections(made)[0].text
    assert tables(made)["All scores"].columns.tolist() == ["A", "PCA", "Harmony"]
    html = made.report(tmp_path / "r.html").read_text(encoding="utf-8")
    # in the figure and two tables; in the main scores; and two baselines that learn nothing by steps
    assert html.count(">–<") == 3 * 3 + 1 + 2


def of_dynamics(errors):
    """Make a bench of dynamics of these errors; R² is 1 less the error."""
    keys = {"denoised, new": lambda v: v, "denoised_r2, new": lambda v: 1 - v}
    made = bench(errors, seeds=1, about={"levels": ["new"]})
    scores = [
        {"method": m, "seed": 0, "metric": k, "value": f(v), "low": v, "high": v, "reason": ""}
        for m, v in errors.items()
        for k, f in keys.items()
    ]
    metrics = pd.DataFrame({"name": [*keys], "best": 0.0}, index=pd.Index(keys, name="metric"))
    return replace(made, kind="dynamics", scores=pd.DataFrame(scores), metrics=metrics)


def test_numbers_of_paths_are_short_and_those_that_blow_up_are_named():
    (said, *_) = findings(of_dynamics({"PCA": 0.2, "NODE": np.inf}))
    assert said == (
        "new: no method beats the baselines; PCA, a baseline, is best, R² 0.80 of smoothed paths; the best "
        "method, NODE, has none, as its paths blow up."
    )
    (said, *_) = findings(of_dynamics({"PCA": 3471234.0, "NODE": 1e12}))
    assert "R² -3.5e+06 of smoothed paths; the best method, NODE, has -1e+12." in said
    assert findings(of_dynamics({"PCA": np.inf, "NODE": np.inf}))[0] == "new: all paths blow up."
    assert findings(of_dynamics({"PCA": np.nan, "NODE": np.nan}))[0] == "new: nothing was scored."


def test_no_number_in_the_terminal_is_below_zero_by_rounding():
    made = bench({"PCA": -0.0001, "A": 0.5})
    assert "-0.000" not in str(answer(made, ["role", "total"], None, None, json=False))


def test_cells_without_a_label_are_mentioned():
    assert "No label: 7 of 1,200 cells" in said(
        {"PCA": 0.5}, about={"cells": 1200, "unlabelled": 7}
    )
    assert "have no label" not in said({"PCA": 0.5}, about={"cells": 1200, "unlabelled": 0})


def test_a_bench_without_total_is_reported_too(tmp_path):
    made = bench({"PCA": 0.5, "A": 0.6}, {"A": ["not better than PCA"]})
    made.metrics.drop(index="total", inplace=False)
    bare = Bench(
        "generation", made.scores[made.scores["metric"] != "total"], made.methods,
        made.metrics.drop(index="total").assign(best=0.0), {},
    )  # fmt: skip
    html = bare.report(tmp_path / "g.html").read_text(encoding="utf-8")
    assert "<h1>Generation bench</h1>" in html
    assert "A is not better than PCA" in html


def test_every_modality_of_generated_cells_has_a_verdict_of_its_own():
    table = pd.DataFrame(
        {"role": ["ceiling", "method", "baseline", "baseline"], "w2": [8.0, 9.75, 9.28, 9.9],
         "protein_w2": [3.0, 3.51, 4.03, 4.6], "auc": 0.6},
        index=["real cells", "CFGen", "mixture", "NB"],
    )  # fmt: skip

    class Scored(ScoreTable):
        def table(self):
            return table

    first, second, forest = generation_lead(object.__new__(Scored))
    assert first == (
        "No method beats the baselines by their RNA: mixture, a baseline, is nearest to held-out cells; its "
        "W2 is 9.28, that of other real cells 8.00 (0 is best). The best method, CFGen, has 9.75."
    )
    assert second == (
        "CFGen is nearest to held-out cells by their protein: its W2 is 3.51, that of other real cells 3.00 "
        "(0 is best). The best baseline, mixture, has 4.03."
    )
    assert forest.startswith("A random forest tells cells of CFGen")
    table = table.drop(columns="protein_w2")
    (alone, _) = generation_lead(object.__new__(Scored))
    assert alone.startswith("No method beats the baselines: mixture")


@pytest.mark.slow
def test_a_bench_of_generation_names_what_means_hide(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "umap", None)  # slow, as are forests
    monkeypatch.setattr(ch.metrics.generation, "real_or_fake", lambda *_, **__: 0.5)
    cells = ch.simulate.simulate_cells(420, 40, n_types=3, seed=0)
    few = np.flatnonzero(cells.obs["cell_type"] == "type_2")[10:]
    cells = cells[np.setdiff1d(np.arange(420), few)].copy()
    counts = cells.layers["counts"].toarray()
    for gene in (0, 1):  # each defines a type
        counts[:, gene] = 50 * (cells.obs["cell_type"] == f"type_{gene}")
    cells.layers["counts"] = sp.csr_matrix(counts)
    roles = ch.Schema(counts="layers/counts", label="obs/cell_type")
    ran = ch.bench.generation(cells, roles, seeds=(0,), progress=False)
    made = Bench.load(ran.save(tmp_path / "b.json"))
    assert made.about["too small"] == made.about["no markers"] == {"type_2": 2}
    pd.testing.assert_frame_equal(made.markers, ran.markers, check_dtype=False)
    text = bench_sections(made)[0].text
    assert "fewer than 20 held-out cells: type_2 (2)" in text
    terminal = str(answer(made, ["role", "w2", "note"], None, None, json=False))
    assert "fewer than 20 held-out cells: type_2 (2)" in terminal
    assert "Types with too few cells to compare their markers: type_2 (2)." in terminal
    (note,) = made.methods.loc["shuffled labels", "notes"]
    assert note.startswith("worst marker: gene_")
    assert note not in text  # it is no doubt about a method
    assert tables(made)["Methods"].loc["shuffled labels", "note"] == note
    assert made.methods.loc["real cells", "notes"] == []
    assert made.table().loc["shuffled labels", "note"] == note
    # what is the best to be had is the first column of every wide table
    wide = [t for name, t in tables(made).items() if name == "All scores" or "single" in name]
    assert len(wide) == 4
    assert all(table.columns[0] == "real cells" for table in wide)
    sizes = cells.obs["cell_type"].value_counts()
    assert tables(made)["Cells per type"]["cells"].to_dict() == sizes.to_dict()
    pictures = {c: f for s in bench_sections(ran) for c, f in s.figures}
    (shares,) = (f for c, f in pictures.items() if c.startswith("Markers of every type"))
    assert [t.get_text() for t in shares.get_legend().texts] == [
        "real cells",
        "PCA mixture per class",
    ]
    (dots,) = (f for c, f in pictures.items() if c.startswith("Marker genes of every type"))
    real, fake, _ = dots.axes
    assert [ax.get_title(loc="left") for ax in (real, fake)] == ["real", "PCA mixture per class"]
    assert {"gene_0", "gene_1"} <= {t.get_text() for t in fake.get_xticklabels()}
    held_out = ran.pairs["PCA mixture per class"][0]
    of_type = held_out[held_out.obs["type"] == "type_0"]
    column = [t.get_text() for t in fake.get_xticklabels()].index("gene_0")
    area = real.collections[0].get_sizes()[column]  # the first row is type_0
    assert area == pytest.approx(DOT * (of_type[:, "gene_0"].X > 0).mean())
    # twenty-two metrics in one picture could not be read
    assert [c for c in pictures if c.startswith("Raw scores")] == list(pictures)[:2]
    assert "bold is the best method" in next(iter(pictures))
    assert all(pictures[c].figure.get_figwidth() < 11 for c in list(pictures)[:2])


def test_a_spread_over_seeds_is_told_of_rows_that_have_several():
    made = replace(bench({"PCA": 0.5, "A": 0.6, "B": np.nan}), kind="augmentation")
    spread = "Lowest to highest of the seeds"
    assert tables(made)[spread].loc["NMI", "A"] == "0.590 to 0.610"
    mixed = replace(made, methods=made.methods.assign(seeds=[3, 1, 1]))
    row = tables(mixed)[spread].loc["NMI"]
    assert row[["PCA", "A"]].tolist() == ["0.490 to 0.510", "one seed"]
    assert pd.isna(row["B"])
    alone = bench_sections(replace(made, methods=made.methods.assign(seeds=1)))
    assert not any(c.startswith(spread) for s in alone for c, _ in s.tables)
    assert "intervals" not in alone[0].figures[0][0]
    assert "intervals" in bench_sections(made)[0].figures[0][0]


def test_cells_of_which_none_has_a_label_are_shown_by_batch_alone():
    embeddings, labels = pictured()
    labels["label"] = pd.Series([None] * 120, dtype=object)
    made = bench_sections(bench({"PCA": 0.5}, embeddings=embeddings, labels=labels))
    pictures = next(section for section in made if section.heading == "Embeddings").figures
    assert {caption.split(" by ")[1].split(":")[0] for caption, _ in pictures} == {"batch"}


def test_what_of_augmentation_failed_is_not_among_the_numbers():
    totals = {"PCA": 0.5, "A": 0.6, "B": np.nan}
    made = replace(bench(totals), kind="augmentation")
    made = replace(
        made, metrics=made.metrics.rename(index={"nmi": "knn_rare"}),
        scores=made.scores.replace({"metric": {"nmi": "knn_rare"}}),
    )  # fmt: skip
    assert findings(made)[0] == "NMI: best is A 0.600; PCA 0.500."


def test_the_verdict_comes_first_then_pictures_then_tables():
    embeddings, labels = pictured()
    notes = {"SCVI": ["still improving"]}
    ran = bench({"PCA": 0.5, "SCVI": 0.6}, notes, embeddings=embeddings, labels=labels)
    made = bench_sections(ran)
    assert [s.heading for s in made] == ["Verdict", "Embeddings", "Tables"]
    answer, doubtful, doubts = made[0].text.split("\n\n")
    assert answer.startswith("SCVI has the highest total")
    assert doubtful == "Before you rely on this:"
    assert doubts.startswith("- SCVI was still improving")
    assert [bool(s.tables) for s in made] == [False, False, True]
    assert len(made[0].figures) == 1
    assert [c for c, _ in made[1].figures] == [
        f"{m} by {role}: its two dimensions" for m in ("SCVI", "PCA") for role in ("label", "batch")
    ]
    assert list(tables(ran)) == [
        "The main scores", "All scores", "95 % intervals", "Methods", "What the metrics mean",
    ]  # fmt: skip
    assert tables(ran)["All scores"].columns.tolist() == ["SCVI", "PCA"]


def test_what_a_reader_may_believe_says_what_the_ceiling_and_the_baselines_are():
    made = bench({"PCA": 0.5, "Harmony": 0.6, "SCVI": 0.7, "oracle": 0.9})
    told = "The ceiling is oracle; the baselines are PCA and Harmony."
    captions = [
        c for s in bench_sections(made) for c, _ in s.tables if not c.startswith("What the")
    ]
    assert len(captions) == 4
    assert all(told in caption for caption in captions)
    (main, _), *_ = bench_sections(made)[-1].tables
    assert "1 is best." in main
    alone = bench_sections(bench({"SCVI": 0.7}))[-1].tables[0][0]
    assert "This bench has no ceiling; there is no baseline." in alone


def test_times_seeds_states_and_zeros_are_in_words(tmp_path):
    totals = {"PCA": 0.5, "A": -0.0001, "B": 0.25, "oracle": 0.9}
    made = bench(totals, {"B": ["slow", "still improving"]})
    made.methods["seconds"] = [0.0, 0.02, 75.4, np.nan]
    made.methods["state"] = ["rested", "rested", "still improving", "rested"]
    table = tables(made)["Methods"]
    assert table["seeds"].unique().tolist() == ["three seeds"]
    assert table.loc["B", "note"] == "slow"  # and how its fit ended has a column
    assert table.loc[["A", "B", "PCA"], "fit"].tolist() == [
        "the fit had stopped improving", "the fit was still improving", "–",
    ]  # fmt: skip
    assert table["time for one seed"].to_dict() == {
        "PCA": "under 0.1 s", "A": "under 0.1 s", "B": "75 s", "oracle": "–",
    }  # fmt: skip
    assert table.shape[1] + 1 <= 6
    html = made.report(tmp_path / "r.html").read_text(encoding="utf-8")
    shown = html.partition("About this page</h2>")[0]
    assert not re.search(r">-0(\.0+)?<|\brested\b|\b0(\.0)? s\b", shown)
    assert as_text(pd.Series([-0.0, 0.125])) == ["0.000", "0.125"]


def test_cells_are_counted_by_type_and_by_donor(cells, schema, tmp_path):
    found = ch.bench.integration(
        cells, schema, [], seeds=(0,), metrics=["silhouette_label"], progress=False
    )
    made = Bench.load(found.save(tmp_path / "b.json"))
    counted = pd.crosstab(cells.obs["cell_type"], cells.obs["batch"])
    shown = tables(made)["Cells per batch and type"]
    assert shown.to_dict() == counted.to_dict()
    types = tables(made)["Cells per type"]
    assert types["cells"].is_monotonic_decreasing
    assert types["cells"].to_dict() == counted.sum(axis=1).to_dict()
    assert types["batches"].to_dict() == (counted > 0).sum(axis=1).to_dict()
    told = json.loads((tmp_path / "b.json").read_text())
    told["sizes"][0]["cells"] = "many"
    (tmp_path / "b.json").write_text(json.dumps(told))
    with pytest.raises(StoreError, match="sizes lacks 'cells', or has something else"):
        Bench.load(tmp_path / "b.json")


def test_a_saved_bench_is_reported_without_pictures(tmp_path):
    embeddings, labels = pictured()
    made = bench({"PCA": 0.5, "SCVI": 0.6}, embeddings=embeddings, labels=labels)
    again = Bench.load(made.save(tmp_path / "b.json"))
    assert "Embeddings" not in [s.heading for s in bench_sections(again)]
    assert next(s.text for s in bench_sections(again)) == bench_sections(made)[0].text


def test_many_cells_are_sampled_for_the_pictures(monkeypatch):
    monkeypatch.setattr(sections, "PICTURED", 50)
    embeddings, labels = pictured()
    made = bench_sections(bench({"PCA": 0.5, "SCVI": 0.6}, embeddings=embeddings, labels=labels))
    assert "Shown are 50 of 120 cells" in made[1].text
    assert len(made[1].figures[0][1].collections[0].get_offsets()) == 50


def test_without_umap_learn_principal_components_stand_in(monkeypatch):
    monkeypatch.setitem(sys.modules, "umap", None)
    embeddings, labels = pictured(z=5)
    made = bench_sections(bench({"PCA": 0.5, "SCVI": 0.6}, embeddings=embeddings, labels=labels))
    caption, figure = made[1].figures[0]
    assert "principal components (umap-learn is not installed)" in caption
    x = embeddings["SCVI"] - embeddings["SCVI"].mean(0)
    spread = np.linalg.svd(x, compute_uv=False)[:2]
    drawn = np.asarray(figure.collections[0].get_offsets())
    np.testing.assert_allclose(np.linalg.norm(drawn, axis=0), spread, rtol=1e-5)


# what is said of a model


def test_a_fit_is_reported_with_its_curves(cells, schema):
    fitted = ch.SCVI(max_epochs=1, n_latent=3).fit(cells, schema, seed=4)
    model, training, options = fit_sections(fitted)
    assert model.text.startswith("It was still improving when it stopped")
    assert "seed 4" in model.text
    assert "300 features of counts" in model.text
    assert len(training.figures) == 1
    table = options.tables[0][1]
    assert table.loc["n_latent", ["value", "default"]].tolist() == ["3", "10"]


def test_a_fit_in_closed_form_has_no_curve(cells, schema):
    model, training, _ = fit_sections(ch.PCA(n_latent=3).fit(cells, schema))
    assert model.text.startswith("It had stopped improving when it ended.")
    assert not training.figures
    assert "closed form" in training.text


@pytest.fixture(scope="module")
def moving():
    how = ch.simulate.Sampling(n_trajectories=5, n_times=15)
    cells = ch.simulate.GeneNetwork.random(8, seed=1).simulate(how, seed=1)
    schema = ch.Schema(expression="X", time="obs/time", trajectory="obs/trajectory")
    quick = {"match_steps": 20, "piece_steps": 5, "path_steps": 5}
    return cells, [
        ch.NeuralODE(**quick, n_refits=n).fit(cells, schema, seed=0, progress=False) for n in (0, 2)
    ]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*are held at its end")
def test_a_fit_of_time_is_reported_with_paths_edges_and_a_knock_out(moving):
    cells, (alone, refitted) = moving
    assert [s.heading for s in fit_sections(alone)] == [
        "The fit", "Training", "Dynamics", "Configuration",
    ]  # fmt: skip
    (section,) = dynamics_sections(alone)
    edges = alone.rank()
    first = edges.iloc[0]
    acts = "activates" if first["weight"] > 0 else "represses"
    assert section.text.startswith(f"{first['source']} {acts} {first['target']}: ")
    assert "There are no bands, as this fit made no refits" in section.text
    driver = edges["weight"].abs().groupby(edges["source"]).sum().idxmax()
    course, removed, found = (figure for _, figure in section.figures)
    assert section.figures[1][0].startswith(f"A knock-out of {driver}: ")
    assert not any(ax.collections for ax in course.axes)
    kept, gone = (alone.trajectory(start="path_0", to=to) for to in (None, {"knockout": driver}))
    apart = np.abs(kept.X - gone.X)[-1]
    apart[kept.var_names == driver] = 0
    gene = kept.var_names[apart.argmax()]
    assert f"Without {driver}, {gene} changes most" in section.text
    assert removed.axes[0].get_title() == gene
    column = kept.var_names.get_loc(gene)
    with_, without = removed.axes[0].lines[:2]
    np.testing.assert_allclose(with_.get_ydata(), kept.X[:, column], rtol=1e-5)
    np.testing.assert_allclose(without.get_ydata(), gone.X[:, column], rtol=1e-5)
    assert (with_.get_linestyle(), without.get_linestyle()) == ("-", "--")
    assert found.get_xlabel() == "driven"
    (caption, table), *_ = section.tables
    assert "no baseline and no ceiling" in caption
    assert list(table) == ["target", "weight"]  # without refits there is no confidence
    (section,) = dynamics_sections(refitted, cells)
    assert "the lowest to the highest of 2 refits" in section.text
    assert re.search("It is found beyond chance in [0-2] of 2 refits", section.text)
    assert list(section.tables[0][1]) == ["target", "weight", "confidence"]
    assert all(ax.collections for ax in section.figures[0][1].axes)


@pytest.mark.filterwarnings("ignore:.*are held at its end")
def test_a_knock_out_is_not_what_it_changes_most(moving, monkeypatch):
    _, (fitted, _) = moving
    edges, names = fitted.rank(), list(fitted.spec.features["expression"])
    driver = edges["weight"].abs().groupby(edges["source"]).sum().idxmax()
    other = next(name for name in names if name != driver)

    def ends(_, *, start, to):
        values = pd.DataFrame(np.ones((2, len(names))), columns=names)
        values.loc[1, [driver, other]] = [0.0, 0.5] if to else [9.0, 1.0]
        return AnnData(values.to_numpy())

    monkeypatch.setattr(report_dynamics, "trajectory", ends)
    (section,) = dynamics_sections(fitted)
    assert (
        f"Without {driver}, {other} changes most: at the end of path_0 it is 0.50" in section.text
    )
    (removed,) = (
        figure for caption, figure in section.figures if caption.startswith("A knock-out")
    )
    assert driver not in [ax.get_title() for ax in removed.axes]


@pytest.mark.parametrize("held", [True, False])
def test_it_says_where_values_are_held_and_hides_no_other_warning(moving, monkeypatch, held):
    def course(*_):
        if held:
            warnings.warn("held", ForecastWarning, stacklevel=1)
        warnings.warn("of something else", UserWarning, stacklevel=1)
        return ["The first.", "The second."], []

    monkeypatch.setattr(report_dynamics, "_course", course)
    with pytest.warns(UserWarning, match="of something else") as heard:
        (section,) = dynamics_sections(moving[1][0])
    assert len(heard) == 1
    assert ("They are held at the end" in section.text) == held


@pytest.mark.filterwarnings("ignore:.*are held at its end")
def test_the_path_of_all_cells_ends_as_a_path_does(moving):
    cells, _ = moving
    model = ch.NeuralODE(match_steps=5, piece_steps=0, path_steps=0, hidden=(8,))
    schema = ch.Schema(expression="X", time="obs/time")
    (section,) = dynamics_sections(model.fit(cells, schema, seed=0, progress=False))
    assert "changes most: at the end of the path it is" in section.text
    assert "all cells" not in section.text


def test_a_model_without_paths_has_no_dynamics(cells, schema):
    with pytest.raises(ch.CapabilityError, match="has no trajectory"):
        dynamics_sections(ch.PCA(n_latent=3).fit(cells, schema))


# in a browser

CHROMIUM = shutil.which("chromium")
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium")


def browse(page, tmp_path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [
        CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-sync",
        f"--user-data-dir={tmp_path / 'profile'}", "--enable-logging=stderr", "--hide-scrollbars",
        *options, page.as_uri(),
    ]  # fmt: skip
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)


@pytest.mark.slow
@needs_chromium
def test_a_browser_shows_it_without_complaint(hostile, tmp_path):
    done = browse(hostile, tmp_path, "--dump-dom")
    assert "CONSOLE" not in done.stderr  # neither errors nor breaches of the content policy
    page = Page(done.stdout)
    assert not page.named("script")
    assert len(page.named("svg")) == 8
    for heading in ("Verdict", "Embeddings", "Tables"):
        assert f">{heading}</h2>" in done.stdout


@pytest.mark.slow
@needs_chromium
@pytest.mark.parametrize("scheme", ["dark", "light"])
def test_a_browser_draws_it_in_light_and_dark(hostile, tmp_path, scheme):
    shot = tmp_path / "shot.png"
    wish = f"--blink-settings=preferredColorScheme={['dark', 'light'].index(scheme)}"
    browse(hostile, tmp_path, wish, "--window-size=1280,1400", f"--screenshot={shot}")
    image = imread(shot)[..., :3]
    assert image.shape[:2] == (1400, 1280)
    paper = image[5, 5].mean()
    assert paper < 0.15 if scheme == "dark" else paper > 0.95
    # ink of the opposite tone, and the colours of the bars
    assert (np.abs(image.mean(2) - paper) > 0.6).mean() > 0.005
    assert (np.ptp(image, axis=2) > 0.2).mean() > 0.001


@pytest.mark.slow
def test_the_report_of_real_cells(cells, schema, tmp_path):
    pytest.importorskip("umap")
    pytest.importorskip("igraph")
    made = ch.bench.integration(
        cells, schema, [ch.SCVI(max_epochs=1)], seeds=(0,), metrics=["clisi", "ilisi"]
    )
    html = made.report(tmp_path / "r.html").read_text(encoding="utf-8")
    assert "still improving" in html
    assert ": UMAP" in html
    assert len(Page(html).named("svg")) == 1 + 2 * len(made.embeddings)
