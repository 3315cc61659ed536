"""What manifests/samples/medium.yaml comes to at three sizes, computed from the code: the table in docs/performance.md.

Run `python -m tests.bench.sizes` to print it.
"""

from __future__ import annotations

import json
from pathlib import Path

from components.engine.registry import column_stage
from components.pool.run import Run
from components.pool.shards import Shard, pool_of, save_manifest
from components.recipe.nodes import cut, pools_for
from components.recipe.recipe import parse_recipe
from pipelines.kubernetes.jobs import LaunchedStage, Target, build_job
from pipelines.kubernetes.watching import Pace
from pipelines.planning.columns import plan_columns
from pipelines.planning.estimate import _foreseen
from tests.pipelines.kubernetes.simulation import MemoryStorage
from tests.pipelines.kubernetes.test_scale import listings, requests

RECIPE = Path(__file__).parents[2] / "manifests/samples/medium.yaml"
SAMPLES = (10**6, 10**8, 10**9)
PER_SHARD = 10_000
GPUS = (8, 64, 400)
PACE = Pace()
TARGET = Target("recaption", "registry.example/recaption-gpu:1", "recaption-worker", "recaption")


def run_of(samples: int) -> Run:
    """Return the recipe's run over a pool of so many samples, of which nothing is computed."""
    recipe, storage = parse_recipe(RECIPE.read_text()), MemoryStorage()
    names = [f"{i:08d}" for i in range(samples // PER_SHARD)]
    shards = [Shard(name, f"{name}.tar", 400_000_000, f"{name}.parquet", name) for name in names]
    nodes = {node.key: node for node in plan_columns(recipe)}
    return Run("sizes", storage, recipe, pool_of("sizes", storage, shards), nodes, {})


def jobs_of(run: Run) -> list[dict[str, object]]:
    """Build the Jobs of all the run's columns."""
    found = []
    for node in run.nodes.values():
        needs = column_stage(node.spec.stage).needs
        pools = pools_for(run.spec.compute, needs.gpu)
        for pool, share in zip(pools, cut(run.tasks, pools), strict=True):
            launched = LaunchedStage(f"gs://bucket/recaption/{run.folder}", node.key, needs)
            found += [build_job(launched, pool, TARGET, share, 7 * 86400)] if share else []
    return found


def manifest_bytes(run: Run) -> int:
    """Return the size of the pool's manifest, which each worker reads."""
    storage = MemoryStorage()
    save_manifest(storage, run.pool, run.pool.shards)
    return sum(map(len, storage.objects.values()))


def figures(samples: int) -> dict[str, str]:
    """Return the rows of one size, by what they say."""
    run = run_of(samples)
    shards, columns, jobs = len(run.pool.shards), len(run.nodes), jobs_of(run)
    lines = {line.key: line for line in _foreseen(run, samples)}
    hours = sum(line.hours or 0 for line in lines.values())
    status = ",".join(map(str, range(0, run.tasks, 2)))  # the worst: every second index is done
    manifest = manifest_bytes(run)
    scores = sum(line.bytes for key, line in lines.items() if key.startswith("score:"))
    others = sum(line.bytes for line in lines.values()) - lines["embed"].bytes - scores
    return {
        "shards": f"{shards:,}",
        "tasks of a column": f"{run.tasks:,}",
        f"Jobs of the {columns} columns": f"{len(jobs)}",
        "pods of the columns, without retries": f"{columns * run.tasks:,}",
        "largest Job in etcd, its status at its worst": size(max(len(json.dumps(j)) for j in jobs) + len(status)),
        "API requests of a launcher a minute, at most": f"{2 * 60 / PACE.look + 60 / PACE.beat:.0f}",
        "objects that the columns add to the bucket": f"{columns * (2 * shards + 1):,}",
        "listings of a column: by its launcher; by all workers": f"{requests(shards)['list']:,}; {listings(shards):,}",
        "records that a column's launcher reads": f"{requests(shards)['read record']:,}",
        "manifest, read by each pod": size(manifest),
        "manifest, read by all pods of a column": size(manifest * run.tasks),
        "embeddings": size(lines["embed"].bytes),
        "scores": size(scores),
        "index and captions": size(others),
        "A100-hours of the columns": short(hours),
        **{f"hours on {gpus} A100s": short(hours / gpus) for gpus in GPUS},
    }


def short(hours: float) -> str:
    """Write hours with two digits, or whole."""
    return f"{hours:.2g}" if hours < 10 else f"{hours:,.0f}"


def size(count: float) -> str:
    """Write a number of bytes with two digits."""
    for unit, scale in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= scale:
            value = count / scale
            return f"{value:.1f} {unit}" if value < 10 else f"{value:,.0f} {unit}"
    return f"{count:,.0f} bytes"


def table() -> str:
    """Return the table in Markdown."""
    sizes = [figures(samples) for samples in SAMPLES]
    lines = ["| samples | 10⁶ | 10⁸ | 10⁹ |", "|---|---|---|---|"]
    return "\n".join([*lines, *(f"| {' | '.join([what, *(found[what] for found in sizes)])} |" for what in sizes[0])])


if __name__ == "__main__":
    print(table())
