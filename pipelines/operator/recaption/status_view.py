"""Convert a run's status.json and results into the fields of the object's status.

The files lie in the tenant's storage, who may write anything into them. The status must be one that the API server
takes, or no status of the object is ever written again: texts are short, numbers finite, lists have an end.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from itertools import islice
from typing import Any

from components.base.printable import printable
from components.recipe.costs import GPU, Bill, predicted, read_work, spent
from pipelines.operator.runtime.conditions import Event, Object

METRICS = ("average", "classification", "retrieval", "ImageNet", "mean cosine")
"""Metrics that may choose the best mixture: the first that the results have."""
OF_ALL_TASKS = ("average", "classification", "retrieval")
"""Of these, the means over tasks."""
REASONS = 8  # kinds of a stage's failures that are listed, the most frequent ones
STAGES = 400  # that are listed: 128 columns, their scores and some steps
SETS = 200  # that are listed: as many as a recipe has mixtures
LONGEST = 128  # characters of a text
LONGEST_REASON = 512  # characters of why a mixture is empty
LONGEST_ADDRESS = 2048  # characters of an address
LONGEST_EVENT = 1000  # characters of an Event's message, of which Kubernetes takes 1,024
LARGEST = 2**53  # that JSON's readers agree on


def run_fields(run: str, progress: Mapping[str, Any], prices: Mapping[str, float] = {}) -> tuple[Object, str]:
    """Return the status fields of a run: its URI, its stages, the current stage in short, and its costs.

    Args:
        prices: of an hour of one GPU or core, by the pool's name.

    Returns:
        the fields, and what the current stage waits for; empty where it waits for nothing.
    """
    if not run:
        return {}, ""
    given: Mapping[str, Mapping[str, Any]] = progress.get("stages", {})
    entries = {printable(name, LONGEST): entry for name, entry in islice(given.items(), STAGES)}
    stages = {name: _stage(name, entry) for name, entry in entries.items()}
    found: Object = {"run": run, "stages": [*stages.values()], "costs": _costs(progress, prices)}
    begun = [name for name, entry in entries.items() if entry.get("state") not in ("done", "waiting")]
    now = begun[-1] if begun else ""
    entry, stage = entries.get(now, {}), stages.get(now, {})
    works = entry.get("state") == "running"
    found["stage"] = now
    found["progress"] = f"{stage['done']}/{stage['total']} {stage['unit']}" if "total" in stage else ""
    found["rate"] = f"{stage['samplesPerSecond']:g}/s" if works and stage.get("samplesPerSecond") else ""
    waits = f"{now} waits: {printable(str(entry['waits_for']))}" if works and entry.get("waits_for") else ""
    return found, waits


def linked(event: Event, status: Object) -> Event:
    """Return the Event with the address of the KFP run in KFP's UI, if that is known, where a reader goes next."""
    address = status.get("kfp", {}).get("link")
    if not address:
        return event
    end = f"; see {address}"
    return replace(event, message=f"{event.message[: max(0, LONGEST_EVENT - len(end))]}{end}")


def _stage(name: str, entry: Mapping[str, Any]) -> Object:
    """Return an entry of status.stages."""
    stage: Object = {"name": name, "state": printable(str(entry.get("state", "")), LONGEST)}
    if "total" in entry:
        unit = "shards" if "shards" in entry else "tasks"
        stage |= {"unit": unit, "done": _whole(entry.get(unit, 0)), "total": _whole(entry["total"])}
    if "samples" in entry:
        stage["samples"] = _whole(entry["samples"])
    if rate := entry.get("samples_per_second"):
        stage["samplesPerSecond"] = _number(rate)
    if entry.get("checkpoints_total"):
        reached, whole = _whole(entry.get("checkpoints", 0)), _whole(entry["checkpoints_total"])
        stage |= {"checkpoints": reached, "checkpointsTotal": whole}
    if "seconds" in entry:
        stage["seconds"] = _whole(_number(entry["seconds"]))
    seconds = [work.hours * 3600 for work in read_work(entry.get("work")).values() if work.unit == GPU]
    if seconds:
        stage["gpuSeconds"] = _whole(sum(seconds))
    if entry.get("retries"):
        stage["retries"] = _whole(entry["retries"])
    if failures := entry.get("failures"):
        often = sorted(failures.items(), key=lambda item: (-item[1], item[0]))[:REASONS]
        stage["failures"] = {printable(reason, LONGEST): _whole(count) for reason, count in often}
    return stage


def prices_of(spec: Mapping[str, Any]) -> dict[str, float]:
    """Return the prices that a recipe gives to its pools, by the pool's name, whether the recipe is valid or not."""
    pools = (spec.get("compute") or {}).get("pools") or ()
    return {str(pool["name"]): float(pool["price"]) for pool in pools if pool.get("price") is not None}


def _costs(progress: Mapping[str, Any], prices: Mapping[str, float]) -> Object:
    """Return status.costs: what the run has spent, beside what was predicted when it began."""
    found = {f"spent{key}": value for key, value in _bill(spent(prices, progress)).items()}
    before = predicted(prices, progress)
    return found | ({f"predicted{key}": value for key, value in _bill(before).items()} if before else {})


def _bill(bill: Bill) -> Object:
    said = {"GpuHours": bill.gpu_hours, "CoreHours": bill.core_hours, "Money": bill.money}
    return {key: round(_number(value), 4) for key, value in said.items() if value is not None}


def _number(value: Any) -> float:
    """Return a finite number. Raises ValueError where it is none, as Python's JSON may be NaN."""
    if not -LARGEST <= float(value) <= LARGEST:
        raise ValueError(f"found the number {value}")
    return float(value)


def _whole(value: Any) -> int:
    return round(_number(value))


def result_fields(results: Mapping[str, Any]) -> Object:
    """Return the status fields of a finished run's results.json: the training sets, the empty mixtures and the best."""
    sets = {str(found["mixture"]): found for found in islice(results.get("datasets", ()), SETS)}
    listed = [
        {
            "mixture": printable(name, LONGEST),
            "uri": printable(str(found["uri"]), LONGEST_ADDRESS),
            "pairs": _whole(found["pairs"]),
        }
        for name, found in sets.items()
    ]
    reasons = {str(found["mixture"]): str(found["why"]) for found in islice(results.get("empty", ()), SETS)}
    empty = [{"mixture": printable(m, LONGEST), "why": printable(why, LONGEST_REASON)} for m, why in reasons.items()]
    return {"datasets": listed, "empty": empty, **best_of(results.get("rows", ()))}


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
    best = max((row for row in listed if row.get(metric) is not None), key=lambda row: _number(row[metric]))
    value = round(_number(best[metric]), 4)
    name = printable(str(best["mixture"]), LONGEST)
    return {
        "best": {"mixture": name, "metric": metric, "value": value},
        "bestResult": f"{name} {value:.3f} ({metric})",
    }
