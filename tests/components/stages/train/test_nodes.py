"""Training on two nodes: two processes of the command line with a disk each, a bucket between them."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml

from components.base.errors import PermanentError, TemporaryError
from components.pool.run import Run
from components.stages.train import logs, stage, trainer_patches
from components.stages.train.logs import kept_log, read_logs
from components.stages.train.nodes import Nodes, this_node
from components.stages.train.trainer import OutOfMemory, TrainerLog
from components.storage.interface import Storage
from components.storage.local import LocalStorage
from components.storage.opening import open_storage
from tests.components.stages.train.conftest import make_training
from tests.components.storage.gcs_server import BUCKET, gcs_server

KUBEFLOW = {
    "PET_NNODES": "4",
    "PET_NPROC_PER_NODE": "8",
    "PET_NODE_RANK": "3",
    "PET_MASTER_ADDR": "job-node-0-0.job",
    "PET_MASTER_PORT": "29400",
}


def test_kubeflows_variables_are_read() -> None:
    assert this_node({}) == Nodes()
    assert this_node({"PET_NNODES": "", "PET_NODE_RANK": "1"}) == Nodes()
    assert this_node(KUBEFLOW) == Nodes(4, 3, 8, together=True)
    assert this_node({**KUBEFLOW, "PET_NPROC_PER_NODE": "auto"}).processes is None
    assert this_node({**KUBEFLOW, "RECAPTION_RESTARTS": "3"}).restarts == 3
    assert this_node({**KUBEFLOW, "RECAPTION_RESTARTS": ""}).restarts == 0  # no JobSet, so no label
    alone = {"PET_NNODES": "1", "PET_MASTER_ADDR": "a", "PET_MASTER_PORT": "1"}
    assert this_node(alone) == Nodes(together=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"PET_NNODES": "1:4"}, "PET_NNODES is '1:4'; expected a number"),
        ({"PET_NODE_RANK": ""}, "PET_NODE_RANK is ''; expected a number"),
        ({"PET_NODE_RANK": "4"}, "PET_NODE_RANK 4 is none of PET_NNODES 4"),
        ({"PET_NNODES": "0"}, "PET_NODE_RANK 3 is none of PET_NNODES 0"),
        ({"PET_MASTER_ADDR": ""}, "PET_MASTER_ADDR is missing; Kubeflow Trainer sets PET_NNODES"),
        ({"PET_MASTER_PORT": ""}, "PET_MASTER_PORT is missing"),
    ],
)
def test_what_kubeflow_would_not_set_is_refused(change: dict[str, str], message: str) -> None:
    with pytest.raises(PermanentError, match=f"^train: {message}"):
        this_node({**KUBEFLOW, **change})


def test_a_node_that_lost_a_gpu_is_bad_luck() -> None:
    nodes = this_node(KUBEFLOW)
    assert nodes.workers(8) == 8
    assert nodes.workers(0) == 8  # on a CPU
    assert Nodes().workers(0) == 1
    with pytest.raises(TemporaryError, match="node 3 of 4 sees 7 GPUs, PET_NPROC_PER_NODE says 8"):
        nodes.workers(7)


def test_a_crashing_training_restarts_less_and_less_often() -> None:
    """Ten restarts without a pause were used up in 55 s, on a cluster."""
    pauses = [Nodes(2, 1, restarts=restarts, together=True).pause for restarts in range(12)]
    assert pauses == [10, 20, 40, 80, 160, *[300] * 7]
    assert Nodes(restarts=3).pause == 0  # on a machine alone nobody starts it again at once


@pytest.mark.parametrize(
    ("error", "pauses"), [(TemporaryError("no"), [40.0]), (ValueError("no"), [40.0]), (PermanentError("no"), [])]
)
def test_what_another_start_may_cure_leaves_after_the_pause(
    error: Exception,
    pauses: list[float],
    run: Run,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    for name, value in {**KUBEFLOW, "RECAPTION_RESTARTS": "2"}.items():
        monkeypatch.setenv(name, value)

    def fail(*_: object) -> None:
        raise error

    slept: list[float] = []
    monkeypatch.setattr(stage, "train", fail)
    monkeypatch.setattr(time, "sleep", slept.append)
    with pytest.raises(type(error), match="no"):
        stage.TrainStep().run(run)
    assert slept == pauses
    assert ("leaving in 40 s, after 2 restarts" in caplog.text) == bool(pauses)


def test_a_survivor_outlasts_the_end_of_the_node_it_lost() -> None:
    """A pod of a JobSet that fails first decides whether the restart counts: an evicted one's does not."""
    runtime = yaml.safe_load(Path("manifests/training/runtime.yaml").read_text())
    (job,) = runtime["spec"]["template"]["spec"]["replicatedJobs"]
    assert job["template"]["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] + 10 <= stage.LINGER


@pytest.fixture
def nodes_of_three(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {**KUBEFLOW, "PET_NNODES": "3", "PET_NPROC_PER_NODE": "5", "PET_NODE_RANK": "1"}.items():
        monkeypatch.setenv(name, value)


@pytest.mark.usefixtures("nodes_of_three")
def test_nodes_that_do_not_divide_the_batch_are_refused(run: Run) -> None:
    with pytest.raises(PermanentError, match=r"batch of 32 .* among 15 processes, .*; use 8 of them .*spec\.comp"):
        stage.TrainStep().run(run)


def training_of(run: Run, nodes: Nodes, work: Path) -> stage.Training:
    assert run.spec.train
    scale, multiple = stage.scale_of(run.spec.train)
    return stage.Training(run.spec.train, scale, multiple, run.storage, "datasets/x", "models/x", work, nodes)


def test_too_little_memory_starts_all_nodes_again_in_more_passes(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One node alone can't change the size of a step; what it found is in the storage for the next attempt."""
    batches: list[tuple[str, str]] = []

    def torchrun(job: Path, processes: int, log: Path, met: bool) -> TrainerLog:
        assert met
        found = json.loads(job.read_text())
        assert found["worldSize"] == 4
        pairs = dict(zip(found["arguments"][2:-2:2], found["arguments"][3:-2:2], strict=True))
        batches.append((pairs["--batch-size"], pairs["--accum-freq"]))
        if len(batches) < 3:
            raise OutOfMemory("train: CUDA out of memory")
        return TrainerLog()

    monkeypatch.setattr(stage, "torchrun", torchrun)
    training = training_of(run, Nodes(2, 1, 2, together=True), tmp_path)
    for passes in (2, 4):
        with pytest.raises(TemporaryError, match=f"out of memory: run again, in {passes} passes"):
            stage._train(training, "tiny-vit", [])
    stage._train(training, "tiny-vit", [])
    assert batches == [("8", "1"), ("4", "2"), ("2", "4")]
    other = replace(training, nodes=Nodes(4, 0, 2, together=True))
    assert stage._known_passes(other, 8) == 1  # found for other nodes


@pytest.mark.parametrize("change", [{}, {"checkpoint": 3}, {"passes": 2}])
def test_nodes_that_disagree_do_not_start(change: dict[str, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """open_clip would train one of them for longer than the others, who would wait for ever."""

    def gather(everyone: list[Any], mine: dict[str, int]) -> None:
        everyone[:] = [mine, {**mine, **change}]

    monkeypatch.setattr(torch.distributed, "all_gather_object", gather)
    monkeypatch.setattr(trainer_patches.data, "get_data", lambda *_: {"train": "data"})
    args = SimpleNamespace(distributed=True, world_size=2, batch_size=16, accum_freq=1)
    if not change:
        assert trainer_patches.get_data(args, (None, None), 4) == {"train": "data"}
        return
    with pytest.raises(TemporaryError, match=r"different places, (checkpoint 4 and 3|passes 1 and 2)"):
        trainer_patches.get_data(args, (None, None), 4)


def test_logs_outlive_their_pods_and_count_every_nodes_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(logs, "WAIT", 0.1)
    storage, nodes = LocalStorage(tmp_path / "bucket"), Nodes(3, 1, together=True)
    bad = "x | WARNING | undecodable image 00000000.tar {}: cut\n"
    (tmp_path / "a.log").write_text(bad.format("one"))
    with pytest.raises(TemporaryError), kept_log(storage, "m", nodes, tmp_path / "a.log"):
        raise TemporaryError("peer lost")
    with kept_log(storage, "m", nodes, tmp_path / "b.log"), open(tmp_path / "b.log", "a") as file:  # another pod
        file.write(bad.format("two"))
    (tmp_path / "lead.log").write_text(bad.format("two") + bad.format("three"))
    whole = read_logs(storage, "m", Nodes(3, 0, together=True), tmp_path / "lead.log")
    assert sorted(whole.undecodable) == [f"00000000.tar {key}" for key in ("one", "three", "two")]
    assert "node 2 left no log" in caplog.text


# The command line, but looking for new checkpoints as often as this small a training makes them.
RECAPTION = """
from components.stages.train import checkpoints, nodes, stage
from pipelines.cli import main
checkpoints._LOOK_EVERY, stage.LINGER, nodes.FIRST = 0.05, 1, 0.1
main()
"""


class Node:
    """One node's process of `recaption stage train`."""

    def __init__(self, uri: str, rank: int, port: int, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.disk = tempfile.TemporaryDirectory()  # a short path: sockets lie in it
        (folder / "recaption.py").write_text(RECAPTION)
        environment = {
            **os.environ,
            "PYTHONPATH": os.getcwd(),
            "OMP_NUM_THREADS": "1",
            "TMPDIR": self.disk.name,
            "PET_NNODES": "2",
            "PET_NPROC_PER_NODE": "1",
            "PET_NODE_RANK": str(rank),
            "PET_MASTER_ADDR": "127.0.0.1",
            "PET_MASTER_PORT": str(port),
        }
        self.log = folder / "stderr"
        command = [sys.executable, folder / "recaption.py", "stage", "train", uri, "--mixture", "everything"]
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(command, env=environment, stderr=log)

    def wait(self) -> int:
        code = self.process.wait(timeout=120)
        self.disk.cleanup()
        return code


def start(uri: str, folder: Path) -> list[Node]:
    with closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return [Node(uri, rank, port, folder / f"node-{rank}") for rank in range(2)]


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    with gcs_server() as address:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", address)
        yield f"gs://{BUCKET}"


def publish(run: Run, uri: str) -> Run:
    """The training set, what names it, and the plan, in the bucket."""
    storage = open_storage(uri)
    for entry in (*run.storage.list("datasets/"), *run.storage.list("pools/")):
        storage.write(entry.path, run.storage.read(entry.path))
    published = replace(run, storage=storage)
    published.save()
    return published


def weights(run: Run, folder: Path) -> dict[str, torch.Tensor]:
    """Of the finished model: all that the trainer keeps of one."""
    model = json.loads(run.storage.read(f"{run.model_folder(run.trained[0])}/model.json"))
    path = folder / f"{run.storage.uri.rpartition('/')[2]}.pt"
    path.write_bytes(run.storage.read(model["checkpoint"]))
    found: dict[str, torch.Tensor] = torch.load(path, weights_only=True)["state_dict"]
    return found


def checkpoints_in(storage: Storage, folder: str) -> list[str]:
    return [entry.path for entry in storage.list(f"{folder}/checkpoints/")]


@pytest.mark.slow
def test_preempted_and_resumed_gives_the_same_weights(bucket: str, tmp_path: Path) -> None:
    """SIGTERM to one of two nodes ends both, 143 and 75; the next attempt, on empty disks, goes on from the bucket."""
    made = make_training(tmp_path, checkpoints=16)
    calm, killed = publish(made, f"{bucket}/calm"), publish(made, f"{bucket}/killed")
    folder = killed.model_folder(killed.trained[0])
    nodes = start(f"{bucket}/killed/{killed.folder}", tmp_path / "first")
    while not checkpoints_in(killed.storage, folder):
        assert nodes[0].process.poll() is None, nodes[0].log.read_text()
        time.sleep(0.02)
    nodes[1].process.send_signal(signal.SIGTERM)
    assert [node.wait() for node in nodes] == [75, 143], nodes[0].log.read_text()
    assert killed.storage.size(f"{folder}/model.json") is None
    assert "by peer" in nodes[0].log.read_text().splitlines()[-1]

    again = start(f"{bucket}/killed/{killed.folder}", tmp_path / "second")
    assert [node.wait() for node in again] == [0, 0], again[0].log.read_text() + again[1].log.read_text()
    model = json.loads(killed.storage.read(f"{folder}/model.json"))
    assert 1 <= model["resumed_after"] < 16
    assert (model["world_size"], model["nodes"], model["steps"], model["undecodable"]) == (2, 2, 16, 0)
    assert checkpoints_in(killed.storage, folder) == [f"{folder}/checkpoints/epoch_16.pt"]

    undisturbed = start(f"{bucket}/calm/{calm.folder}", tmp_path / "calm")
    assert [node.wait() for node in undisturbed] == [0, 0]
    expected, found = weights(calm, tmp_path), weights(killed, tmp_path)
    different = {key: float((value - found[key]).abs().max()) for key, value in expected.items()}
    assert not {key: by for key, by in different.items() if by}, model["resumed_after"]
    assert json.loads(calm.storage.read(f"{folder}/model.json"))["final_loss"] == model["final_loss"]
    late = start(f"{bucket}/calm/{calm.folder}", tmp_path / "late")
    assert [node.wait() for node in late] == [0, 0]  # a restart after the end: nothing is done twice
