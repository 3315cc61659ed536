"""Scale on paper: what a launch asks of the API server, of etcd and of the bucket, for 12,800 and 128,000 shards.

Objects are built by the builders and measured; rates follow from the launcher's own constants. What grows with the
number of shards is given as a formula and checked against a count.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from math import ceil
from pathlib import Path
from typing import Any, ClassVar

import pytest

from components.engine.stage import Needs
from components.pool.columns import Columns
from components.pool.shards import common_start, tasks_of
from components.recipe.compute import Accelerator, NodePool, Toleration
from components.recipe.nodes import cut
from components.storage.local import LocalStorage
from pipelines.execution import run_status
from pipelines.execution.local import run_column
from pipelines.kubernetes.jobs import MOST_INDEXES, LaunchedStage, Target, build_job, parse_ranges, ranges
from pipelines.kubernetes.watching import Pace
from tests.pipelines.kubernetes.conftest import TASKS, World
from tests.pipelines.kubernetes.conftest import Work as Pods
from tests.pipelines.kubernetes.controller import controlled

ETCD = 1_500_000  # bytes: etcd's default limit of a request
SHARDS_PER_TASK = 8  # the recipe's default
PAGE = 1000  # objects that a bucket lists in one request
WORK = LaunchedStage("gs://bucket/recaption/runs/commonpool-xlarge-0123abcd", "caption:blip2", Needs(24, gpu=True))
TARGET = Target("research", "registry.example/recaption-gpu@sha256:" + "0" * 64, "recaption-worker", "recaption")
POOLS = [
    NodePool(
        name=f"pool-{i:02d}-{'x' * 50}",
        node_selector={f"example.com/{'k' * 40}-{j}": "v" * 63 for j in range(16)},
        tolerations=[Toleration(key="k" * 300, value="v" * 63, effect="NoSchedule")] * 16,
        accelerator=Accelerator(),
        parallelism=100,
        share=1 + i % 3,
        queue="research",
    )
    for i in range(16)
]  # as many and as large as a recipe may have


def size(value: Any) -> int:
    return len(json.dumps(value))


@pytest.mark.parametrize(("shards", "tasks"), [(12_800, 1_600), (128_000, 16_000)])
def test_jobs_pods_and_object_sizes(shards: int, tasks: int) -> None:
    assert ceil(shards / SHARDS_PER_TASK) == tasks
    jobs = [build_job(WORK, pool, TARGET, part, 7 * 86400) for pool, part in zip(POOLS, cut(tasks, POOLS), strict=True)]
    assert len(jobs) == len(POOLS)  # whatever the shards: one Job per pool and stage
    assert sum(job["spec"]["completions"] for job in jobs) == tasks  # a pod per task, and one more per retry
    assert max(job["spec"]["completions"] for job in jobs) <= MOST_INDEXES
    one = build_job(WORK, POOLS[0], TARGET, range(tasks), 7 * 86400)
    assert size(one) < 25_000  # mostly tolerations; the number of tasks adds digits only
    # The status grows with the holes between completed indexes: at worst every second one, `0,2,4,…`.
    status = {"completedIndexes": ",".join(map(str, range(0, tasks, 2))), "failedIndexes": ""}
    assert size(one) + size(status) < 75_000 < ETCD / 10
    # Pods that run at a time, each below 30 kB in etcd; finished pods of a Job are collected with it.
    assert size(one["spec"]["template"]) < 25_000


def test_the_largest_pool_of_shards_that_fits() -> None:
    """A Job takes 100,000 tasks: 800,000 shards of one pool of nodes at the default, and more by shardsPerTask."""
    assert build_job(WORK, POOLS[0], TARGET, range(MOST_INDEXES), 1)["spec"]["completions"] == MOST_INDEXES
    status = ",".join(map(str, range(0, MOST_INDEXES, 2)))
    assert len(status) < 300_000 < ETCD


def test_a_list_of_what_is_left_stays_small() -> None:
    """Every pod carries it: at worst 4 kB, and beyond that the range, of which workers skip what is done."""
    scattered = list(range(0, 16_000, 2))
    text = build_job(WORK, POOLS[0], TARGET, scattered, 1)["metadata"]["annotations"]["recaption.dev/tasks"]
    assert len(text) <= 4096
    assert set(parse_ranges(text)) >= set(scattered)
    few = [17, 4_000, 15_999]
    assert parse_ranges(ranges(few)) == few


def test_requests_per_minute_at_most() -> None:
    """However many shards, pods and events: the launcher's looks are paced by time."""
    pace = Pace()
    looks = 60 / pace.look  # each a listing of at most 16 Jobs and a watch
    troubles = 60 / (pace.beat / 4)  # each at worst two listings per pool, of at most 10 pods and 50 events
    beats = 60 / pace.beat  # each a read of the Workflow
    assert 2 * looks + beats == 25
    assert 2 * looks + beats + troubles * 2 * len(POOLS) == 153  # while nothing at all runs, on 16 pools
    assert 153 / 60 < 5  # requests a second, below the 5 that clients of the API server allow themselves by default
    # 16 Jobs of 16,000 tasks a look, their status at its worst: 0.6 MB, every 5 s.
    assert 16 * 25_000 + 50_000 * 2 < 600_000


class Counting(LocalStorage):
    """A storage that counts requests as a bucket would bill them."""

    counts: ClassVar[Counter[str]] = Counter()

    def list(self, prefix: str = "") -> Any:
        found = list(super().list(prefix))
        self.counts["list"] += max(1, ceil(len(found) / PAGE))
        return iter(found)

    def read(self, path: str, start: int = 0, length: int | None = None) -> bytes:
        self.counts["read record" if path.endswith(".done.json") else "read other"] += 1
        return super().read(path, start, length)


def requests(shards: int, parts: int = 1) -> dict[str, int]:
    """The formula, of one launch of a column that is all missing at first: requests of the launcher."""
    pages = ceil(2 * parts * shards / PAGE)  # a record and a parquet of each part
    looked = 2  # before and after the Jobs, each two listings: of the records, then of the files' sizes; a third before
    return {
        "list": 4 * 1 + 2 * (looked - 1) * pages + pages,  # empty at first (once for what is reused); twice; the result
        "read record": 3 * shards,  # as tasks are completed, after the Jobs, and for the result
    }


def test_requests_of_the_bucket_follow_a_formula(world: World, tmp_path: Path) -> None:
    storage = Counting(Path(world.run.storage.uri))
    world.run = type(world.run)(**{**vars(world.run), "storage": storage})
    Counting.counts.clear()
    with controlled(world.api, Pods()):
        world.launch()
    expected = requests(TASKS)
    assert Counting.counts["read record"] == expected["read record"]
    assert Counting.counts["list"] <= expected["list"]
    assert run_status.entry(world.run, "index")["shards"] == TASKS
    assert {shards: requests(shards) for shards in (12_800, 128_000)} == {
        12_800: {"list": 82, "read record": 38_400},  # half a minute of 16 readers, 12 ms a read
        128_000: {"list": 772, "read record": 384_000},
    }


def listings(shards: int, inputs: int = 1) -> int:
    """Of all workers of a stage: `tasks × 2 × (1 + inputs) × pages`, a page being 1000 of the objects that lie under
    the common start of a task's shard names (a record and a parquet each): mostly 10 or 100 shards, so one page."""
    names, pages = [f"{i:08d}" for i in range(shards)], 0
    for part in tasks_of(names, ceil(shards / SHARDS_PER_TASK)):  # type: ignore[type-var, arg-type]
        start = common_start(part)  # type: ignore[arg-type]
        there = min(shards, 10 ** (8 - len(start)))
        pages += ceil(2 * there / PAGE)
    return 2 * (1 + inputs) * pages


def test_listings_of_workers_grow_with_the_tasks_alone() -> None:
    """Were a whole column listed by every task, 128,000 shards would take 16,000 × 4 × 256 = 16 million requests."""
    assert listings(12_800) == 1.04 * 12_800 * 4 / SHARDS_PER_TASK
    assert listings(128_000) < 1.1 * 128_000 * 4 / SHARDS_PER_TASK


def test_the_common_start_of_names() -> None:
    assert [common_start(n) for n in ([], ["ab"], ["ab", "abc"], ["abd", "abc", "ab1"], ["a", "b"])] == [
        "", "ab", "ab", "ab", "",
    ]  # fmt: skip


def test_a_worker_lists_only_its_shards(world: World) -> None:
    with controlled(world.api, Pods()):
        world.launch()
    seen: list[str] = []
    node, shard = world.run.nodes["index"], world.run.pool.shards[2]

    class Listing(LocalStorage):
        def list(self, prefix: str = "") -> Any:
            found = list(super().list(prefix))
            seen.extend(entry.path for entry in found)
            return iter(found)

    storage = Listing(world.run.storage.uri)
    run_column(type(world.run)(**{**vars(world.run), "storage": storage}), node, 2)
    assert seen
    assert {path.rpartition("/")[2].partition(".")[0] for path in seen} == {shard.name}
    columns = Columns(storage, "pool", [shard])
    with pytest.raises(ValueError, match="this lists only shards that start with 00000002"):
        columns.parts(node.spec, world.run.pool.shards[0])


def test_names_in_metrics_are_few() -> None:
    """Labels of Jobs and pods take values from the recipe only: their number doesn't grow with the shards."""
    labels = [build_job(WORK, pool, TARGET, range(9), 1)["metadata"]["labels"] for pool in POOLS]
    values = {value for label in labels for value in label.values()}
    assert len(values) <= len(POOLS) + 6
    assert not any(re.search(r"task|index", key) for label in labels for key in label)
