"""KFP for all reconciliations: one client per namespace, and no waiting for an endpoint that was down just now."""

from __future__ import annotations

import logging
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from components.base.errors import PermanentError, TemporaryError
from pipelines.kubeflow.client import Endpoint, KfpRun, Pipelines
from pipelines.kubernetes.pod_settings import PodSettings
from pipelines.operator.runtime.settings import Settings

log = logging.getLogger(__name__)

T = TypeVar("T")
EXPERIMENT = "recaption"
FRESH = 600.0  # seconds that a client is kept: the token in its file changes every hour
SHORTEST, LONGEST = 5.0, 60.0  # seconds of not asking after it could not be reached; doubled each time


@dataclass
class Kfp:
    """One KFP endpoint, for every namespace that it serves."""

    settings: Settings
    package: Callable[[], str]
    """Compiles the pipeline; called once."""
    _clients: dict[str | None, tuple[float, Pipelines | None]] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _compiling: threading.Lock = field(default_factory=threading.Lock)
    _down_until: float = 0.0
    _pause: float = SHORTEST
    _down: str = ""
    _package: str = ""

    @property
    def reachable(self) -> bool:
        """Return whether KFP answered the last question."""
        return not self._down

    def find(self, namespace: str, name: str) -> list[KfpRun]:
        """List all runs of this name, oldest first."""
        return self._ask(namespace, lambda client: client.find(name))

    def get(self, namespace: str, run_id: str) -> KfpRun | None:
        """Return a run; None where KFP knows no such run."""
        return self._ask(namespace, lambda client: client.get(run_id))

    def terminate(self, namespace: str, run_id: str) -> None:
        """Ask KFP to end a run."""
        self._ask(namespace, lambda client: client.terminate(run_id))

    def retry(self, namespace: str, run_id: str) -> None:
        """Let an ended run go on. Raises PermanentError where KFP can't."""
        self._ask(namespace, lambda client: client.retry(run_id))

    def submit(self, namespace: str, name: str, parameters: Mapping[str, str]) -> str:
        """Start a run of this operator's version of the pipeline, and return its id."""
        account = self.settings.kfp_service_account
        self.prepare()
        return self._ask(namespace, lambda client: client.submit(self._package, name, parameters, EXPERIMENT, account))

    def namespace_of(self, namespace: str) -> str:
        """Return the namespace of a KFP run's pods: KFP's own, or with several users the object's."""
        return self._ask(namespace, lambda client: namespace if client.multi_user else self.settings.kfp_namespace)

    def prepare(self) -> None:
        """Compile the pipeline, which takes seconds, unless it is compiled."""
        with self._compiling:
            self._package = self._package or self.package()

    def _ask(self, namespace: str, question: Callable[[Pipelines], T]) -> T:
        """Ask KFP. Raises TemporaryError while KFP is down, at once where another thread found that just now."""
        self._check()
        try:
            answer = question(self._client(namespace))
        except TemporaryError as error:
            with self._lock:
                self._went_down(error)
            raise
        self._down, self._pause = "", SHORTEST
        return answer

    def _went_down(self, error: TemporaryError) -> None:
        """Note that KFP is down, unless another thread found that just now; for who has the lock."""
        if time.monotonic() >= self._down_until:
            self._down, self._down_until = str(error), time.monotonic() + self._pause
            self._pause = min(2 * self._pause, LONGEST)
            self._clients.clear()

    def _check(self) -> None:
        if self._down_until > time.monotonic():
            raise TemporaryError(self._down)

    def _client(self, namespace: str) -> Pipelines:
        """Return the client for a namespace. In a KFP with one user no request may name a namespace."""
        with self._lock:
            self._check()  # the thread that had the lock may have waited for KFP in vain
            try:
                client = self._cached(None)
                return self._cached(namespace) if client.multi_user else client
            except TemporaryError as error:  # noted before the next thread has the lock
                self._went_down(error)
                raise

    def _cached(self, namespace: str | None) -> Pipelines:
        made, client = self._clients.get(namespace, (0.0, None))
        if client is None or time.monotonic() - made > FRESH:
            token = _token(self.settings.token_file) if self.settings.token_file else None
            client = Pipelines(Endpoint(self.settings.endpoint, token, self.settings.ca, namespace))
            self._clients[namespace] = (time.monotonic(), client)
        return client


def _token(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise TemporaryError(f"RECAPTION_KFP_TOKEN_FILE {file}: {error}; mount the token there") from error


def compiled(images: str, tag: str | None, pods: PodSettings) -> str:
    """Compile the pipeline's package in another process, which gives the compiler's memory back."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "pipeline.yaml"
        command = [sys.executable, "-m", "pipelines.cli", "pipeline", "compile", "--output", str(path)]
        options = ["--images", images, *(["--tag", tag] if tag else [])]
        options += [f"--env={name}={value}" for name, value in pods.variables]
        options += [*(f"--pull-secret={name}" for name in pods.pull_secrets), f"--cache-volume={pods.volume}"]
        done = subprocess.run([*command, *options], check=False, capture_output=True, text=True)
        if done.returncode:
            raise PermanentError(f"the pipeline can't be compiled: {' '.join(done.stderr.split())[-500:]}")
        return path.read_text(encoding="utf-8")
