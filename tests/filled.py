"""Runs whose columns a test writes itself: a plan and its ledger, without a model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from components.engine.registry import column_stage
from components.engine.worker import run_task
from components.pool.run import Run
from components.recipe.recipe import parse_recipe
from components.stages.index.stage import IndexStage
from pipelines.planning.plan import plan_run
from tests.pipelines.execution.test_local import recipe_text


def planned(storage: Path, shards: Path, mixtures: Sequence[Mapping[str, Any]], **spec: Any) -> Run:
    """A saved run over these shards whose index is there."""
    run = plan_run(parse_recipe(recipe_text(storage, shards, [dict(m) for m in mixtures], **spec)))
    run.save()
    return with_index(run)


def with_index(run: Run) -> Run:
    """The run, its pool indexed: now its mixtures have names."""
    run_task(IndexStage(run.index), run.pool, run.pool.shards, run.open_columns())
    return run


def fill(run: Run, key: str, values: Mapping[str, Any], errors: Mapping[str, str] | None = None) -> None:
    """Commit this run's part of a column: a value or an error of the uids that are named, nothing of the others."""
    errors = errors or {}
    node, columns = run.nodes[key], run.open_columns()
    fields = column_stage(node.spec.stage).fields
    for shard in run.pool.shards:
        index = columns.read(run.index, shard, ["error"])
        usable = index.filter(pc.is_null(index.column("error"))).column("uid").to_pylist()
        uids = [u for u in usable if u in values or u in errors]
        arrays = {f.name: f.array([values.get(u) if len(fields) == 1 else None for u in uids]) for f in fields}
        if len(fields) > 1:  # an imported column has one field of each kind
            [kind] = node.fields
            arrays[kind] = next(f for f in fields if f.name == kind).array([values.get(u) for u in uids])
        reasons = pa.array([errors.get(u) for u in uids], pa.string())
        table = pa.table({"uid": pa.array(uids, pa.string()), **arrays, "error": reasons})
        counts = Counter(f"sample: {errors[u]}" for u in uids if u in errors)
        columns.commit(node.spec, shard, run.part(node), table, counts, 2.0)
