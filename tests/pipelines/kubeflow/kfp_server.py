"""A stand-in for KFP's API server on loopback: the part of v2beta1 that the real client asks for, as 2.17 answers.

A run that was terminated ends as FAILED, never as CANCELED; only its state history tells that from a failure. A run's
`error` stays empty, whatever its steps said. Only a run that has failed can be retried, only one that hasn't ended
can be terminated.
"""

from __future__ import annotations

import json
import re
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import parse_qs, urlsplit

from tests.components.storage.faulty import serving

Answer = tuple[int, dict[str, Any]]


class Run(dict[str, Any]):
    """A run as KFP's database has it: every new state goes into the history."""

    def __setitem__(self, key: str, value: Any) -> None:
        if key == "state" and value != self.get("state"):
            self.setdefault("state_history", []).append({"state": value})
        super().__setitem__(key, value)


class Kfp:
    """What it holds, and how it misbehaves."""

    def __init__(self) -> None:
        self.held: dict[str, list[dict[str, Any]]] = {
            kind: [] for kind in ("pipelines", "versions", "experiments", "runs", "recurringruns")
        }
        self.made: Counter[str] = Counter()
        self.packages: list[bytes] = []
        self.asked: list[str] = []
        self.token: str | None = None
        """Who doesn't show it gets 401, but for healthz, which a proxy often lets through."""
        self.status: int | None = None
        """All requests are answered with it."""
        self.delay = 0.0
        self.refuses: set[str] = set()
        """Actions on a run, `terminate` or `retry`, that get 400."""
        self.multi_user = False
        """Then pipelines and experiments belong to a namespace: a name is taken there alone, and listed there alone."""
        self.hidden = 0
        """So many listings miss what is there: another client is creating it at this moment."""

    def answer(self, method: str, path: str, query: dict[str, list[str]], body: bytes, token: str) -> Answer:
        self.asked.append(f"{method} {path}")
        time.sleep(self.delay)
        if self.status:
            return self.status, {"message": "as the test wants it"}
        if path.endswith("/healthz"):
            return 200, {"multi_user": self.multi_user, "tag_name": "2.17.0"}
        if self.token and token != f"Bearer {self.token}":
            return 401, {"message": "Unauthenticated"}
        if path == "/pipelines/upload_version":
            self.packages.append(re.split(rb"\r\n--", body.partition(b"\r\n\r\n")[2])[0])
            owner = query["pipelineid"][0]
            return self.create("versions", {"display_name": query["name"][0], "pipeline_id": owner})
        if found := re.fullmatch(r"/runs/([^/:]+)(?::(terminate|retry))?", path):
            return self.run(found[1], found[2])
        kind = "versions" if path.endswith("/versions") else path.strip("/")
        if kind not in self.held:
            return 404, {"message": f"no such path {path}"}
        return self.create(kind, json.loads(body)) if method == "POST" else self.list(kind, query)

    def create(self, kind: str, thing: dict[str, Any]) -> Answer:
        names = [other["display_name"] for other in self.of(kind, thing.get("namespace"))]
        if kind in ("pipelines", "versions", "experiments") and thing["display_name"] in names:
            return 409, {"message": "already exists"}
        key = {"versions": "pipeline_version_id", "recurringruns": "recurring_run_id"}.get(kind, f"{kind[:-1]}_id")
        self.made[kind] += 1
        number = self.made[kind]
        made = {**thing, key: f"{kind}-{number}"}
        if kind == "runs":
            made = Run(made, created_at=f"2026-11-24T00:{number // 60:02}:{number % 60:02}Z")
            made["state"] = "PENDING"
        self.held[kind].append(made)
        return 200, made

    def run(self, run_id: str, action: str | None) -> Answer:
        """A run, or what is to happen to it."""
        found = next((run for run in self.held["runs"] if run["run_id"] == run_id), None)
        if found is None:
            return 404, {"code": 5, "message": f"Run {run_id} not found"}
        ended = found["state"] in ("SUCCEEDED", "FAILED", "SKIPPED")
        possible = {"terminate": not ended, "retry": found["state"] == "FAILED"}
        if action in self.refuses or not possible.get(action or "", True):
            return 400, {"code": 9, "message": f"can't {action} it: it is {found['state']}"}
        if action:
            found["state"] = "CANCELING" if action == "terminate" else "RUNNING"
            return 200, {}
        return 200, found

    def of(self, kind: str, namespace: str | None) -> list[dict[str, Any]]:
        """What there is; of several users' what this namespace has."""
        owned = self.multi_user and kind in ("pipelines", "experiments")
        return [t for t in self.held[kind] if not owned or (t.get("namespace") or "") == (namespace or "")]

    def list(self, kind: str, query: dict[str, list[str]]) -> Answer:
        if self.hidden:
            self.hidden -= 1
            return 200, {}
        wanted = json.loads(query["filter"][0])["predicates"][0]["stringValue"]
        found = [thing for thing in self.of(kind, query.get("namespace", [""])[0]) if thing["display_name"] == wanted]
        names = {"versions": "pipeline_versions", "recurringruns": "recurringRuns"}
        return 200, {names.get(kind, kind): found} if found else {}


@contextmanager
def kfp_server() -> Iterator[tuple[str, Kfp]]:
    """Its address and its state."""
    kfp, lock = Kfp(), threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        disable_nagle_algorithm = True

        def do_GET(self) -> None:
            parts = urlsplit(self.path)
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            path = parts.path.removeprefix("/apis/v2beta1")
            token = self.headers.get("authorization", "")
            with lock:
                status, value = kfp.answer(self.command, path, parse_qs(parts.query), body, token)
            data = json.dumps(value).encode()
            with suppress(BrokenPipeError):  # of a client that waited long enough
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

        def do_POST(self) -> None:
            self.do_GET()

        def log_message(self, *_: object) -> None:
            pass

    with serving(Handler) as address:
        yield address, kfp
