"""The launcher in simulated time: the small form of `make bench`'s scale, and what its figures must come to."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from components.base.errors import TemporaryError
from pipelines.execution import run_status
from pipelines.kubernetes.watching import Pace
from tests.bench.scale import simulate
from tests.bench.sizes import table
from tests.pipelines.kubernetes.simulation import KEY, Scenario, SimulatedCluster
from tests.pipelines.kubernetes.test_scale import listings, requests

CALM = Scenario(128, (8,), taken_per_hour=0, failing=0)
Simulation = Callable[[Scenario], tuple[SimulatedCluster, dict[str, Any]]]


@pytest.fixture
def simulated() -> Iterator[Simulation]:
    clusters: list[SimulatedCluster] = []

    def run(scenario: Scenario) -> tuple[SimulatedCluster, dict[str, Any]]:
        clusters.append(SimulatedCluster(scenario))
        return clusters[-1], simulate(clusters[-1], scenario)

    yield run
    for cluster in clusters:
        cluster.close()


def test_a_calm_stage_takes_the_time_and_the_requests_that_the_formulas_say(simulated: Simulation) -> None:
    cluster, found = simulated(CALM)
    waves = 128 / CALM.shards_per_task / 8
    expected = waves * (CALM.start_seconds + CALM.shards_per_task * CALM.shard_seconds)
    assert expected <= found["seconds"] <= expected + Pace().beat / 4
    assert found["pods"] == {"started": 16, "done": 16}
    assert run_status.unfinished(cluster.run, cluster.run.nodes[KEY]) == []
    assert found["launcher"]["list"] <= requests(128)["list"]
    assert found["workers"]["list"] == listings(128)
    assert found["api"].keys() == {"create jobs", "list jobs", "watch jobs"}
    assert found["api_peak"] <= 2 * 60 / Pace().look


def test_spot_nodes_cost_no_shard_twice(simulated: Simulation) -> None:
    spot = replace(CALM, workers=(6, 2), shards_per_task=4, taken_per_hour=2.0)
    cluster, found = simulated(spot)
    assert found["pods"]["taken"] > 2
    assert found["pods"]["started"] == 32 + found["pods"]["taken"]
    assert found["workers"]["write"] == 128
    assert spot.ideal < found["seconds"] < 3 * spot.ideal
    assert run_status.unfinished(cluster.run, cluster.run.nodes[KEY]) == []


def test_an_index_that_always_fails_ends_the_stage_with_its_reason(simulated: Simulation) -> None:
    with pytest.raises(TemporaryError, match=r"1 tasks failed .*FailedIndexes.*task 3: .*exit code 75"):
        simulated(Scenario(32, (2,), lost=(3,)))


def test_the_page_has_the_table_of_sizes() -> None:
    """`python -m tests.bench.sizes` prints it."""
    page = (Path(__file__).parents[3] / "docs/performance.md").read_text()
    assert table() in page
