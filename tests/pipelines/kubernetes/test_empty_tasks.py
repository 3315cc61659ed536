"""A further mixture whose captions are there: the launcher writes its empty parts itself, and starts no pod."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from components.base.errors import PermanentError
from components.pool.run import Run
from pipelines.execution import run_status
from tests.filled import fill, planned
from tests.pipelines.kubernetes.conftest import TASKS, Work, World
from tests.pipelines.kubernetes.controller import controlled
from tests.pools import uid

GPUS = {"name": "gpu", "accelerator": {"count": 1}, "parallelism": 2}
GOOD = {"name": "good", "text": "raw", "where": [{"score": "raw", "top": 0.5}]}
ALL = {"text": "blip", "where": [{"score": "blip", "atLeast": -1}]}
SOME = [GOOD, {"text": "blip", "where": [{"score": "blip", "atLeast": {"rule": "good"}}]}]


def mixed(tmp_path: Path, rules: list[dict[str, Any]]) -> Run:
    """A saved run over TASKS shards of 3 samples; the raw texts have scores."""
    compute = {"decoders": 0, "shardsPerTask": 1, "pools": [GPUS]}
    run = planned(tmp_path / "out", tmp_path / "shards", [{"name": "mixed", "rules": rules}], compute=compute)
    if "score:raw" in run.nodes and run.lacking(run.open_columns(), run.nodes["score:raw"]):
        fill(run, "embed", {uid(i): [1.0] for i in range(3 * TASKS)})
        fill(run, "score:raw", {uid(i): i / 100 for i in range(3 * TASKS)})
    return run


def caption(run: Run, numbers: Iterable[int]) -> None:
    """Write this run's parts: captions of these samples, and their scores."""
    there = [*numbers]
    fill(run, "caption:blip", {uid(i): f"caption {i}" for i in there})
    fill(run, "score:blip", {uid(i): 0.1 for i in there})


def test_no_job_is_made_where_every_caption_is_there(world: World, tmp_path: Path) -> None:
    caption(mixed(tmp_path, [ALL]), range(3 * TASKS))
    world.run = mixed(tmp_path, SOME)
    for key in ("caption", "score-captions"):
        [counts] = world.launch(key).values()
        assert (counts["state"], counts["shards"], counts["samples"]) == ("done", TASKS, 0)
    assert not world.api.of("jobs")
    assert not world.api.requests["create jobs"]
    assert run_status.unfinished(world.run, world.run.nodes["caption:blip"]) == []


def test_only_tasks_with_something_to_compute_are_launched(world: World, tmp_path: Path) -> None:
    """The scores rise with the number of the sample: the first mixture captioned the worse half of the pool."""
    caption(mixed(tmp_path, SOME), range(3 * TASKS // 2))
    world.run = mixed(tmp_path, [{"text": "blip"}])
    with (
        controlled(world.api, Work(lambda pod: (42, "error: no such model\n"))),
        pytest.raises(PermanentError, match="no such model"),
    ):
        world.launch("caption")
    [job] = world.api.of("jobs")
    assert job["metadata"]["annotations"]["recaption.dev/tasks"] == "2-3"
    assert run_status.unfinished(world.run, world.run.nodes["caption:blip"]) == [2, 3]


def test_a_first_run_is_launched_whole(world: World, tmp_path: Path) -> None:
    world.run = mixed(tmp_path, [{"text": "blip"}])
    with controlled(world.api, Work(lambda pod: (42, ""))), pytest.raises(PermanentError):
        world.launch("caption")
    [job] = world.api.of("jobs")
    assert job["metadata"]["annotations"]["recaption.dev/tasks"] == "0-3"
