"""Convert a run's status.json and results into the fields of the object's status."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from pipelines.operator.runtime.conditions import Object

METRICS = ("average", "classification", "retrieval", "ImageNet", "mean cosine")
"""Metrics that may choose the best mixture: the first that the results have."""
OF_ALL_TASKS = ("average", "classification", "retrieval")
"""Of these, the means over tasks."""
REASONS = 8  # kinds of a stage's failures that are listed, the most frequent ones


def run_fields(run: str, progress: Mapping[str, Any]) -> tuple[Object, str]:
    """Return the status fields of a run: its URI, its stages, and the current stage in short.

    Returns:
        the fields, and what the current stage waits for; empty where it waits for nothing.
    """
    if not run:
        return {}, ""
    entries: Mapping[str, Mapping[str, Any]] = progress.get("stages", {})
    found: Object = {"run": run, "stages": [_stage(name, entry) for name, entry in entries.items()]}
    stages = {stage["name"]: stage for stage in found["stages"]}
    begun = [name for name, entry in entries.items() if entry.get("state") not in ("done", "waiting")]
    now = begun[-1] if begun else ""
    entry, stage = entries.get(now, {}), stages.get(now, {})
    works = entry.get("state") == "running"
    found["stage"] = now
    found["progress"] = f"{stage['done']}/{stage['total']} {stage['unit']}" if "total" in stage else ""
    found["rate"] = f"{stage['samplesPerSecond']:g}/s" if works and stage.get("samplesPerSecond") else ""
    waits = f"{now} waits: {entry['waits_for']}" if works and entry.get("waits_for") else ""
    return found, waits


def _stage(name: str, entry: Mapping[str, Any]) -> Object:
    """Return an entry of status.stages."""
    stage: Object = {"name": name, "state": str(entry.get("state", ""))}
    if "total" in entry:
        unit = "shards" if "shards" in entry else "tasks"
        stage |= {"unit": unit, "done": int(entry.get(unit, 0)), "total": int(entry["total"])}
    if "samples" in entry:
        stage["samples"] = int(entry["samples"])
    if rate := entry.get("samples_per_second"):
        stage["samplesPerSecond"] = float(rate)
    if "seconds" in entry:
        stage["seconds"] = round(float(entry["seconds"]))
    if failures := entry.get("failures"):
        often = sorted(failures.items(), key=lambda item: (-item[1], item[0]))[:REASONS]
        stage["failures"] = {reason[:128]: int(count) for reason, count in often}
    return stage


def best_of(rows: Iterable[Mapping[str, Any]]) -> Object:
    """Find the mixture with the highest number in the result table; return no fields where there is no number.

    Means over some of the tasks choose none: a row says in `tasks` that its means are such.
    """
    listed = list(rows)
    metric = next((m for m in METRICS if any(row.get(m) is not None for row in listed)), None)
    if metric in OF_ALL_TASKS and any(row.get("tasks") is not None for row in listed):
        metric = "ImageNet" if any(row.get("ImageNet") is not None for row in listed) else None
    if metric is None:
        return {}
    best = max((row for row in listed if row.get(metric) is not None), key=lambda row: float(row[metric]))
    value = round(float(best[metric]), 4)
    name = str(best["mixture"])
    return {
        "best": {"mixture": name, "metric": metric, "value": value},
        "bestResult": f"{name} {value:.3f} ({metric})",
    }
