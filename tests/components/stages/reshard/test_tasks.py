"""Tars divided among tasks: the same bytes, whoever wrote them, whatever was killed."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from components.pool.run import Run
from components.stages.reshard import stage
from components.stages.reshard.layout import lay_out
from components.stages.reshard.stage import ReshardStep
from tests.components.stages.reshard.conftest import RECIPE, all_raw, make_run, select, write_tar

TWO = RECIPE + "  - {{name: again, rules: [{{text: raw}}, {{text: raw}}]}}\n"


@pytest.fixture(autouse=True)
def _small_tars(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stage, "lay_out", lambda selections: lay_out(selections, 8))
    monkeypatch.setenv("RECAPTION_CORES", "1")


def make(root: Path) -> Run:
    """Two mixtures of 60 pairs: 8 tars each."""
    for shard in range(2):
        write_tar(root / f"shards/{shard}.tar", range(30 * shard, 30 * shard + 30))
    run = make_run(root, TWO)
    for mixture in reversed(run.spec.mixtures):
        first = run.recipe.model_copy(update={"spec": run.spec.model_copy(update={"mixtures": [mixture]})})
        select(replace(run, recipe=first), all_raw)
    return run


def contents(run: Run) -> dict[str, bytes]:
    root = Path(run.storage.uri)
    found = {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.glob("datasets/*/[!.]*"))}
    return {name: data.replace(run.pool.source.uri.encode(), b"SOURCE") for name, data in found.items()}


@pytest.mark.parametrize("tasks", [1, 2, 7, 16, 40])
def test_tasks_in_any_order_give_what_one_process_gives(tmp_path: Path, tasks: int) -> None:
    calm, divided = make(tmp_path / "calm"), make(tmp_path / "divided")
    ReshardStep().run(calm)
    order = random.Random(tasks).sample(range(tasks), tasks)
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(lambda task: ReshardStep().run_task(divided, task, tasks), order))
    written = contents(divided)
    assert len(written) == 32  # a tar and a record each, nothing that describes the whole
    assert not any(name.endswith("dataset.json") for name in written)
    kept = {p: p.stat().st_mtime_ns for p in Path(divided.storage.uri).glob("datasets/*/*.tar")}
    ReshardStep().run(divided)
    assert {p: p.stat().st_mtime_ns for p in kept} == kept
    assert _sets(contents(divided)) == _sets(contents(calm))


def _sets(found: dict[str, bytes]) -> dict[str, object]:
    """Cards name the storage; the rest must agree byte for byte."""
    return {name: data for name, data in found.items() if not name.endswith("README.md")}


def test_tasks_are_disjoint_and_only_one_of_them_writes_what_is_missing(tmp_path: Path) -> None:
    run = make(tmp_path)
    for task in range(3):
        ReshardStep().run_task(run, task, 3)
    tars = sorted(Path(run.storage.uri).glob("datasets/*/*.tar"))
    owners = {0: 6, 1: 5, 2: 5}  # 16 tars over both mixtures
    for task, count in owners.items():
        for tar in tars:
            tar.unlink(missing_ok=True)
        ReshardStep().run_task(run, task, 3)
        back = [tar for tar in tars if tar.exists()]
        assert len(back) == count
        before = {tar: tar.stat().st_mtime_ns for tar in back}
        ReshardStep().run_task(run, task, 3)
        assert {tar: tar.stat().st_mtime_ns for tar in back} == before


def test_a_task_writes_nothing_of_a_mixture_without_samples(tmp_path: Path) -> None:
    write_tar(tmp_path / "shards/a.tar", range(9))
    run = make_run(tmp_path)
    select(run, lambda shard, uids: [])
    ReshardStep().run_task(run, 0, 2)
    assert not list(Path(run.storage.uri).glob("datasets/*/*.tar"))


CHILD = """
import sys
from pathlib import Path
from components.base.errors import leaving_on_sigterm
from components.stages.reshard import stage
from components.stages.reshard.layout import lay_out
from tests.components.stages.reshard.conftest import make_run
if __name__ == "__main__":
    stage.lay_out = lambda selections: lay_out(selections, 4)
    with leaving_on_sigterm("bye"):
        stage.ReshardStep().run_task(make_run(Path(sys.argv[1])), int(sys.argv[2]), 2)
"""


@pytest.mark.slow
def test_a_task_killed_in_the_middle_leaves_nothing_half_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stage, "lay_out", lambda selections: lay_out(selections, 4))
    script = tmp_path / "child.py"
    script.write_text(CHILD)
    environment = {**os.environ, "PYTHONPATH": os.getcwd(), "OMP_NUM_THREADS": "1"}
    for root in (tmp_path / "calm", tmp_path / "killed"):
        write_tar(root / "shards/0.tar", range(200))
        select(make_run(root), all_raw)
    calm, killed = (make_run(tmp_path / name) for name in ("calm", "killed"))
    ReshardStep().run(calm)
    for task, number in enumerate((signal.SIGKILL, signal.SIGTERM)):
        folder = Path(killed.storage.uri, killed.dataset_folder(killed.spec.mixtures[0]))
        before = len(list(folder.glob("*.tar")))
        child = subprocess.Popen([sys.executable, script, tmp_path / "killed", str(task)], env=environment)
        while len(list(folder.glob("*.tar"))) == before and child.poll() is None:
            time.sleep(0.005)
        child.send_signal(number)
        assert child.wait() in (-number, 143, 0)
        assert len(list(folder.glob("*.tar"))) > before
    for task in (1, 0):
        ReshardStep().run_task(killed, task, 2)
    ReshardStep().run(killed)
    assert _sets(contents(killed)) == _sets(contents(calm))
    assert len(json.loads((folder / "dataset.json").read_text())["shards"]) == 50
