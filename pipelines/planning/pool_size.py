"""How many samples a pool has, as far as that is known before it is indexed."""

from __future__ import annotations

from dataclasses import dataclass

from components.engine.stage import Batch
from components.pool.run import Run
from components.selection.rule_inputs import coverage
from components.stages.index.stage import IndexStage

PROBE = 2  # shards whose headers are read when the pool was never indexed


@dataclass(frozen=True)
class Size:
    """Samples of the pool."""

    rows: float
    usable: float
    exact: bool
    """False where they are scaled up from the headers of a few shards."""


def pool_size(run: Run) -> Size:
    """Count the samples where the pool is indexed, else scale up by bytes from the headers of two shards."""
    columns = run.open_columns()
    if all(columns.parts(run.index, shard) for shard in run.pool.shards):
        rows = sum(columns.rows(run.index, shard) for shard in run.pool.shards)
        return Size(rows, coverage(run, run.index)[1], True)
    return probed_size(run)


def probed_size(run: Run) -> Size:
    """Scale the samples up by bytes from the headers of two shards."""
    some = run.pool.shards[:PROBE]
    errors: list[str | None] = []
    for shard in some:
        with run.pool.source.open(shard.tar) as tar:
            errors += IndexStage(run.index).process(Batch(shard, [], tar=tar))["error"]
    scale = sum(shard.size for shard in run.pool.shards) / max(1, sum(shard.size for shard in some))
    return Size(len(errors) * scale, errors.count(None) * scale, len(some) == len(run.pool.shards))
