"""The work that the records of a stage tell of, by the pool of nodes that did it.

The records say how long a worker took, and nothing of where it worked: tasks are cut among the pools by `cut`, as the
launcher does. What isn't recorded isn't counted: the start of pods and the loading of models, work that was
interrupted before its record, and the steps that record no time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from components.engine.registry import step
from components.pool.columns import Columns, Record
from components.pool.run import Run
from components.pool.shards import tasks_of
from components.recipe.compute import NodePool
from components.recipe.costs import THIS_MACHINE, Work
from components.recipe.nodes import cut
from pipelines.planning.workers import no_work


def work_of(
    run: Run, key: str, pools: Sequence[NodePool], records: Sequence[Record | None] | None = None
) -> dict[str, Work]:
    """Return the work that the records of a stage tell of, whichever run did it, by the name of its pool.

    Args:
        pools: where the stage is launched; empty is this machine.
        records: of the run's shards, of the part of this column that the run adds, where they are read already.
    """
    none = {pool.name: no_work(run, key, pool) for pool in pools} or {THIS_MACHINE: no_work(run, key, None)}
    if key not in run.nodes:
        found = step(key).recorded(run)
        if found is None:
            return {}
        shares = {pool.name: float(pool.parallelism) for pool in pools} or {THIS_MACHINE: 1.0}
        whole = sum(shares.values())
        return {name: none[name].plus(*(n * share / whole for n in found)) for name, share in shares.items()}
    made = dict(none)
    found_of = _records(run, key) if records is None else records
    for name, record in zip(pools_of_shards(run, pools), found_of, strict=True):
        if record is not None:
            made[name] = made[name].plus(record.seconds, record.rows)
    return made


def pools_of_shards(run: Run, pools: Sequence[NodePool]) -> list[str]:
    """Return for each of the run's shards the name of the pool whose worker does it."""
    if not pools:
        return [THIS_MACHINE] * len(run.pool.shards)
    tasks = tasks_of(run.pool.shards, run.tasks)
    return [name for name, shards in zip(pools_of_tasks(run, pools), tasks, strict=True) for _ in shards]


def pools_of_tasks(run: Run, pools: Sequence[NodePool]) -> list[str]:
    """Return for each task of a column the name of the pool that it was cut for."""
    return [pool.name for pool, share in zip(pools, cut(run.tasks, pools), strict=True) for _ in share]


def without(work: Mapping[str, Work], reused: Mapping[str, float]) -> dict[str, Work]:
    """Leave out of the work what was there before this run; of several pools each gives in proportion."""
    seconds, samples = (sum(getattr(w, name) for w in work.values()) for name in ("seconds", "samples"))
    return {
        pool: w.plus(
            -reused.get("seconds", 0) * (w.seconds / seconds if seconds else 0),
            -reused.get("samples", 0) * (w.samples / samples if samples else 0),
        )
        for pool, w in work.items()
    }


def summed(work: Mapping[str, Work]) -> dict[str, float]:
    """Add the work of all pools up."""
    return {name: round(sum(getattr(w, name) for w in work.values()), 3) for name in ("seconds", "samples")}


def to_json(work: Mapping[str, Work]) -> dict[str, Any]:
    """Return the work as status.json has it, without the pools that did nothing."""
    return {pool: w.to_json() for pool, w in work.items() if w.seconds}


def _records(run: Run, key: str) -> list[Record | None]:
    """Read the records of this run's part of a column; None where a shard has none."""
    node, columns = run.nodes[key], run.open_columns()
    part = run.part(node)
    columns.read_records(node.spec, run.pool.shards)
    return [_record(columns, node.spec, shard, part) for shard in run.pool.shards]


def _record(columns: Columns, spec: Any, shard: Any, part: str) -> Record | None:
    return columns.record(spec, shard, part) if part in columns.parts(spec, shard) else None
