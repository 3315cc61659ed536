"""A cluster in simulated time: the stand-in API server, nodes that are taken back, and pods that do the real worker's
storage requests.

Time moves only while the launcher waits: in its clock's `sleep`, or in a watch that the stand-in holds open. A pod's
shards take a stated time, its requests none. Pods run the worker's own code on shards of one sample, so that a record,
a file and every listing are asked for as in a real pod, and one that is taken back leaves the shards that it finished.
"""

from __future__ import annotations

import heapq
import random
import threading
from bisect import bisect_left, insort
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from itertools import count
from math import ceil
from pathlib import Path
from typing import Any, BinaryIO
from unittest.mock import patch

import pyarrow as pa

import components.pool.run
from components.base.errors import PermanentError, Terminated
from components.pool.columns import ALL, Columns
from components.pool.run import Run
from components.pool.shards import Shard, pool_of
from components.pool.specs import Content
from components.recipe.recipe import parse_recipe
from components.stages.filter import stage
from components.storage.interface import Entry
from pipelines.execution.local import run_column
from pipelines.kubernetes.jobs import RETRIES, parse_ranges, ranges
from pipelines.kubernetes.worker import EVERY
from pipelines.planning.columns import plan_columns
from tests.pipelines.kubernetes.api_server import Object, api_server

PAGE = 1000  # objects that a bucket lists in one request
BACKOFF = 10.0  # seconds before an index that failed is tried again, doubled each time: Kubernetes' own
KEY = "filter:english"  # the column that the pods compute: it reads the index and writes one value
URI = "gs://simulated"
RECIPE = """
apiVersion: recaption.dev/v1alpha1
kind: Recaption
metadata: {{name: simulated}}
spec:
  storage: {uri}
  pool: {{name: simulated, shards: {uri}/shards}}
  columns: [{{name: english, language: {{is: en}}}}]
  mixtures: [{{name: raw, rules: [{{text: raw, where: [{{flag: english}}]}}]}}]
  compute: {{decoders: 0, shardsPerTask: {shards_per_task}, pools: [{pools}]}}
"""


@dataclass(frozen=True)
class Scenario:
    """The size of a stage, its nodes and their luck."""

    shards: int
    workers: tuple[int, ...]
    """Pods at a time, by pool of nodes; a pool's share of the work is in proportion."""
    shards_per_task: int = 8
    shard_seconds: float = 133.3
    start_seconds: float = 120.0
    """From a free node to a pod that works: image and model are loaded."""
    taken_per_hour: float = 0.1
    """Probability that a node is taken back within an hour."""
    replaced_seconds: float = 180.0
    """Until another node stands in for one that was taken back."""
    failing: float = 0.005
    """Probability that an attempt ends by bad luck, with exit code 75."""
    lost: tuple[int, ...] = ()
    """Indexes of the first pool whose every attempt fails."""
    seed: int = 0

    @property
    def ideal(self) -> float:
        """Seconds of work by the number of workers: no start, no failure, no last wave that is not full."""
        return self.shards * self.shard_seconds / sum(self.workers)


class MemoryStorage:
    """Objects in memory."""

    uri = URI

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.paths: list[str] = []
        self.lock = threading.Lock()

    def read(self, path: str, start: int = 0, length: int | None = None) -> bytes:
        if path not in self.objects:
            raise PermanentError(f"cannot read {path}: no such object")
        return self.objects[path][start : None if length is None else start + length]

    def open(self, path: str, version: str = "") -> BinaryIO:
        raise NotImplementedError  # no tar is read here

    def upload(self, source: Path, path: str) -> None:
        self.write(path, source.read_bytes())

    def write(self, path: str, data: bytes) -> None:
        with self.lock:
            if path not in self.objects:
                insort(self.paths, path)
            self.objects[path] = data

    def create(self, path: str, data: bytes) -> bool:
        if path in self.objects:
            return False
        self.write(path, data)
        return True

    def size(self, path: str) -> int | None:
        return len(self.objects[path]) if path in self.objects else None

    def list(self, prefix: str = "") -> Iterator[Entry]:
        with self.lock:
            start = bisect_left(self.paths, prefix)
            found = self.paths[start : bisect_left(self.paths, prefix + "\U0010ffff", start)]
        return iter([Entry(path, len(self.objects[path])) for path in found])

    def delete(self, path: str) -> None:
        with self.lock:
            if self.objects.pop(path, None) is not None:
                self.paths.remove(path)


class CountedStorage(MemoryStorage):
    """A storage that counts requests as a bucket bills them: a listing has a request per thousand objects."""

    def __init__(self, ask: Callable[..., Any], counts: Counter[str], most: int | None = None) -> None:
        """Ask another storage.

        Args:
            ask: called with a method's name and its arguments.
            most: shards whose file may be written before the process is told to end; None is any number.
        """
        self.ask, self.counts, self.left, self.lock = ask, counts, most, threading.Lock()

    def read(self, path: str, start: int = 0, length: int | None = None) -> bytes:
        found: bytes = self._ask("read", path, start, length)
        with self.lock:
            self.counts["bytes read"] += len(found)
        return found

    def write(self, path: str, data: bytes) -> None:
        if path.endswith(".parquet") and self.left is not None:
            if not self.left:
                raise Terminated
            self.left -= 1
        self._ask("write", path, data)

    def create(self, path: str, data: bytes) -> bool:
        return bool(self._ask("create", path, data))

    def size(self, path: str) -> int | None:
        found: int | None = self._ask("size", path)
        return found

    def list(self, prefix: str = "") -> Iterator[Entry]:
        found = list(self.ask("list", prefix))
        with self.lock:
            self.counts["list"] += max(1, ceil(len(found) / PAGE))
        return iter(found)

    def delete(self, path: str) -> None:
        self._ask("delete", path)

    def _ask(self, name: str, *args: object) -> Any:
        with self.lock:
            self.counts[name] += 1
        return self.ask(name, *args)


def make_run(storage: MemoryStorage, scenario: Scenario) -> Run:
    """Return the scenario's run: an indexed pool, of which the column KEY is to be computed."""
    pools = ", ".join(
        f"{{name: pool-{i}, parallelism: {n}, share: {n}}}" for i, n in enumerate(scenario.workers)
    )  # a static cut by the number of nodes
    text = RECIPE.format(uri=URI, shards_per_task=scenario.shards_per_task, pools=pools)
    recipe = parse_recipe(text)
    shards = [
        Shard(f"{i:08d}", f"{i:08d}.tar", 400_000_000, f"{i:08d}.parquet", f"{i:012x}") for i in range(scenario.shards)
    ]
    nodes = {node.key: node for node in plan_columns(recipe)}
    return Run("simulated", storage, recipe, pool_of("simulated", storage, shards), nodes, {})


def _index(run: Run) -> None:
    """Write the index of shards of one sample each."""
    columns, none = Columns(run.storage, run.pool.name), pa.nulls(1, pa.string())
    sizes = {name: pa.array([500], pa.int32()) for name in ("width", "height")}
    for shard in run.pool.shards:
        texts = {"uid": pa.array([f"{int(shard.name):032x}"]), "text": pa.array(["a photo of a dog on a beach"])}
        content = Content(f"{int(shard.name):016x}", f"{int(shard.name):016x}")
        columns.commit(run.index, shard, ALL, pa.table({**texts, **sizes, "error": none}), {}, 0, content)
    assert run.keep_contents(run.open_columns()) is not None


class _PlayedTime:
    """Stands in for the condition on which the stand-in's watches wait: waiting plays the cluster's next events."""

    def __init__(self, play: Callable[[float, Callable[[], bool]], bool]) -> None:
        self.play, self.lock = play, threading.RLock()

    def __enter__(self) -> None:
        self.lock.acquire()

    def __exit__(self, *_: object) -> None:
        self.lock.release()

    def notify_all(self) -> None:
        """Wake nobody: who waits looks after every event."""

    def wait_for(self, predicate: Callable[[], bool], seconds: float) -> bool:
        return self.play(seconds, predicate)


class _ByMinute(Counter[str]):
    """Counts requests, also those of each simulated minute."""

    def __init__(self, clock: Callable[[], float]) -> None:
        super().__init__()
        self.clock, self.minutes = clock, Counter[int]()

    def __setitem__(self, key: str, value: int) -> None:
        self.minutes[int(self.clock() // 60)] += value - self.get(key, 0)
        super().__setitem__(key, value)


@dataclass
class _PlayedJob:
    """A Job and what its controller knows of it."""

    job: Object
    waiting: list[int]
    """Indexes without a pod, the lowest first, as a heap."""
    busy: int = 0
    nodes: int = 0
    completed: set[int] = field(default_factory=set)
    failed: set[int] = field(default_factory=set)
    failures: Counter[int] = field(default_factory=Counter)


class SimulatedCluster:
    """The API server, the nodes and the bucket. A launcher uses it as its clock, and asks its storage by `stored`."""

    def __init__(self, scenario: Scenario) -> None:
        self.scenario, self.now, self.events = scenario, 0.0, list[tuple[float, int, Callable[[], None]]]()
        self.number, self.random = count(), random.Random(scenario.seed)
        self.memory, self.counts, self.tally = MemoryStorage(), Counter[str](), Counter[str]()
        self.run = make_run(self.memory, scenario)
        _index(self.run)
        self.run.save()
        self.jobs: dict[str, _PlayedJob] = {}
        self.workers = Counter[str]()
        self.startup = self._count_startup()
        self.stack = ExitStack()
        self.api, self.host = self.stack.enter_context(api_server())
        self.api.changed = _PlayedTime(self._play)  # type: ignore[assignment]
        self.api.requests = _ByMinute(self.monotonic)

    # What the launcher uses, maybe from another process.

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float, /) -> None:
        with self.api.changed:
            self._play(seconds, lambda: False)

    def stored(self, name: str, *args: Any) -> Any:
        """Ask the bucket."""
        found = getattr(self.memory, name)(*args)
        return list(found) if name == "list" else found

    def address(self) -> str:
        return self.host

    def close(self) -> None:
        self.stack.close()

    def figures(self) -> dict[str, Any]:
        """Return what was counted: simulated seconds, API requests, workers' storage requests, what befell pods."""
        requests = self.api.requests
        assert isinstance(requests, _ByMinute)
        return {
            "seconds": self.now,
            "api": dict(requests),
            "api_peak": max(requests.minutes.values(), default=0),
            "workers": dict(self.workers),
            "pods": dict(self.tally),
            "status_bytes": max((len(str(job["status"])) for job in self.api.of("jobs")), default=0),
        }

    # The controllers and nodes.

    def _play(self, seconds: float, enough: Callable[[], bool]) -> bool:
        """Play events until it is enough, at most so many seconds; return whether it is enough."""
        until = self.now + seconds
        self._admit()
        while not enough():
            if not self.events or self.events[0][0] > until:
                self.now = until
                return False
            self.now, _, event = heapq.heappop(self.events)
            event()
        return True

    def _after(self, seconds: float, event: Callable[[], None]) -> None:
        heapq.heappush(self.events, (self.now + seconds, next(self.number), event))

    def _admit(self) -> None:
        """Give new Jobs their nodes."""
        for job in self.api.of("jobs"):
            name, spec = job["metadata"]["name"], job["spec"]
            if name not in self.jobs:
                played = _PlayedJob(job, list(range(spec["completions"])), nodes=spec["parallelism"])
                self.jobs[name] = played
                self._fill(played)

    def _fill(self, played: _PlayedJob) -> None:
        """Start a pod on every free node."""
        while played.waiting and played.busy < played.nodes:
            played.busy += 1
            self._start(played, heapq.heappop(played.waiting))
        self._tell(played)

    def _start(self, played: _PlayedJob, index: int) -> None:
        """Decide how this attempt ends, and when."""
        scenario = self.scenario
        self.tally["started"] += 1
        name = played.job["metadata"]["name"]
        task = parse_ranges(played.job["metadata"]["annotations"]["recaption.dev/tasks"])[index]
        left = self._missing(task)
        whole = scenario.start_seconds + left * scenario.shard_seconds
        taken = self.random.expovariate(scenario.taken_per_hour / 3600) if scenario.taken_per_hour else float("inf")
        doomed = index in scenario.lost and name.startswith("filter-english-pool-0")
        if doomed or self.random.random() < scenario.failing:
            fails = self.random.uniform(0, whole)
            if fails < taken:
                self._after(fails, lambda: self._end(played, index, task, fails, "failed"))
                return
        if taken < whole:
            self._after(taken, lambda: self._end(played, index, task, taken, "taken"))
        else:
            self._after(whole, lambda: self._end(played, index, task, whole, "done"))

    def _end(self, played: _PlayedJob, index: int, task: int, seconds: float, how: str) -> None:
        self.tally[how] += 1
        shards = None if how == "done" else int((seconds - self.scenario.start_seconds) // self.scenario.shard_seconds)
        if shards is None or shards >= 0:  # else it never got to its shards
            self._work(task, shards, seconds)
        played.busy -= 1
        if how == "done":
            played.completed.add(index)
        elif how == "taken":
            played.nodes -= 1
            heapq.heappush(played.waiting, index)
            self._after(self.scenario.replaced_seconds, lambda: self._replace(played))
        else:
            self._fail(played, index)
        self._fill(played)

    def _replace(self, played: _PlayedJob) -> None:
        played.nodes += 1
        self._fill(played)

    def _fail(self, played: _PlayedJob, index: int) -> None:
        played.failures[index] += 1
        if played.failures[index] > RETRIES:
            played.failed.add(index)
            ended = {"name": "stage", "image": "image", "state": {"terminated": {"exitCode": 75, "reason": "Error"}}}
            self.api.pod(played.job["metadata"]["name"], index, phase="Failed", containerStatuses=[ended])
            return

        def again() -> None:
            heapq.heappush(played.waiting, index)
            self._fill(played)

        self._after(BACKOFF * 2 ** (played.failures[index] - 1), again)

    def _tell(self, played: _PlayedJob) -> None:
        """Write the Job's status, as its controller does."""
        status: dict[str, Any] = {
            "active": played.busy,
            "ready": played.busy,
            "succeeded": len(played.completed),
            "failed": sum(played.failures.values()),
            "completedIndexes": ranges(sorted(played.completed), 10**9),
            "failedIndexes": ranges(sorted(played.failed), 10**9),
        }
        if len(played.completed) + len(played.failed) == played.job["spec"]["completions"]:
            status["conditions"] = {"Failed": "FailedIndexes"} if played.failed else {"Complete": "CompletionsReached"}
        self.api.status(played.job["metadata"]["name"], **status)

    # The pods' work.

    def _tasks(self, task: int) -> list[Shard]:
        per = self.scenario.shards_per_task
        return list(self.run.pool.shards[task * per : (task + 1) * per])

    def _missing(self, task: int) -> int:
        """Return how many shards of a task are still to be computed."""
        node, found = self.run.nodes[KEY], 0
        for shard in self._tasks(task):
            stem = f"pools/simulated/columns/{node.spec.folder}/{shard.name}."
            at = bisect_left(self.memory.paths, stem)
            found += not (at < len(self.memory.paths) and self.memory.paths[at].startswith(stem))
        return found

    def _work(self, task: int, most: int | None, seconds: float) -> None:
        """Run the worker on a task; it is told to end when it has committed `most` shards."""
        self.workers.update(self.startup)
        beats = 1 + int(seconds // EVERY)  # `followed` looks at status.json so often
        self.workers.update({"size": beats, "read": beats})
        if not most and most is not None:
            return
        storage = CountedStorage(self.stored, self.workers, most)
        storage.uri = URI
        run = replace(self.run, storage=storage)
        vars(run)["contents"] = self.run.contents  # its requests are in `startup`
        with suppress(Terminated), patch.object(stage, "english", return_value=bool):  # its model has no request
            run_column(run, run.nodes[KEY], task)

    def _count_startup(self) -> Counter[str]:
        """Count the requests of a worker that loads its run and the contents of its pool."""
        found = Counter[str]()
        storage = CountedStorage(self.stored, found)
        with patch.object(components.pool.run, "open_storage", return_value=storage):
            loaded = components.pool.run.load_run(f"{URI}/{self.run.folder}")
        assert loaded.contents
        assert loaded.pool.shards
        return found
