"""KFP as reconciliations ask it: one client for all of them, and no waiting for an endpoint that was down just now."""

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
from typing import Any, TypeVar

from components.base.errors import PermanentError, TemporaryError
from pipelines.kubeflow.client import Endpoint, KfpRun, Pipelines
from pipelines.operator.runtime.settings import Settings

log = logging.getLogger(__name__)

T = TypeVar("T")
EXPERIMENT = "recaption"
FRESH = 600.0  # seconds that a client is kept: the token in its file changes every hour
SHORTEST, LONGEST = 5.0, 60.0  # seconds of not asking after it could not be reached; doubled each time


@dataclass
class Kfp:
    """One endpoint, for every namespace that it serves."""

    settings: Settings
    package: Callable[[], str]
    """The pipeline, compiled; called once."""
    _clients: dict[str | None, tuple[float, Pipelines | None]] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _compiling: threading.Lock = field(default_factory=threading.Lock)
    _down_until: float = 0.0
    _pause: float = SHORTEST
    _down: str = ""
    _package: str = ""

    @property
    def reachable(self) -> bool:
        """Whether the last question was answered."""
        return not self._down

    def find(self, namespace: str, name: str) -> list[KfpRun]:
        return self._ask(namespace, lambda client: client.find(name))

    def get(self, namespace: str, run_id: str) -> KfpRun | None:
        return self._ask(namespace, lambda client: client.get(run_id))

    def terminate(self, namespace: str, run_id: str) -> None:
        self._ask(namespace, lambda client: client.terminate(run_id))

    def retry(self, namespace: str, run_id: str) -> None:
        self._ask(namespace, lambda client: client.retry(run_id))

    def submit(self, namespace: str, name: str, parameters: Mapping[str, Any]) -> str:
        """Start a run of our pipeline, of the version with this operator's content; its id."""
        account = self.settings.kfp_service_account
        self.prepare()
        return self._ask(namespace, lambda client: client.submit(self._package, name, parameters, EXPERIMENT, account))

    def namespace_of(self, namespace: str) -> str:
        """Where the pods of an object's KFP run are: KFP's own namespace, or with several users the object's."""
        return self._ask(namespace, lambda client: namespace if client.multi_user else self.settings.kfp_namespace)

    def prepare(self) -> None:
        """Compile the pipeline, which takes seconds, before somebody waits for it."""
        with self._compiling:
            self._package = self._package or self.package()

    def _ask(self, namespace: str, question: Callable[[Pipelines], T]) -> T:
        """Raises TemporaryError while KFP is away, at once where another found that a moment ago."""
        self._check()
        try:
            answer = question(self._client(namespace))
        except TemporaryError as error:
            with self._lock:
                if time.monotonic() >= self._down_until:  # else another found it just now
                    self._down, self._down_until = str(error), time.monotonic() + self._pause
                    self._pause = min(2 * self._pause, LONGEST)
                    self._clients.clear()
            raise
        self._down, self._pause = "", SHORTEST
        return answer

    def _check(self) -> None:
        if self._down_until > time.monotonic():
            raise TemporaryError(self._down)

    def _client(self, namespace: str) -> Pipelines:
        """In a KFP with one user nothing may name a namespace."""
        with self._lock:
            self._check()  # who had the lock before may have waited for KFP in vain
            client = self._made(None)
            return self._made(namespace) if client.multi_user else client

    def _made(self, namespace: str | None) -> Pipelines:
        made, client = self._clients.get(namespace, (0.0, None))
        if client is None or time.monotonic() - made > FRESH:
            secret = _secret(self.settings.token_file) if self.settings.token_file else None
            client = Pipelines(Endpoint(self.settings.endpoint, secret, self.settings.ca, namespace))
            self._clients[namespace] = (time.monotonic(), client)
        return client


def _secret(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise TemporaryError(f"RECAPTION_KFP_TOKEN_FILE {file}: {error}; mount the token there") from error


def compiled(images: str, tag: str | None) -> str:
    """The pipeline's package, compiled by another process: what the compiler takes it gives back."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "pipeline.yaml"
        command = [sys.executable, "-m", "pipelines.cli", "pipeline", "compile", "--output", str(path)]
        options = ["--images", images, *(["--tag", tag] if tag else [])]
        done = subprocess.run([*command, *options], check=False, capture_output=True, text=True)
        if done.returncode:
            raise PermanentError(f"the pipeline can't be compiled: {' '.join(done.stderr.split())[-500:]}")
        return path.read_text(encoding="utf-8")
