"""The sample for a cluster without GPUs, run whole: pods and the two nodes of each training are processes here."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from components.miniature.demo import WEIGHTS
from components.miniature.pool import write_evaluation, write_pool
from components.pool.run import Run, load_run
from components.recipe.recipe import parse_recipe
from components.stages.report.table import result_table
from pipelines.execution.local import run_step
from pipelines.planning.graph_nodes import FANNED_OUT, GROUPS
from pipelines.planning.plan import plan_run
from tests.manifests.rendering import MANIFESTS
from tests.pipelines.kubernetes.api_server import Object
from tests.pipelines.kubernetes.conftest import World, uri
from tests.pipelines.kubernetes.controller import controlled
from tests.pipelines.kubernetes.test_training import end
from tests.pipelines.kubernetes.test_trainjobs import validate

INSTALLED = "/opt/recaption/lib/python3.11/site-packages/components/miniature/weights"


def planned(folder: Path) -> Run:
    """The sample over a smaller world on this disk, with one short training."""
    write_pool(folder / "world/pool", 120, 60, seed=5)
    write_evaluation(folder / "world/evaluation", 40, seed=6)
    text = (MANIFESTS / "samples/without-gpus.yaml").read_text()
    text = text.replace("s3://mlpipeline", str(folder)).replace(INSTALLED, str(WEIGHTS))
    value = yaml.safe_load(text)
    value["spec"]["mixtures"].pop(0)
    value["spec"]["train"]["scale"] |= {"batchSize": 16, "samples": 64, "warmup": 1}
    run = plan_run(parse_recipe(yaml.safe_dump(value)))
    run.save()
    return load_run(uri(run))


def node(job: Object, rank: int, port: int, disk: str) -> subprocess.Popen[bytes]:
    """A node of a TrainJob, in the variables that Kubeflow Trainer sets and on a disk of its own."""
    trainer = job["spec"]["trainer"]
    environment = {
        **os.environ,
        "TMPDIR": disk,
        "OMP_NUM_THREADS": "1",
        "PET_NNODES": str(trainer["numNodes"]),
        "PET_NPROC_PER_NODE": str(trainer["numProcPerNode"]),
        "PET_NODE_RANK": str(rank),
        "PET_MASTER_ADDR": "127.0.0.1",
        "PET_MASTER_PORT": str(port),
    }
    return subprocess.Popen([sys.executable, "-m", "pipelines.cli", *trainer["command"][1:]], env=environment)


def train(world: World, job: Object) -> None:
    with closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    running = {"name": "node", "ready": 1, "active": 1, "succeeded": 0, "failed": 0, "suspended": 0}
    with world.api.changed:
        world.api.put("trainjobs", {**job, "status": {"jobsStatus": [running]}})
    ranks = range(job["spec"]["trainer"]["numNodes"])
    disks = [tempfile.TemporaryDirectory() for _ in ranks]  # short paths: sockets lie in it
    nodes = [node(job, rank, port, disk.name) for rank, disk in zip(ranks, disks, strict=True)]
    codes = [node.wait(180) for node in nodes]
    for disk in disks:
        disk.cleanup()
    end(world.api, job, "Failed" if any(codes) else "Complete", str(codes))


@contextmanager
def trainer(world: World) -> Iterator[list[Object]]:
    """Kubeflow Trainer's controller, as far as it starts nodes; the TrainJobs that it saw."""
    stop, seen = threading.Event(), list[Object]()

    def play() -> None:
        while not stop.wait(0.05):
            for job in world.api.of("trainjobs"):
                if job["metadata"]["name"] not in {old["metadata"]["name"] for old in seen}:
                    seen.append(job)
                    train(world, job)

    thread = threading.Thread(target=play, daemon=True)
    thread.start()
    try:
        yield seen
    finally:
        stop.set()
        thread.join(200)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_whole_recipe_runs_without_gpus(world: World, tmp_path: Path) -> None:
    world.run = planned(tmp_path)
    world.api.kinds.add("trainjobs")
    with controlled(world.api), trainer(world) as trainings:
        for name in GROUPS:
            if name in FANNED_OUT:
                world.launch(name)
            else:
                run_step(world.run, name)

    jobs = world.api.of("jobs")
    for job in jobs:
        resources = job["spec"]["template"]["spec"]["containers"][0]["resources"]
        assert not any("gpu" in key for kind in resources.values() for key in kind), job["metadata"]["name"]
    labels = [job["metadata"]["labels"] for job in jobs]
    assert {label["recaption.dev/stage"]: label["recaption.dev/pool"] for label in labels} == {
        **dict.fromkeys(("index", "reshard"), "cpu"),
        **dict.fromkeys(("embed", "score.raw", "caption.blip", "score.blip", "evaluate"), "models"),
    }
    (training,) = trainings
    validate({key: training[key] for key in ("apiVersion", "kind", "spec")} | {"metadata": {}})
    assert training["spec"]["trainer"]["resourcesPerNode"]["limits"] == {"memory": "3Gi"}
    (mixture,) = world.run.trained
    model: dict[str, Any] = json.loads(world.run.storage.read(f"{world.run.model_folder(mixture)}/model.json"))
    assert (model["nodes"], model["world_size"], model["steps"]) == (2, 2, 4)
    assert model["hyperparameters"]["precision"] == "fp32"
    (row,) = result_table(world.run)
    assert row["classification"] is not None
    assert row["retrieval"] is not None
