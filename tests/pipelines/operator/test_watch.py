"""The operator's process as the Deployment starts it, kopf included, before the stand-ins."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator

import pytest

from tests.pipelines.fanout.api_server import kubeconfig
from tests.pipelines.operator.place import NAMESPACE, Place, until


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


class Operator:
    """A process of its own, and its port."""

    def __init__(self, here: Place, address: str, port: int) -> None:
        self.port, self.log = port, here.folder / "operator.log"
        settings = here.world.settings
        environment = {
            **os.environ,
            "KUBECONFIG": str(kubeconfig(here.folder / "kubeconfig", address, NAMESPACE)),
            "KF_PIPELINES_ENDPOINT": settings.endpoint,
            "RECAPTION_KFP_NAMESPACE": NAMESPACE,
            "RECAPTION_WATCH_NAMESPACES": NAMESPACE,
            "RECAPTION_PORT": str(self.port),
            "POD_NAMESPACE": NAMESPACE,
            "POD_NAME": "pod",
        }
        command = [sys.executable, "-m", "pipelines.cli", "operator"]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)

    def get(self, path: str) -> str:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/{path}", timeout=5) as answer:
                return str(answer.read().decode())
        except OSError:
            return ""


@pytest.fixture
def operator(here: Place) -> Iterator[Operator]:
    here.api.put("namespaces", {"metadata": {"name": NAMESPACE}})
    made = Operator(here, here.world.cluster.client.configuration.host, free_port())
    try:
        until(lambda: made.get("readyz") == "ok\n", 60)
        yield made
    finally:
        made.process.kill()
        made.process.wait(10)


@pytest.mark.slow
def test_the_process(here: Place, operator: Operator) -> None:
    here.apply()
    until(here.runs, 60)
    assert b"deploymentSpec" in here.kfp.packages[0], "the real pipeline was registered"
    here.play()
    here.apply(suspend=True)
    until(lambda: here.status().get("phase") == "Suspended")
    until(lambda: here.runs()[0]["state"] == "CANCELING")
    here.play()
    here.delete()
    until(lambda: here.object() is None)
    until(lambda: 'recaption_runs{phase="Suspended"} 0.0' in operator.get("metrics"))
    operator.process.send_signal(signal.SIGTERM)
    assert operator.process.wait(30) == 0
    lease = here.api.objects["leases"]["recaption-operator"]
    assert lease["spec"]["holderIdentity"] == "", "given up for the next one"
    log = operator.log.read_text()
    assert "Traceback" not in log
    assert f"Recaption {NAMESPACE}/test: Valid: the recipe is valid" in log


def test_a_port_that_is_taken_is_one_line(here: Place) -> None:
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        second = Operator(here, "http://127.0.0.1:1", taken.getsockname()[1])
        assert second.process.wait(60) == 42
    assert "choose another" in second.log.read_text().splitlines()[-1]


def test_a_token_that_the_api_server_does_not_know_ends_in_one_line(here: Place) -> None:
    here.api.away = "stranger"
    operator = Operator(here, here.world.cluster.client.configuration.host, free_port())
    assert operator.process.wait(60) == 75
    said = [line for line in operator.log.read_text().splitlines() if line.startswith("error: ")]
    assert said == ["error: the API server doesn't know the operator's token or certificate (401)"]
