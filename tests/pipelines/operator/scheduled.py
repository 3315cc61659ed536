"""A schedule in a cluster whose clock the test holds: an index of dumps, their pools, a storage; and sudden death."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from math import inf
from pathlib import Path
from typing import Any

from components.stages.discover.dumps import claim_path
from components.storage.claims import claim
from components.storage.interface import Entry
from components.storage.local import LocalStorage
from pipelines.kubernetes.cluster import RECAPTIONS, SCHEDULES, Cluster, Conflict, _ErrorStatus
from pipelines.operator.runtime.conditions import Object, condition, timestamp
from pipelines.operator.runtime.dependencies import Dependencies
from pipelines.operator.runtime.dump_lists import DumpLists
from pipelines.operator.runtime.kfp import Kfp
from pipelines.operator.runtime.settings import Settings
from pipelines.operator.schedule import reconcile
from pipelines.operator.schedule.template import OF_DUMP, SCHEDULE
from tests.pipelines.kubernetes.api_server import Api, Refused

NAME = "weekly"
JULY, MAY, MARCH = "CC-MAIN-2026-30", "CC-MAIN-2026-21", "CC-MAIN-2026-12"
START = datetime(2026, 8, 3, 5, 0, tzinfo=UTC)  # a Monday
DAILY = "0 6 * * *"


class Killed(BaseException):
    """The process is gone. No `except Exception` sees it."""


class Fuse:
    """Kills at the n-th call to something outside of the process, before it is made."""

    def __init__(self) -> None:
        self.left: int | None = None
        self.burnt = False

    @contextmanager
    def lit(self, calls: int) -> Iterator[None]:
        """Whether the n-th call came is `burnt` then."""
        self.left, self.burnt = calls, False
        try:
            yield
        except Killed:
            self.burnt = True
        finally:
            self.left = None

    def burn(self) -> None:
        if self.left == 0:
            raise Killed
        if self.left is not None:
            self.left -= 1


class FusedStorage(LocalStorage):
    def __init__(self, root: str, fuse: Fuse) -> None:
        super().__init__(root)
        self.fuse = fuse

    def create(self, path: str, data: bytes) -> bool:
        self.fuse.burn()
        return super().create(path, data)

    def size(self, path: str) -> int | None:
        self.fuse.burn()
        return super().size(path)

    def list(self, prefix: str = "") -> Iterator[Entry]:
        self.fuse.burn()
        return super().list(prefix)


class Direct(Cluster):
    """The stand-in API server without HTTP, for thousands of requests."""

    def __init__(self, api: Api, fuse: Fuse) -> None:
        super().__init__(None, api.namespace, outage=0.0)
        self.api, self.fuse = api, fuse
        self.made: list[str] = []
        """Names of all Recaptions that ever were created."""
        self.versions: list[Object] = []
        """Of schedules, as a watch tells them."""

    def within(self, namespace: str) -> Cluster:
        return self

    def _call(
        self, resource: str, method: str, path: str, query: Mapping[str, object], body: Object | None, kind: str
    ) -> Any:
        self.fuse.burn()
        kind, (name, _, part) = resource.partition(".")[0].partition("/")[0], path.strip("/").partition("/")
        given = json.loads(json.dumps(body or {}))
        try:
            with self.api.changed:
                answer = self._answer(method, kind, name, part, query, given)
        except Refused as refused:
            raise _ErrorStatus(refused.code, json.dumps({"message": refused.message})) from refused
        answer = json.loads(json.dumps(answer))
        if kind == "recaptionschedules" and method in ("POST", "PATCH"):
            self.versions.append(answer)
        return answer

    def _answer(
        self, method: str, kind: str, name: str, part: str, query: Mapping[str, object], given: Object
    ) -> Object:
        if method == "GET":
            items = self.api.select(kind, str(query.get("labelSelector", "")), "")
            return self.api.get(kind, name) if name else {"items": items, "metadata": {}}
        if method == "POST":
            answer = self.api.create(kind, given)
            self.made += [given["metadata"]["name"]] if kind == "recaptions" else []
            return answer
        if method == "PATCH":
            return self.api.patch(kind, name, part, given)
        return self.api.delete(kind, name, given)


class Scheduled:
    """One schedule, `weekly`; what a user, KFP and time do to it."""

    def __init__(self, folder: Path, cluster: Cluster, api: Api, fuse: Fuse | None = None) -> None:
        self.folder, self.cluster, self.api, self.now = folder, cluster, api, START
        settings = Settings("http://kfp.example", "http://kfp.example")
        self.deps = Dependencies(
            cluster, Kfp(settings, lambda: ""), settings, lambda: self.now, dumps=DumpLists(kept=0.0)
        )
        self.storage = LocalStorage(str(folder / "storage"))
        if fuse:
            self.deps.storages[self.storage.uri] = FusedStorage(self.storage.uri, fuse)
        self.dumps: list[str] = []
        self.publish(MARCH)

    def template(self, **values: Any) -> Object:
        return {
            "storage": self.storage.uri,
            "pool": {"name": "cc-{dump}", "shards": f"{self.folder}/{{dump}}"},
            "mixtures": [{"name": "raw", "rules": [{"text": "raw"}]}],
            **values,
        }

    def spec(self, **values: Any) -> Object:
        return {"schedule": DAILY, "index": str(self.folder), "template": {"spec": self.template()}, **values}

    def apply(self, name: str = NAME, **values: Any) -> None:
        """Create it now, or change what is given of its spec."""
        made = {"name": name, "creationTimestamp": timestamp(self.now)}
        body = {"apiVersion": "recaption.dev/v1alpha1", "kind": "RecaptionSchedule", "metadata": made}
        if not self.cluster.create(SCHEDULES, {**body, "spec": self.spec(**values)}):
            self.cluster.patch(SCHEDULES, name, {"spec": values})

    def publish(self, dump: str, shards: bool = True) -> None:
        """Common Crawl has another dump; and its pool is filled, or not yet."""
        self.dumps.append(dump)
        (self.folder / "collinfo.json").write_text(json.dumps([{"id": dump} for dump in self.dumps]))
        if shards:
            self.fill(dump)

    def fill(self, dump: str) -> None:
        (self.folder / dump).mkdir(exist_ok=True)
        (self.folder / dump / "00000000.tar").touch()

    def rob(self, dump: str, name: str = NAME) -> str:
        """KFP's recurring run of the same name claims a dump: whose it is now."""
        return claim(self.storage, claim_path(name, dump), "kfp-1")

    def wait(self, **time: float) -> None:
        self.now += timedelta(**time)

    def object(self, name: str = NAME) -> Object | None:
        found = self.api.objects.get("recaptionschedules", {}).get(name)
        return json.loads(json.dumps(found)) if found else None

    def look(self, name: str = NAME) -> float:
        """As the controller does; seconds until the next look."""
        for _ in range(5):
            thing = self.object(name)
            if thing is None:
                return inf
            try:
                return reconcile.reconcile(thing, self.deps)
            except Conflict:
                continue
        raise AssertionError(f"{name}: one conflict after the other")

    def tomorrow(self) -> float:
        """A look right after the next morning's tick."""
        day = self.now if self.now.hour < 6 else self.now + timedelta(days=1)
        self.now = day.replace(hour=6, minute=0, second=1)
        return self.look()

    def status(self, name: str = NAME) -> Object:
        return dict((self.object(name) or {}).get("status", {}))

    def reason(self, kind: str = "Scheduled") -> str:
        return str(condition(self.status(), kind).get("reason", ""))

    def message(self, kind: str = "Scheduled") -> str:
        return str(condition(self.status(), kind).get("message", ""))

    def events(self) -> list[str]:
        return [event["reason"] for event in self.api.of("events")]

    def recaptions(self) -> dict[str, Object]:
        """By dump, in lower case."""
        found = [r for r in self.api.of("recaptions") if r["metadata"].get("labels", {}).get(SCHEDULE) == NAME]
        return {r["metadata"]["labels"][OF_DUMP]: r for r in found}

    def finish(self, dump: str, phase: str = "Succeeded") -> None:
        """The Recaption's own reconciliation does this."""
        status = {"phase": phase, "completionTime": timestamp(self.now)}
        self.cluster.patch(RECAPTIONS, f"{NAME}-{dump.lower()}", {"status": status}, "status")

    def let_go(self) -> None:
        """What is being deleted is ended by its own reconciliation, which takes the finalizer off."""
        for recaption in self.api.of("recaptions"):
            if "deletionTimestamp" in recaption["metadata"]:
                self.cluster.patch(RECAPTIONS, recaption["metadata"]["name"], {"metadata": {"finalizers": []}})
