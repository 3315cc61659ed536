"""The status of a run: what is done, by its records, and how far each stage is, kept in status.json."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from components.base.errors import STOPPED, RecaptionError, failure_of
from components.engine.registry import step
from components.pool.run import Node, Run
from components.pool.shards import tasks_of
from components.pool.usable import check_pool
from components.recipe.compute import NodePool
from pipelines.execution import work as accounts
from pipelines.planning.measured import keep_rates
from pipelines.planning.predictions import foresee

log = logging.getLogger(__name__)

LOOKS = 5  # tries at status.json, which another launcher may write in the same moment
LAUNCHED = ("retries", "checkpoints", "checkpoints_total")  # counts of the launcher that stay when a stage is done
SAID = 5  # reasons that a log line names
CHANGED = (
    "%s: %d of %d shards were written, moved or touched since they were indexed (or pool.name is another pool's); the "
    "first is %s; they are indexed anew, and what was made of the same images and texts is found again"
)


def unfinished(run: Run, node: Node) -> list[int]:
    """List the tasks with a shard that lacks this node's part, after a look at the files themselves."""
    columns = run.open_columns()
    if not node.spec.inputs and (changed := columns.changed(node.spec, run.pool.shards)):
        log.info(CHANGED, node.key, len(changed), len(run.pool.shards), changed[0].tar)
    columns.read_records(node.spec, run.pool.shards)
    columns.check_files(node.spec, run.pool.shards)
    lacking = {shard.name for shard in run.lacking(columns, node)}
    tasks = tasks_of(run.pool.shards, run.tasks)
    return [task for task, shards in enumerate(tasks) if any(shard.name in lacking for shard in shards)]


def timed(run: Run, key: str, work: Callable[[], None], pools: Sequence[NodePool] = ()) -> None:
    """Keep status.json up to date around one stage. A stage found finished keeps the seconds it once took.

    What ends the stage is kept beside its state: `error`, as `failure_of` says it. What was there before this run
    first began the stage is kept as `reused`, so that `work` is what this run has spent on it.

    Args:
        pools: where the stage is launched; empty is this machine.
    """
    before = {name: value for name, value in entry(run, key).items() if name != "error"}
    put(run, key, {**before, "state": "running"})
    began = time.monotonic()
    try:
        if "reused" not in before:
            before["reused"] = accounts.summed(accounts.work_of(run, key, pools))
            put(run, key, {**before, "state": "running"})
        work()
        found = result(run, key, pools)
        found["work"] = accounts.to_json(accounts.without(found["work"], before["reused"]))
    except BaseException as error:
        failure = failure_of(error)
        _put_last(run, key, {"state": "stopped" if failure["kind"] == STOPPED else "failed", "error": failure})
        raise
    seconds = before.get("seconds", 0.0) + time.monotonic() - began
    kept = {"reused": before["reused"]} | {k: v for k, v in entry(run, key).items() if k in LAUNCHED}
    put(run, key, found | kept | {"seconds": seconds, "state": "done"})
    keep_rates(run)
    if key not in run.nodes and found.get("failures") and before.get("state") != "done":
        log.info("%s: %s", key, _in_words(found))


def _put_last(run: Run, key: str, values: Mapping[str, Any]) -> None:
    """Add to a stage's entry how it ended; a storage that is away must not hide the error that is on its way."""
    try:
        put(run, key, {**entry(run, key), **values})
    except RecaptionError as error:
        log.warning("%s: status.json doesn't say how it ended: %s", key, error)


def begin(run: Run) -> None:
    """Forget how an earlier execution of this run ended: unfinished stages wait again, their counts kept."""
    status = run.status()
    passing = ("error", "pods", "heartbeat", "waits_for")

    def waiting(stage: Mapping[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in stage.items() if name not in passing} | {"state": "waiting"}

    stages = {
        key: stage if stage.get("state") == "done" else waiting(stage)
        for key, stage in status.get("stages", {}).items()
    }
    if stages != status.get("stages", {}):
        run.save_status({**status, "stages": stages})


def keep_prediction(run: Run, here: bool) -> None:
    """Keep what the run is expected to take, once: when it first begins.

    Args:
        here: whether this machine does it, and not a cluster.
    """
    status = run.status()
    if "predicted" in status:
        return
    found = foresee(run, here)
    if found is not None:
        work = {key: None if pools is None else accounts.to_json(pools) for key, pools in found.work.items()}
        run.save_status({"stages": {}, **status, "predicted": work})


def _in_words(found: Mapping[str, Any]) -> str:
    """Describe what came through a step, and what most of the others were left out for."""
    reasons = sorted(found["failures"].items(), key=lambda item: (-item[1], item[0]))
    said = [f"{reason} {count:,}" for reason, count in reasons[:SAID]]
    if others := sum(count for _, count in reasons[SAID:]):
        said.append(f"other reasons {others:,}")
    return f"{found['samples']:,} samples; {sum(found['failures'].values()):,} left out: {', '.join(said)}"


def entry(run: Run, key: str) -> dict[str, Any]:
    """Return a stage's entry in status.json; empty when there is none."""
    found: dict[str, Any] = run.status().get("stages", {}).get(key, {})
    return found


def put(run: Run, key: str, value: Mapping[str, Any]) -> None:
    """Replace a stage's entry, and check once whether another's write took it away.

    A check is no lock: of two stages launched at once by hand, the later writer may still hide the other's state
    until that one's next beat. KFP's graph is a line, so there it has one writer.
    """
    for _ in range(LOOKS):
        status = run.status() or {"stages": {}}
        if status["stages"].get(key) == value:
            return
        status["stages"][key] = dict(value)
        run.save_status(status)


def result(run: Run, key: str, pools: Sequence[NodePool] = ()) -> dict[str, Any]:
    """Count what a column's node came to, by its records; a step counts for itself.

    Returns:
        what status.json says of it, and as `work` all the work that is recorded, by pool.

    Raises:
        PermanentError: it is the index, and no shard has a usable sample.
    """
    if key not in run.nodes:
        return {**step(key).outcome(run), "work": accounts.work_of(run, key, pools)}
    node, columns = run.nodes[key], run.open_columns()
    columns.read_records(node.spec, run.pool.shards)
    part = run.part(node)
    records = [columns.record(node.spec, shard, part) for shard in run.pool.shards]
    if not node.spec.inputs:
        run.keep_contents(columns)  # which has just read them all
        check_pool(run, columns, records)
    failures: Counter[str] = Counter()
    for record in records:
        failures.update(record.failures)
    return {
        "shards": len(records),
        "total": len(run.pool.shards),
        "samples": sum(r.rows for r in records),
        "work_seconds": round(sum(r.seconds for r in records), 3),
        "failures": dict(sorted(failures.items())),
        "work": accounts.work_of(run, key, pools, records),
    }
