"""The result table: the same numbers for the terminal and for the page."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from components.pool.run import Run
from components.recipe.mixtures import Mixture

AVERAGE, TASKS = "average", "tasks"
OF_TASK = ("name", "folder", "metric", "value", "samples")  # keys of a task's result in results.json


def result_table(run: Run) -> list[dict[str, object]]:
    """Return one row per mixture, column title → value; None where there is nothing (yet).

    Where a result is missing, a column of texts says of how many tasks the means are: `31 of 38`.
    """
    evaluated = [evaluation_of(run, mixture) for mixture in run.spec.mixtures]
    own = dict.fromkeys(title for results in evaluated for title in results.get("columns", ()))
    groups = dict.fromkeys(group for results in evaluated for group in results.get("means", ()))
    rows = [_row(run, m, results, [*own], [*groups]) for m, results in zip(run.spec.mixtures, evaluated, strict=True)]
    empty = {title for title in (rows[0] if rows else ()) if all(row[title] is None for row in rows)}
    return [{title: value for title, value in row.items() if title not in empty} for row in rows]


def results(run: Run) -> dict[str, Any]:
    """Return results.json: the table's rows, the place and number of pairs of each mixture's training set, why a
    mixture is empty, every task's result, and the files that are not read."""
    rows = result_table(run)
    pairs = {row["mixture"]: row["pairs"] for row in rows if row.get("pairs") is not None}
    sets = [
        {"mixture": m.name, "uri": f"{run.storage.uri}/{run.dataset_folder(m)}", "pairs": pairs.get(m.name, 0)}
        for m in (run.spec.mixtures if run.is_indexed else ())
        if run.first_of(m) in run.written
    ]
    evaluations = [
        {"mixture": m.name, "tasks": [{key: t[key] for key in OF_TASK} for t in found["tasks"]], "gaps": found["gaps"]}
        for m in run.spec.mixtures
        if (found := evaluation_of(run, m))
    ]
    empty = [{"mixture": name, "why": why} for name, why in run.empty.items()]
    unread = [found.to_json() for found in run.unread]
    return {"rows": rows, "datasets": sets, "empty": empty, "evaluations": evaluations, "unread": unread}


def evaluation_of(run: Run, mixture: Mixture) -> dict[str, Any]:
    """Read the results of a mixture's model; empty where there are none (yet)."""
    if not run.spec.evaluate or not run.trains(mixture) or not run.is_indexed:
        return {}
    return read(run, run.results_path(mixture))


def partial(results: dict[str, Any]) -> str | None:
    """Say how many of the tasks an evaluation has results of; None where it has all."""
    found, gaps = len(results.get("tasks", ())), len(results.get("gaps", ()))
    return f"{found} of {found + gaps}" if gaps else None


def _row(run: Run, mixture: Mixture, results: dict[str, Any], own: list[str], groups: list[str]) -> dict[str, object]:
    chosen = read_of(run, run.mixture_folder, mixture, "mixture.json")
    analysis = read_of(run, run.mixture_folder, mixture, "analysis.json")
    row: dict[str, object] = {
        "mixture": mixture.name,
        "pairs": chosen.get("pairs"),
        "mean cosine": chosen.get("mean_cosine"),
        "unique trigrams": analysis.get("trigrams", {}).get("unique"),
        "words": analysis.get("words", {}).get("mean"),
        **{title: results.get("columns", {}).get(title) for title in own},
        **{group: results.get("means", {}).get(group) for group in groups},
        AVERAGE: results["average"] if len(results.get("tasks", ())) > 2 else None,
        TASKS: partial(results),
    }
    return row


def read_of(run: Run, folder: Callable[[Mixture], str], mixture: Mixture, name: str) -> dict[str, Any]:
    """Read a JSON object of what is made of a mixture; empty when it isn't there, or the pool isn't indexed yet."""
    return read(run, f"{folder(mixture)}/{name}") if run.is_indexed else {}


def read(run: Run, path: str) -> dict[str, Any]:
    """Read a JSON object of the storage; empty when it isn't there."""
    if run.storage.size(path) is None:
        return {}
    value: dict[str, Any] = json.loads(run.storage.read(path))
    return value
