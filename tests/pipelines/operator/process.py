"""The operator as a process of its own, before the stand-ins: here, or in a container."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from tests.pipelines.kubernetes.api_server import kubeconfig
from tests.pipelines.operator.place import NAMESPACE, Place, until

Command = Callable[[dict[str, str]], Sequence[str]]
"""Makes the command that starts the operator with these variables of the environment."""


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def here_as(*prefix: str, **more: str) -> Command:
    """Start it on this machine, its command after this prefix, with more variables."""

    def command(environment: dict[str, str]) -> Sequence[str]:
        values = [f"{name}={value}" for name, value in {**environment, **more}.items()]
        return ["env", *values, *prefix, sys.executable, "-m", "pipelines.cli", "operator"]

    return command


class Operator:
    """A process of its own, its port and its log."""

    def __init__(self, here: Place, address: str, port: int, command: Command) -> None:
        self.port, self.log = port, here.folder / "operator.log"
        environment = {
            "KUBECONFIG": str(kubeconfig(here.folder / "kubeconfig", address, NAMESPACE)),
            "KF_PIPELINES_ENDPOINT": here.deps.settings.endpoint,
            "RECAPTION_KFP_NAMESPACE": NAMESPACE,
            "RECAPTION_WATCH_NAMESPACES": NAMESPACE,
            "RECAPTION_PORT": str(self.port),
            "POD_NAMESPACE": NAMESPACE,
            "POD_NAME": "pod",
        }
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(command(environment), stdout=log, stderr=log)

    def get(self, path: str) -> str:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/{path}", timeout=5) as answer:
                return str(answer.read().decode())
        except OSError:
            return ""

    def stop(self) -> int:
        """Ask it to end, as the kubelet does, and return its exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(30)


@contextmanager
def running(here: Place, command: Command) -> Iterator[Operator]:
    """Start an operator, and wait until it has listed everything there is, or has ended."""
    here.api.put("namespaces", {"metadata": {"name": NAMESPACE}})
    made = Operator(here, here.deps.cluster.client.configuration.host, free_port(), command)
    try:
        until(lambda: made.get("readyz") == "ok\n" or made.process.poll() is not None, 60)
        yield made
    finally:
        made.process.kill()
        made.process.wait(10)
