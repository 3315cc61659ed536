"""A launch of 12,800 shards on 400 workers in simulated time: real launcher, stand-in API server, played nodes.

The launcher is this process; API server, nodes and bucket are another one, so that peak memory is the launcher's own.
Not in the figures: what a real API server, scheduler and bucket take, as a request takes no simulated time.
"""

from __future__ import annotations

import multiprocessing
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing.managers import BaseManager
from typing import Any

from components.engine.registry import column_stage
from pipelines.kubernetes.cluster import Cluster
from pipelines.kubernetes.jobs import Target
from pipelines.kubernetes.launcher import launch
from tests.bench.measure import peak_mb, show
from tests.pipelines.kubernetes.simulation import KEY, URI, CountedStorage, Scenario, SimulatedCluster, make_run

SAMPLES = 10_000  # of a shard
CAPTIONS = column_stage("caption").rates["Salesforce/blip2-opt-2.7b"].a100  # images per second
STAGE = Scenario(12_800, (400,), shard_seconds=SAMPLES / CAPTIONS)
SCENARIOS = {
    "calm": replace(STAGE, taken_per_hour=0, failing=0),
    "spot": STAGE,
    "spot, two pools": replace(STAGE, workers=(300, 100)),
}


class Manager(BaseManager):
    """Runs a simulated cluster in a process of its own."""


Manager.register("cluster", SimulatedCluster)


def simulate(world: Any, scenario: Scenario) -> dict[str, Any]:
    """Launch the scenario's stage; return the cluster's figures and the launcher's own.

    Args:
        world: a SimulatedCluster, or a proxy of one.
    """
    from kubernetes import client

    counts = Counter[str]()
    storage = CountedStorage(world.stored, counts)
    storage.uri = URI
    settings = client.Configuration(host=world.address())
    settings.retries = False
    cluster = Cluster(client.ApiClient(settings), "research", clock=world)
    run = make_run(storage, scenario)
    before = peak_mb()
    try:
        launch(run, KEY, cluster, Target("research", "registry.example/recaption:1"))
    finally:
        cluster.client.close()
        figures: dict[str, Any] = world.figures()
    return {**figures, "launcher": dict(counts), "peak": peak_mb(), "before": before}


def measure(scenario: Scenario) -> dict[str, Any]:
    """Simulate in this process, with the cluster in another one."""
    with Manager(ctx=multiprocessing.get_context("spawn")) as manager:
        return simulate(manager.cluster(scenario), scenario)  # type: ignore[attr-defined]


def requests(counts: dict[str, int]) -> str:
    """Describe storage requests."""
    asked = {name: number for name, number in counts.items() if name != "bytes read"}
    said = f"{sum(asked.values()):,} requests, {asked.get('list', 0):,} of them listings"
    return f"{said}; {counts['bytes read'] / 1e9:,.2f} GB read"


def main() -> None:
    for name, scenario in SCENARIOS.items():
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(1, mp_context=context) as pool:
            found = pool.submit(measure, scenario).result()
        pods, minutes = found["pods"], found["seconds"] / 60
        ends = f"{pods['started']:,} pods, {pods.get('taken', 0)} taken back, {pods.get('failed', 0)} failed"
        api = ", ".join(f"{key} {number:,}" for key, number in sorted(found["api"].items()))
        total = sum(found["api"].values())
        show(
            **{
                f"{name}: makespan": f"{minutes:.1f} min, {found['seconds'] / scenario.ideal:.2f} × the ideal; {ends}",
                f"{name}: API requests": f"{total / minutes:.1f} a minute, at most {found['api_peak']}; {api}",
                f"{name}: storage, launcher": requests(found["launcher"]),
                f"{name}: storage, workers": requests(found["workers"]),
                f"{name}: launcher's peak memory": f"{found['peak']:,.0f} MB, {found['before']:,.0f} MB at its start",
                f"{name}: status of a Job": f"{found['status_bytes']:,} bytes at the end",
            }
        )


if __name__ == "__main__":
    main()
