"""A pool is downloaded by pods: each step's Jobs, one after the other, and only what is missing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from components.base.errors import PermanentError, TemporaryError
from components.engine.registry import step
from components.pool.run import Run, load_run
from components.stages.extract import dedup
from pipelines.execution import run_status
from pipelines.planning.graph_nodes import ingest_of
from tests.components.stages.download.web import Answer
from tests.pipelines.crawl import IMAGES, Crawl, crawl
from tests.pipelines.execution.test_local import _data
from tests.pipelines.kubernetes.conftest import POOL, World, uri
from tests.pipelines.kubernetes.controller import controlled
from tests.pipelines.planning.test_ingest import downloaded, manifest, planned, recipe
from tests.pools import jpeg

COMPUTE: dict[str, Any] = {"shardsPerTask": 1, "pools": POOL}


@pytest.fixture
def web() -> Iterator[Crawl]:
    with crawl() as found:
        yield found


def stages(world: World) -> list[str]:
    return [job["metadata"]["labels"]["recaption.dev/stage"] for job in world.api.of("jobs")]


def reloaded(run: Run) -> Run:
    return load_run(uri(run))


@pytest.mark.slow
def test_a_dump_is_downloaded_by_pods(world: World, tmp_path: Path, web: Crawl) -> None:
    here = downloaded(recipe(tmp_path / "here", web.source(), {"retry": ["transient"]}, compute=COMPUTE))
    text = recipe(tmp_path / "pods", web.source(), {"retry": ["transient"]}, compute=COMPUTE)
    world.run = reloaded(planned(text))
    with controlled(world.api) as controller:
        counts = world.launch("ingest")
    assert list(counts) == ingest_of(world.run) == ["extract", "extract:dedup", "download", "download:1"]
    assert sorted(stages(world)) == ["download", "download.1", "extract", "extract.dedup"]
    assert len(controller.started) == 3 + 1 + 1 + 1  # a task per file, partition, shard, and shard of the re-drive
    assert {count["state"] for count in counts.values()} == {"done"}
    assert counts["download"]["samples"] == IMAGES * 7 // 10
    assert _data(tmp_path / "pods") == _data(tmp_path / "here")
    assert manifest(reloaded(world.run)) == manifest(here)
    with controlled(world.api) as controller:
        world.launch("ingest")
    assert not controller.started

    web.web.pages.update({f"/{i}.jpg": Answer(jpeg(i)) for i in range(IMAGES)})
    world.run = reloaded(planned(recipe(tmp_path / "pods", web.source(), {"retry": ["all"]}, compute=COMPUTE)))
    with controlled(world.api) as controller:
        world.launch("ingest")
    assert [pod.command[2] for pod in controller.started] == ["download:1"]  # the rounds before are done
    assert manifest(reloaded(world.run))["rounds"][1]["samples"] == 3 * IMAGES // 10


def test_a_pod_keeps_to_its_share_of_what_a_host_may_be_asked(
    tmp_path: Path, web: Crawl, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dedup, "SHARD", 36)
    run = reloaded(planned(recipe(tmp_path, web.source(), {"perHostRate": 40.0}, compute=COMPUTE)))
    for key in ("extract", "extract:dedup"):
        step(key).run(run)
    assert step("download").count_tasks(run) == 2
    step("download").run_task(run, 0, 2)
    times = sorted(request.at for request in web.web.requests)
    assert len(times) > 20
    assert times[-1] - times[0] >= (len(times) - 3) / 20  # two pods at a time: half the rate each


def test_a_step_that_comes_too_early_is_told_so(world: World, tmp_path: Path, web: Crawl) -> None:
    world.run = reloaded(planned(recipe(tmp_path, web.source(), compute=COMPUTE)))
    with (
        controlled(world.api),
        pytest.raises(PermanentError, match="is not there; run extract and"),
    ):
        world.launch("download")
    assert run_status.entry(world.run, "download")["state"] == "failed"
    with pytest.raises(PermanentError, match=r"launch upload: run .* has ingest, index, .*extract:dedup"):
        world.launch("upload")


def test_what_pods_left_undone_is_not_done_by_the_launcher(world: World, tmp_path: Path, web: Crawl) -> None:
    world.run = reloaded(planned(recipe(tmp_path, web.source(), compute=COMPUTE)))
    expected = "extract: its Jobs are through, but 3 tasks lack a record; run again"
    with controlled(world.api, lambda pod: (0, "done\n")), pytest.raises(TemporaryError, match=expected):
        world.launch("ingest")
