"""The logs of failed pods are in the run's folder, also of one that was killed before it could say anything."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipelines.kubernetes.cluster import Cluster
from pipelines.kubernetes.pod_logs import TAIL, PodLogs
from tests.pipelines.kubernetes.conftest import Work, World
from tests.pipelines.kubernetes.controller import controlled


def kept(world: World, tmp_path: Path) -> list[str]:
    folder = tmp_path / "out" / world.run.folder / "logs" / "index"
    return [path.read_text() for path in sorted(folder.glob("*.log"))]


def test_the_end_of_every_failed_attempts_log_is_kept(world: World, tmp_path: Path) -> None:
    long = "".join(f"line {i} {'x' * 500}\n" for i in range(900))
    ends = {(1, 0): (75, f"{long}error: storage away\n"), (1, 1): (137, "")}
    with controlled(world.api, Work(lambda pod: ends.get((pod.index, pod.attempt)))):
        world.launch()
    first, second = sorted(kept(world, tmp_path), key=len, reverse=True)
    assert "exit code 75" in first.splitlines()[0]
    assert first.endswith("error: storage away\n")
    assert TAIL < len(first) < TAIL + 300
    assert "exit code 137" in second
    before = world.api.requests.total()
    logs = PodLogs(world.run, "index", world.cluster, "stage")
    logs.keep()
    logs.keep()
    assert world.api.requests.total() - before == 4  # two listings, and each log once


def test_no_pod_failed_so_none_is_looked_for(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    find = Cluster.find

    def spy(self: Cluster, resource: str, selector: str, fields: str = "", limit: int | None = None) -> Any:
        asked.append(fields)
        return find(self, resource, selector, fields, limit)

    monkeypatch.setattr(Cluster, "find", spy)
    with controlled(world.api, Work()):
        world.launch()
    assert kept(world, tmp_path) == []
    assert asked
    assert "status.phase=Failed" not in asked


def test_a_cluster_that_refuses_costs_only_the_logs(
    world: World, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    world.api.forbidden.add(("list", "pods"))
    PodLogs(world.run, "index", world.cluster, "stage").keep()
    assert kept(world, tmp_path) == []
    assert "logs of failed pods are not kept" in caplog.text
