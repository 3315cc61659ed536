"""A planned run of four tasks over tiny shards, a stand-in API server, and a launcher that doesn't wait long."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from kubernetes import client

from components.pool.run import Run, load_run
from components.recipe.recipe import parse_recipe
from pipelines.execution.local import run_column
from pipelines.kubernetes.cluster import Cluster
from pipelines.kubernetes.jobs import Owner, Target
from pipelines.kubernetes.launcher import launch
from pipelines.kubernetes.watching import Pace
from pipelines.planning.plan import plan_run
from tests.pipelines.execution.test_local import recipe_text
from tests.pipelines.kubernetes.api_server import Api, api_server
from tests.pipelines.kubernetes.controller import Outcome, Pod
from tests.pools import write_shard

TASKS = 4
FAST = Pace(look=0.02, beat=0.2, stuck=30.0, scarce=30.0)
HASTY = Pace(look=0.02, beat=0.2, stuck=1.0, scarce=2.0)
OWNER = Owner("recaption-abcde", "workflow-uid")
POOL = [{"name": "cpu", "parallelism": 2}]


def plan(tmp_path: Path, **compute: Any) -> Run:
    """A saved run over TASKS shards of 3 samples."""
    for shard in range(TASKS):
        write_shard(tmp_path / "shards", shard, 3)
    compute = {"decoders": 0, "shardsPerTask": 1, "pools": POOL, **compute}
    mixtures = [{"name": "raw", "rules": [{"text": "raw", "where": [{"score": "raw", "atLeast": -1}]}]}]
    text = recipe_text(tmp_path / "out", tmp_path / "shards", mixtures, columns=[], compute=compute)
    run = plan_run(parse_recipe(text))
    run.save()
    return load_run(uri(run))


def uri(run: Run) -> str:
    return f"{run.storage.uri}/{run.folder}"


class Work:
    """Does a pod's work in this process, unless a test says how the pod ends. Waits while `hold` is set."""

    def __init__(self, ends: Callable[[Pod], tuple[Outcome, str] | None] = lambda pod: None) -> None:
        self.ends, self.lock, self.free = ends, threading.Lock(), threading.Event()
        self.free.set()

    def __call__(self, pod: Pod) -> tuple[Outcome, str]:
        from pipelines.kubernetes.jobs import parse_ranges

        self.free.wait(30)
        end = self.ends(pod)
        if end:
            return end
        _, _, key, uri, _, tasks, _ = pod.command
        run = load_run(uri)
        with self.lock:
            run_column(run, run.nodes[key], parse_ranges(tasks)[pod.index])
        return 0, "done\n"


@dataclass
class World:
    run: Run
    api: Api
    address: str
    cluster: Cluster
    owner: Owner | None = None
    image: str = "registry.example/recaption:1"

    def launch(self, name: str = "index", pace: Pace = FAST, **options: Any) -> dict[str, dict[str, Any]]:
        target = Target(self.cluster.namespace, self.image, owner=self.owner)
        return launch(self.run, name, self.cluster, target, pace=pace, **options)

    def workflow(self, **spec: Any) -> None:
        """The KFP run's Workflow, from now on this run's owner."""
        self.owner = OWNER
        self.api.put("workflows", {"metadata": {"name": OWNER.name, "uid": OWNER.uid}, "spec": spec})


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with api_server() as (api, address):
        settings = client.Configuration(host=address)
        settings.retries = False
        cluster = Cluster(client.ApiClient(settings), api.namespace, outage=5.0)
        yield World(plan(tmp_path), api, address, cluster)
        cluster.client.close()
