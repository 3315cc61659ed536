"""The operator's process on a real API server: kopf's watch, kills, a schedule, and a thousand objects."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from components.base.errors import PermanentError
from components.pool.run import load_run
from pipelines.execution import run_status
from pipelines.kubernetes.cluster import EVENTS, RECAPTIONS, SCHEDULES, Cluster
from tests.pipelines.kubeflow.kfp_server import kfp_server
from tests.pipelines.operator.place import Player, until
from tests.pools import sample, write_tar

API = "recaption.dev/v1alpha1"


class World:
    """A namespace with our kinds, KFP played by a thread, and operators as processes."""

    def __init__(self, cluster: Cluster, folder: Path, player: Player, endpoint: str) -> None:
        self.cluster, self.folder, self.player, self.endpoint = cluster, folder, player, endpoint
        self.kubeconfig = folder / "kubeconfig"
        self.kubeconfig.write_text(yaml.safe_dump(self.as_operator()))
        self.processes: list[subprocess.Popen[bytes]] = []
        self.ports: list[int] = []

    def start(self, name: str = "first") -> subprocess.Popen[bytes]:
        """An operator for this namespace alone."""
        port = 18100 + len(self.processes)
        environment = {
            **os.environ,
            "KUBECONFIG": str(self.kubeconfig),
            "KF_PIPELINES_ENDPOINT": self.endpoint,
            "POD_NAMESPACE": self.cluster.namespace,
            "POD_NAME": name,
            "RECAPTION_WATCH_NAMESPACES": self.cluster.namespace,
            "RECAPTION_KFP_NAMESPACE": self.cluster.namespace,
            "RECAPTION_PORT": str(port),
            "PYTHONWARNINGS": "ignore",  # a test cluster's certificate
        }
        with open(self.folder / f"{name}.log", "wb") as log:
            command = [sys.executable, "-m", "pipelines.cli", "operator"]
            self.processes.append(subprocess.Popen(command, env=environment, stdout=log, stderr=log))
        self.ports.append(port)
        until(lambda: self.get("readyz") == 200, 30)
        return self.processes[-1]

    def as_operator(self) -> dict[str, Any]:
        """The test's kubeconfig with the operator's service account, which may do what the manifests say."""
        config = yaml.safe_load(Path(os.environ["KUBECONFIG"]).read_text())
        account = f"/api/v1/namespaces/{self.cluster.namespace}/serviceaccounts/recaption-operator/token"
        token = (self.cluster.ask("POST", account, {"spec": {"expirationSeconds": 3600}}) or {})["status"]["token"]
        names = {context["name"]: context["context"] for context in config["contexts"]}
        here = {"cluster": names[config["current-context"]]["cluster"], "user": "operator"}
        users = [{"name": "operator", "user": {"token": token}}]
        return {**config, "users": users, "contexts": [{"name": "o", "context": here}], "current-context": "o"}

    def get(self, path: str, which: int = -1) -> int | str:
        """The status, or of metrics the text."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.ports[which]}/{path}", timeout=5) as answer:
                return answer.read().decode() if path == "metrics" else answer.status
        except OSError as error:
            return getattr(error, "code", 0)

    def metric(self, name: str) -> float:
        found = re.findall(rf"^{name}(?:{{[^}}]*}})? (\S+)$", str(self.get("metrics")), re.M)
        return sum(map(float, found))

    def spec(self, **values: Any) -> dict[str, Any]:
        return {
            "storage": str(self.folder / "storage"),
            "pool": {"name": "pool", "shards": str(self.folder / "pool")},
            "mixtures": [{"name": "raw", "rules": [{"text": "raw"}]}],
            **values,
        }

    def create(self, name: str, **values: Any) -> None:
        body = {"apiVersion": API, "kind": "Recaption", "metadata": {"name": name}, "spec": self.spec(**values)}
        assert self.cluster.create(RECAPTIONS, body)

    def phase(self, name: str) -> str:
        found = self.cluster.get(RECAPTIONS, name) or {}
        return str(found.get("status", {}).get("phase", "gone" if not found else ""))

    def finish(self, name: str) -> None:
        """Its KFP run ends, with a report."""
        run = self.kfp_runs(name)[0]["run_id"]
        until(lambda: run in self.player.planned)
        self.player.finish(run)

    def kfp_runs(self, name: str) -> list[dict[str, Any]]:
        return [run for run in self.player.runs() if f".{name}-" in run["display_name"]]


@pytest.fixture
def world(api: Any, namespace: str, installed: None, granted: None, tmp_path: Path) -> Iterator[World]:
    write_tar(tmp_path / "pool" / "00000000.tar", {"0": sample(0)})
    cluster = Cluster(api, namespace, outage=10.0)
    with kfp_server() as (endpoint, kfp):
        player = Player(tmp_path, kfp)
        made = World(cluster, tmp_path, player, endpoint)
        with repeated(player.play):
            try:
                yield made
            finally:
                for thing in cluster.find(RECAPTIONS)[0]:
                    cluster.delete(RECAPTIONS, thing["metadata"]["name"])
                if any(process.poll() is None for process in made.processes):
                    until(lambda: not cluster.find(RECAPTIONS)[0], 120)
                for process in made.processes:
                    process.terminate()
                    process.wait(30)
                for thing in cluster.find(RECAPTIONS)[0]:
                    cluster.patch(RECAPTIONS, thing["metadata"]["name"], {"metadata": {"finalizers": []}})


@contextmanager
def repeated(action: Callable[[], None]) -> Iterator[None]:
    stop = threading.Event()

    def loop() -> None:
        while not stop.wait(0.1):
            action()

    thread = threading.Thread(target=loop, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(10)


def test_a_life_with_operators_that_are_killed(world: World) -> None:
    first = world.start("first")
    world.create("life")
    began = time.monotonic()
    until(lambda: world.kfp_runs("life"), 30)
    assert time.monotonic() - began < 10
    first.send_signal(signal.SIGKILL)
    first.wait(10)
    second = world.start("second")
    until(lambda: world.phase("life") == "Running", 60)
    world.cluster.patch(RECAPTIONS, "life", {"spec": {"suspend": True}})
    until(lambda: world.phase("life") == "Suspended", 60)  # the Lease of the killed one must run out
    second.send_signal(signal.SIGKILL)
    second.wait(10)
    world.cluster.patch(RECAPTIONS, "life", {"spec": {"suspend": False}})
    third = world.start("third")
    until(lambda: world.phase("life") == "Running", 60)
    world.finish("life")
    until(lambda: world.phase("life") == "Succeeded", 60)
    assert len(world.kfp_runs("life")) == 1
    events = {event["reason"] for event in world.cluster.find(EVENTS)[0]}
    assert {"Valid", "Pending", "KFPRun", "Suspended", "Finished"} <= events
    world.cluster.delete(RECAPTIONS, "life")
    until(lambda: world.phase("life") == "gone", 30)
    third.terminate()
    assert third.wait(30) == 0
    assert "bug" not in "".join(path.read_text() for path in world.folder.glob("*.log"))


def test_of_two_operators_one_acts(world: World) -> None:
    world.start("one")
    world.start("two")
    world.create("shared")
    until(lambda: world.phase("shared") == "Running", 30)
    leaders = [float(re.findall(r"^recaption_leader (\S+)$", str(world.get("metrics", i)), re.M)[0]) for i in (0, 1)]
    assert leaders == [1, 0]
    assert len(world.kfp_runs("shared")) == 1
    world.processes[0].terminate()  # gives the Lease up
    world.processes[0].wait(30)
    world.create("next")
    until(lambda: world.phase("next") == "Running", 20)


def test_what_cannot_be_admitted_later_is_refused(world: World) -> None:
    world.start()
    world.create("fixed")
    until(lambda: world.phase("fixed") == "Running", 30)
    with pytest.raises(PermanentError, match="can't be changed"):
        world.cluster.patch(RECAPTIONS, "fixed", {"spec": {"storage": "gs://other/place"}})
    world.cluster.patch(RECAPTIONS, "fixed", {"spec": {"mixtures": [{"name": "new", "rules": [{"text": "raw"}]}]}})
    until(lambda: len(world.kfp_runs("fixed")) == 2, 30)
    until(lambda: world.phase("fixed") == "Running", 30)
    assert world.kfp_runs("fixed")[0]["state"] == "FAILED", "as KFP 2.17 calls what was terminated"


def test_a_schedule_makes_a_recaption_of_the_newest_dump(world: World) -> None:
    (world.folder / "collinfo.json").write_text('[{"id": "CC-MAIN-2026-43"}]')
    write_tar(world.folder / "pools" / "CC-MAIN-2026-43" / "00000000.tar", {"0": sample(0)})
    world.start()
    pool = {"name": "pool-{dump}", "shards": f"{world.folder}/pools/{{dump}}"}
    spec = {"schedule": "* * * * *", "index": str(world.folder), "template": {"spec": world.spec(pool=pool)}}
    body = {"apiVersion": API, "kind": "RecaptionSchedule", "metadata": {"name": "crawl"}, "spec": spec}
    assert world.cluster.create(SCHEDULES, body)
    name = "crawl-cc-main-2026-43"
    until(lambda: world.phase(name) == "Running", 90)
    world.finish(name)
    until(lambda: world.phase(name) == "Succeeded", 60)
    found = world.cluster.get(SCHEDULES, "crawl") or {}
    assert found["status"]["lastDump"] == "CC-MAIN-2026-43"
    assert found["status"]["behind"] == 0
    world.cluster.delete(SCHEDULES, "crawl")


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_thousand(world: World) -> None:
    """900 are at rest, 100 run and get on: requests to the API server, memory, and how soon a new one is started."""

    def get_on() -> None:
        for run in map(load_run, set(world.player.planned.values())):
            done = round(time.monotonic() - began) % 1000
            run_status.put(run, "embed", {"state": "running", "shards": done, "total": 1000, "samples": 100 * done})
        time.sleep(5)

    began = time.monotonic()
    world.start()
    for i in range(1000):
        world.create(f"many{i:03}", suspend=i >= 100)
    until(lambda: world.metric("recaption_runs") == 1000, 120)
    until(lambda: [world.phase(f"many{i:03}") for i in (0, 99, 100, 999)] == ["Running"] * 2 + ["Suspended"] * 2, 300)
    with repeated(get_on):
        time.sleep(60)
        before, since = world.metric("recaption_api_requests_total"), time.monotonic()
        time.sleep(120)
        requests = (world.metric("recaption_api_requests_total") - before) * 60 / (time.monotonic() - since)
    memory = world.metric("process_resident_memory_bytes") / 1e6
    since = time.monotonic()
    world.create("now")
    until(lambda: world.kfp_runs("now"), 30)
    seconds = time.monotonic() - since
    print(f"\n1,000 objects, 100 of them running: {requests:.0f} requests a minute, {memory:.0f} MB, {seconds:.1f} s")
    assert requests < 600  # of which the Lease has 24; each that runs has at most a write every 20 s
    assert memory < 200
    assert seconds < 5
