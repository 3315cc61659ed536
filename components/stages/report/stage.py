"""report: everything a run found, on one self-contained page."""

from __future__ import annotations

import json
import platform
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from components.base.version import version
from components.engine.stage import Needs, Step
from components.pool.run import Run
from components.recipe import recipe as schema
from components.recipe.mixtures import Mixture, in_words
from components.stages.report import gather, plots
from components.stages.report.funnel import Funnel
from components.stages.report.funnel import funnel as funnel_of
from components.stages.report.table import read_of, result_table, results

LIBRARIES = ("torch", "transformers", "open_clip_torch", "webdataset", "clip-benchmark", "pyarrow", "numpy", "pillow")
HEADINGS = {
    "words": "words per caption",
    "classification": "classification accuracy",
    "retrieval": "retrieval recall@1",
    "average": "average of the tasks",
}


class ReportStep(Step):
    """No script, no request to anywhere: the page can be mailed."""

    name = "report"
    summary = "write one HTML page with every number and reason"
    reads = ("everything's numbers",)
    writes = "runs/<run>/{report.html,results.json}"
    needs = Needs(memory_gib=1, decoders=1)

    def run(self, run: Run) -> None:
        environment = Environment(
            loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True
        )
        environment.filters["number"] = _number
        page = environment.get_template("template.html").render(_content(run))
        run.storage.write(f"{run.folder}/results.json", json.dumps(results(run), indent=1).encode())
        run.storage.write(f"{run.folder}/report.html", page.encode())


def _content(run: Run) -> dict[str, Any]:
    columns = run.open_columns()
    table = result_table(run)
    results = [_result(run, mixture) for mixture in run.spec.mixtures]
    funnel, done = funnel_of(run, columns), gather.columns_done(run, columns)
    return {
        "run": run,
        "recipe": schema.dump_recipe(run.recipe),
        "headline": _headline(table),
        "table": table,
        "best": _best(table),
        "headings": HEADINGS,
        "mixtures": results,
        "funnel": funnel,
        "doubts": [*funnel.doubts, *_doubts(funnel, results)],
        "columns": done,
        "gallery": gather.gallery(run, columns),
        "cosines": Markup(plots.histograms(gather.histograms(run), "cosine of image and text")),
        "circles": Markup(
            plots.scatter(gather.circles(run), "unique trigrams (diversity)", "mean cosine (less noise)")
        ),
        "stages": _stages(run),
        "notes": [
            *_unfinished(run, funnel, done, results),
            *_arrived(run, funnel),
            *_partial(done),
            *_notes(run, results),
        ],
        "versions": _versions(),
    }


def _result(run: Run, mixture: Mixture) -> dict[str, Any]:
    trained = mixture in run.trained
    evaluated = trained and run.spec.evaluate
    return {
        "name": mixture.name,
        "rules": [in_words(rule) for rule in mixture.rules],
        "emit": mixture.emit,
        "chosen": read_of(run, run.mixture_folder, mixture, "mixture.json"),
        "model": read_of(run, run.model_folder, mixture, "model.json") if trained else {},
        "results": read_of(run, run.evaluation_folder, mixture, "results.json") if evaluated else {},
    }


def _doubts(funnel: Funnel, results: list[dict[str, Any]]) -> Iterator[str]:
    """Yield the mixtures in which the images chosen and those dropped are not all the usable ones."""
    for name, chosen in ((r["name"], r["chosen"]) for r in results if r["chosen"]):
        settled = chosen["images"] + sum(chosen["dropped"].values())
        if not settled == chosen["usable"] == funnel.usable:
            yield f"mixture {name}: {settled:,} images chosen or dropped, of {chosen['usable']:,} usable ones"


def _headline(table: list[dict[str, object]]) -> str:
    for title, what in (("classification", "zero-shot accuracy"), ("mean cosine", "mean image–text cosine")):
        scored = [row for row in table if isinstance(row.get(title), float)]
        if len(scored) > 1:
            best = max(scored, key=lambda row: row[title])  # type: ignore[arg-type,return-value]
            return f"Best {what}: {best['mixture']} with {best[title]:.3f}, of {len(scored)} mixtures."
    return f"{len(table)} mixture{'s' if len(table) != 1 else ''} of one pool."


def _best(table: list[dict[str, object]]) -> dict[str, object]:
    """Return the highest value of each column of which more is better."""
    best: dict[str, object] = {}
    for title in table[0].keys() - {"mixture", "pairs", "words"}:
        values = [row[title] for row in table if isinstance(row[title], (int, float))]
        if len(values) > 1:
            best[title] = max(values)  # type: ignore[type-var]
    return best


def _unfinished(run: Run, funnel: Funnel, done: list[dict[str, Any]], results: list[dict[str, Any]]) -> list[str]:
    """Say what is missing on a page that was asked for before the run's end."""
    shards, trained = len(run.pool.shards), {m.name for m in run.trained}
    missing = {
        "columns": [c["key"] for c in done if c["shards"] < shards],
        "mixtures": [r["name"] for r in results if not r["chosen"]],
        "training of": [r["name"] for r in results if r["name"] in trained and not r["model"]],
        "evaluation of": [
            r["name"] for r in results if r["name"] in trained and run.spec.evaluate and not r["results"]
        ],
    }
    if funnel.shards < shards:
        missing["columns"].insert(0, "index")
    said = "; ".join(f"{what} {', '.join(names)}" for what, names in missing.items() if names)
    return [f"This run is not finished. Still to come: {said}."] if said else []


def _arrived(run: Run, funnel: Funnel) -> list[str]:
    """Say how much of the web was there, for a pool that was downloaded."""
    if run.ingest is None:
        return []
    counts = {level.name: level.count for level in funnel.levels}
    arrived, candidates = counts["in the tars"], counts["candidates"]
    again = "" if run.spec.download and run.spec.download.retry else "; spec.download.retry fetches what failed again"
    return [f"{arrived:,} of {candidates:,} images could be downloaded ({gather.share(arrived, candidates)}){again}."]


def _partial(done: list[dict[str, Any]]) -> list[str]:
    return [
        f"{c['key'].partition(':')[2]} was computed for {c['covered']:,} of {c['usable']:,} usable samples "
        f"({gather.share(c['covered'], c['usable'])}), those a mixture can use; its statistics are of these."
        for c in done
        if c["on_demand"] and 0 < c["covered"] < c["usable"]
    ]


def _stages(run: Run) -> list[dict[str, Any]]:
    rows = []
    for key, stage in run.status().get("stages", {}).items():
        if key == ReportStep.name:  # it is being written
            continue
        seconds, samples = stage.get("work_seconds"), stage.get("samples")  # another run may have done the work
        rate = samples / seconds if samples and seconds else None
        rows.append(
            {"key": key, "state": stage["state"], "samples": samples, "seconds": stage.get("seconds"), "rate": rate}
        )
    return rows


def _notes(run: Run, results: list[dict[str, Any]]) -> list[str]:
    """List what a reader must know before believing a number."""
    notes = [f"{r['name']}: {w}" for r in results for w in r["chosen"].get("warnings", ())]
    gaps = {(g["task"], g["reason"]) for r in results for g in r["results"].get("gaps", ())}
    notes += [f"{task} was not evaluated: {reason}" for task, reason in sorted(gaps)]
    if run.spec.train:
        notes.append(
            f"One training per mixture, seed {run.spec.train.seed}: differences of a seed's size mean nothing."
        )
    else:
        notes.append("Nothing was trained: the recipe has no spec.train.")
    if run.spec.train and not run.spec.evaluate:
        notes.append("Nothing was evaluated: the recipe has no spec.evaluate.")
    return notes


def _versions() -> dict[str, str]:
    found = {"recaption": version(), "Python": platform.python_version()}
    for library in LIBRARIES:
        try:
            found[library] = installed(library)
        except PackageNotFoundError:
            continue
    return found


def _number(value: object) -> str:
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.1f}" if abs(value) >= 10 else f"{value:.3f}"
    return f"{value:,}" if isinstance(value, int) else str(value)
