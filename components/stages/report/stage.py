"""report: everything a run found, on one self-contained page."""

from __future__ import annotations

import json
import platform
from collections import Counter
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from components.base.printable import printable
from components.base.version import version
from components.engine.stage import Needs, Step
from components.pool.run import Run
from components.recipe import recipe as schema
from components.recipe.costs import bill, predicted, read_work, spent
from components.recipe.mixtures import Mixture, in_words
from components.selection.needs import left_out
from components.stages.report import gather, plots
from components.stages.report.funnel import Funnel
from components.stages.report.funnel import funnel as funnel_of
from components.stages.report.table import AVERAGE, TASKS, evaluation_of, partial, read_of, result_table, results

LIBRARIES = ("torch", "transformers", "open_clip_torch", "webdataset", "clip-benchmark", "pyarrow", "numpy", "pillow")
HEADINGS = {
    "unique trigrams": "unique trigrams of at most a million texts",
    "words": "words per caption",
    "ImageNet": "ImageNet accuracy",
    "classification": "classification accuracy",
    "retrieval": "retrieval recall@1",
    AVERAGE: "average of the tasks",
    TASKS: "tasks with a result",
}
MEANS = ("classification", "retrieval", AVERAGE)  # columns over several tasks, which compare only where none is missing
ON_ALL_TASKS = (("classification", "zero-shot accuracy"), ("mean cosine", "mean image–text cosine"))
ON_SOME_TASKS = (("ImageNet", "zero-shot accuracy on ImageNet"),)
"""Columns that may name the best mixture in the headline: the first that compares two."""
UNRANKED = ("mixture", "pairs", "words", TASKS)


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
        environment.finalize = _shown
        page = environment.get_template("template.html").render(_content(run))
        run.storage.write(f"{run.folder}/results.json", json.dumps(results(run), indent=1).encode())
        run.storage.write(f"{run.folder}/report.html", page.encode())

    def outcome(self, run: Run) -> dict[str, Any]:
        counts: Counter[str] = Counter()
        for found in run.unread:
            counts[found.reason] += found.count
        return {"unread": dict(counts)} if counts else {}


def _content(run: Run) -> dict[str, Any]:
    columns = run.open_columns()
    table = result_table(run)
    results = [_result(run, mixture) for mixture in run.spec.mixtures]
    funnel, done = funnel_of(run, columns), gather.columns_done(run, columns)
    return {
        "run": run,
        "recipe": escape(schema.dump_recipe(run.recipe)),  # whose lines stay lines, as `_shown` would not leave them
        "headline": _headline(run, table),
        "table": table,
        "best": _best(run, table),
        "headings": HEADINGS,
        "mixtures": results,
        "funnel": funnel,
        "doubts": [*funnel.doubts, *_doubts(funnel, results)],
        "unread": [(found, ", ".join(found.examples)) for found in run.unread],
        "columns": done,
        "is_scored": any(run.has("score", name) for name in run.texts),
        "gallery": gather.gallery(run, columns),
        "cosines": Markup(plots.histograms(gather.histograms(run), "cosine of image and text")),
        "circles": Markup(
            plots.scatter(gather.circles(run), "unique trigrams of all texts (diversity)", "mean cosine (less noise)")
        ),
        "stages": _stages(run),
        "costs": _costs(run),
        "notes": [
            *_unfinished(run, funnel, done, results),
            *_arrived(run, funnel),
            *_partial(done),
            *(f"{line[0].upper()}{line[1:]}." for line in left_out(run.spec)),
            *_notes(run, results),
        ],
        "versions": _versions(),
    }


def _result(run: Run, mixture: Mixture) -> dict[str, Any]:
    return {
        "name": mixture.name,
        "rules": [in_words(rule) for rule in mixture.rules],
        "emit": mixture.emit,
        "chosen": read_of(run, run.mixture_folder, mixture, "mixture.json"),
        "model": read_of(run, run.model_folder, mixture, "model.json") if run.trains(mixture) else {},
        "results": evaluation_of(run, mixture),
    }


def _doubts(funnel: Funnel, results: list[dict[str, Any]]) -> Iterator[str]:
    """Yield the mixtures in which the images chosen and those dropped are not all the usable ones."""
    for name, chosen in ((r["name"], r["chosen"]) for r in results if r["chosen"]):
        settled = chosen["images"] + sum(chosen["dropped"].values())
        if not settled == chosen["usable"] == funnel.usable:
            yield f"mixture {name}: {settled:,} images chosen or dropped, of {chosen['usable']:,} usable ones"


def _headline(run: Run, table: list[dict[str, object]]) -> str:
    rows, some_only = _distinct(run, table), _partial_means(table)
    for title, what in ON_SOME_TASKS if some_only else ON_ALL_TASKS:
        scored = [row for row in rows if isinstance(row.get(title), float)]
        if len(scored) > 1:
            best = max(scored, key=lambda row: row[title])  # type: ignore[arg-type,return-value]
            return f"Best {what}: {best['mixture']} with {best[title]:.3f}, of {len(scored)} mixtures."
    missing = "; some tasks have no result, so none is called the best" if some_only and len(rows) > 1 else ""
    return f"{len(table)} mixture{'s' if len(table) != 1 else ''} of one pool{missing}."


def _best(run: Run, table: list[dict[str, object]]) -> dict[str, object]:
    """Return the highest value of each column of which more is better."""
    best: dict[str, object] = {}
    rows = _distinct(run, table)
    for title in table[0].keys() - {*UNRANKED, *(MEANS if _partial_means(table) else ())}:
        values = [row[title] for row in rows if isinstance(row[title], (int, float))]
        if len(values) > 1:
            best[title] = max(values)  # type: ignore[type-var]
    return best


def _distinct(run: Run, table: list[dict[str, object]]) -> list[dict[str, object]]:
    """Leave out the mixtures that choose the same as another one."""
    names = {mixture.name for mixture in run.mixtures}
    return [row for row in table if row["mixture"] in names]


def _partial_means(table: list[dict[str, object]]) -> bool:
    """Return whether a mean leaves tasks out."""
    return any(row.get(TASKS) is not None for row in table)


def _unfinished(run: Run, funnel: Funnel, done: list[dict[str, Any]], results: list[dict[str, Any]]) -> list[str]:
    """Say what is missing on a page that was asked for before the run's end."""
    shards, trained = len(run.pool.shards), {m.name for m in run.spec.mixtures if run.trains(m)}
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


def _costs(run: Run) -> list[dict[str, str]]:
    """Return the rows of what the run has spent beside what was predicted, per stage and in all; empty where nothing
    was recorded."""
    status, prices = run.status(), run.spec.compute.prices
    work = {key: read_work(entry.get("work")) for key, entry in status.get("stages", {}).items()}
    before: dict[str, Any] = status.get("predicted", {})
    keys = [key for key in dict.fromkeys([*before, *work]) if work.get(key) or before.get(key)]
    rows = [
        {
            "key": key,
            "pools": ", ".join(work.get(key) or before.get(key) or ()),
            "predicted": str(bill(prices, [read_work(before[key])])) if before.get(key) else "–",
            "spent": str(bill(prices, [work[key]])) if work.get(key) else "–",
        }
        for key in keys
    ]
    whole = {"key": "all", "pools": "", "predicted": str(predicted(prices, status) or "–")}
    return [*rows, {**whole, "spent": str(spent(prices, status))}] if rows else []


def _notes(run: Run, results: list[dict[str, Any]]) -> list[str]:
    """List what a reader must know before believing a number."""
    notes = [f"{r['name']}: {w}" for r in results for w in r["chosen"].get("warnings", ())]
    notes += [
        f"{m.name} chooses the same as {first.name}: it was made once and is shown twice."
        for m in run.spec.mixtures
        if (first := run.first_of(m)) is not m
    ]
    if counts := dict.fromkeys(said for r in results if (said := partial(r["results"]))):
        notes.append(
            f"Averages are over {', '.join(counts)} tasks, those with a result: no average is marked as the best."
        )
    gaps = {(g["task"], g["reason"]) for r in results for g in r["results"].get("gaps", ())}
    if run.sees is None:
        notes.append("No column looked at the images, so that pairs whose image can't be read are not left out.")
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


def _shown(value: object) -> object:
    """Return what the page shows of a value: texts, reasons and names are others', and may have control characters."""
    return printable(value) if type(value) is str else value


def _number(value: object) -> str:
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.1f}" if abs(value) >= 10 else f"{value:.3f}"
    return f"{value:,}" if isinstance(value, int) else str(value)
