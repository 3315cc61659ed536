"""The result table: the same numbers for the terminal and for the page."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from components.pool.run import Run
from components.recipe.mixtures import Mixture


def result_table(run: Run) -> list[dict[str, object]]:
    """Return one row per mixture, column title → value; None where there is nothing (yet)."""
    evaluated = [_evaluation(run, mixture) for mixture in run.spec.mixtures]
    groups = dict.fromkeys(group for results in evaluated for group in results.get("means", ()))
    rows = [_row(run, m, results, [*groups]) for m, results in zip(run.spec.mixtures, evaluated, strict=True)]
    empty = {title for title in (rows[0] if rows else ()) if all(row[title] is None for row in rows)}
    return [{title: value for title, value in row.items() if title not in empty} for row in rows]


def results(run: Run) -> dict[str, Any]:
    """Return results.json: the table's rows, and the place and number of pairs of each mixture's training set."""
    rows = result_table(run)
    pairs = {row["mixture"]: row["pairs"] for row in rows if row.get("pairs") is not None}
    sets = [
        {"mixture": m.name, "uri": f"{run.storage.uri}/{run.dataset_folder(m)}", "pairs": pairs.get(m.name, 0)}
        for m in (run.written if run.is_indexed else ())
    ]
    return {"rows": rows, "datasets": sets}


def _evaluation(run: Run, mixture: Mixture) -> dict[str, Any]:
    if not run.spec.evaluate or mixture not in run.trained:
        return {}
    return read_of(run, run.evaluation_folder, mixture, "results.json")


def _row(run: Run, mixture: Mixture, results: dict[str, Any], groups: list[str]) -> dict[str, object]:
    chosen = read_of(run, run.mixture_folder, mixture, "mixture.json")
    analysis = read_of(run, run.mixture_folder, mixture, "analysis.json")
    row: dict[str, object] = {
        "mixture": mixture.name,
        "pairs": chosen.get("pairs"),
        "mean cosine": chosen.get("mean_cosine"),
        "unique trigrams": analysis.get("trigrams", {}).get("unique"),
        "words": analysis.get("words", {}).get("mean"),
        **{group: results.get("means", {}).get(group) for group in groups},
    }
    if run.spec.evaluate and len(results.get("tasks", ())) > 2:
        row["average"] = results["average"]
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
