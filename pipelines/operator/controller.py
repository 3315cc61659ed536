"""The operator's process: kopf watches, a queue orders, threads reconcile what the newest object asks for.

kopf only tells what there is (`on.event`): it puts no finalizer and no annotation of its own on an object, so that
nothing depends on having been there when something changed. A listing of everything every ten minutes, and at the
start, makes up for a watch that has gone deaf.
"""

from __future__ import annotations

import asyncio
import logging
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import inf
from typing import Any

import kopf

from components.base.errors import RecaptionError, TemporaryError
from pipelines.kubernetes.cluster import RECAPTIONS, SCHEDULES, Conflict, connect
from pipelines.operator.recaption import reconcile as recaptions
from pipelines.operator.recaption.decide import RETRY
from pipelines.operator.runtime.conditions import Object
from pipelines.operator.runtime.dependencies import World
from pipelines.operator.runtime.kfp import Kfp, compiled
from pipelines.operator.runtime.lease import Lease
from pipelines.operator.runtime.metrics import Metrics, Sources
from pipelines.operator.runtime.patches import API, where
from pipelines.operator.runtime.queue import DueQueue, Key
from pipelines.operator.runtime.serving import serving
from pipelines.operator.runtime.settings import Settings
from pipelines.operator.schedule import reconcile as schedules
from pipelines.operator.schedule.template import SCHEDULE

log = logging.getLogger(__name__)

KINDS: dict[str, tuple[str, Callable[[Object, World], float]]] = {
    RECAPTIONS: ("Recaption", recaptions.reconcile),
    SCHEDULES: ("RecaptionSchedule", schedules.reconcile),
}
WORKERS = 4
LIST_EVERY = 600.0  # seconds between two listings of everything
AT_REST = ("Suspended", "Succeeded", "Failed", "Refused")
LOOKS = 10.0  # per second, over all objects: beyond that each waits longer
STILL = 120.0  # seconds that a due object may wait for a worker
STUCK = 900.0  # seconds that one look may take: of a storage that is away, 120 s a request
PARTING = 20.0  # seconds for looks under way at the end: the pod has 30, and the Lease is given up after them
OUTAGE = 20.0  # seconds of the API server that one look waits out; the queue has the longer breath
WATCH = 300  # seconds after which a watch is begun anew


class Controller:
    """The objects as last seen, and who looks at them when."""

    def __init__(self, world: World, lease: Lease) -> None:
        self.world, self.lease, self.queue = world, lease, DueQueue()
        self.objects: dict[Key, Object] = {}
        self.listed = 0.0
        self._lock = threading.RLock()
        self._stop = threading.Event()
        sources = Sources(
            recaptions=lambda: self.of(RECAPTIONS),
            schedules=lambda: self.of(SCHEDULES),
            requests=lambda: self.world.cluster.requests,
            is_leader=lambda: lease.acts,
            is_kfp_reachable=lambda: world.kfp.reachable,
        )
        self.metrics = Metrics(sources)

    def of(self, resource: str) -> list[Object]:
        with self._lock:
            return [thing for (kind, _, _), thing in self.objects.items() if kind == resource]

    def seen(self, resource: str, thing: Object) -> None:
        """An object is so now. Looked at when anything changed that is not our own status."""
        key = key_of(resource, thing)
        with self._lock:
            before = self.objects.get(key)
            self.objects[key] = slim(thing)
        if before is None or trigger(before) != trigger(thing):
            self.queue.add(key)
        if phase(before or {}) != phase(thing):
            self._tell_schedule(thing)

    def gone(self, resource: str, thing: Object) -> None:
        key = key_of(resource, thing)
        with self._lock:
            kept = self.objects.get(key)
            if kept and kept["metadata"]["uid"] != thing["metadata"]["uid"]:
                return  # kopf tells of one uid at a time: another object of that name may be there by now
            self.objects.pop(key, None)
        self.queue.forget(key)
        self._tell_schedule(thing)

    def list_all(self) -> None:
        """Everything anew, what is no longer there included; what the watch tells meanwhile is newer, and stands."""
        namespaces = self.world.settings.watched or ("",)
        for resource, (kind, _) in KINDS.items():
            with self._lock:
                before = {key: thing for key, thing in self.objects.items() if key[0] == resource}
            listed = [thing for n in namespaces for thing in self.world.cluster.within(n).find(resource)[0]]
            found = {key_of(resource, thing): {**thing, "apiVersion": API, "kind": kind} for thing in listed}
            for key in dict.fromkeys((*found, *before)):
                with self._lock:
                    if self.objects.get(key) is not before.get(key):
                        continue
                    if key in found:
                        self.seen(resource, found[key])
                        if phase(found[key]) not in AT_REST:  # in case that it is due no more
                            self.queue.add(key, LIST_EVERY)
                    else:
                        self.gone(resource, before[key])
        self.listed = time.monotonic()

    @contextmanager
    def working(self) -> Iterator[None]:
        threads = [threading.Thread(target=self._work, name=f"worker-{i}", daemon=True) for i in range(WORKERS)]
        threads.append(threading.Thread(target=self._keep_listing, name="listing", daemon=True))
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self._stop.set()
            self.queue.close()
            end = time.monotonic() + PARTING
            for thread in threads:
                thread.join(max(0.0, end - time.monotonic()))

    def unhealthy(self) -> list[str]:
        """What only a restart mends."""
        found = []
        if self.lease.acts and self.queue.busy < WORKERS and self.queue.overdue > STILL:
            found.append(f"an object waits for {self.queue.overdue:.0f} s to be looked at")
        if self.queue.longest > STUCK:
            found.append(f"one look takes {self.queue.longest:.0f} s")
        if self.listed and time.monotonic() - self.listed > 3 * LIST_EVERY:
            found.append(f"the objects were last listed {time.monotonic() - self.listed:.0f} s ago")
        return found

    def unready(self) -> list[str]:
        return [] if self.listed else ["the objects are not listed yet"]

    def _keep_listing(self) -> None:
        pause = 1.0
        while not self._stop.is_set():
            try:
                self.list_all()
                pause = 1.0
            except RecaptionError as error:
                log.warning("listing: %s; again in %.0f s", error, pause)
                self._stop.wait(pause)
                pause = min(2 * pause, 60.0)
                continue
            self._stop.wait(LIST_EVERY)

    def _work(self) -> None:
        while not self._stop.is_set():
            if not self.lease.acts:
                self._stop.wait(0.5)
                continue
            key = self.queue.take()
            if key is None:
                return
            if self.lease.acts:  # it may be lost while one waits for something to do
                self._look(key)
            else:
                self.queue.done(key, 0.0)

    def _look(self, key: Key) -> None:
        with self._lock:
            thing = self.objects.get(key)
        if thing is None:
            self.queue.done(key, inf)
            return
        kind, reconcile = KINDS[key[0]]
        try:
            with self.metrics.reconciling(kind):
                wait = reconcile(thing, self.world)
            self.queue.done(key, self._stretched(wait) if key[0] == RECAPTIONS else wait)  # a schedule is on time
        except Conflict:  # the watch is about to bring what it has become
            self.queue.failed(key)
        except RecaptionError as error:
            log.warning("%s: %s; again in %.0f s", where(thing), error, self.queue.failed(key))
        except Exception:
            log.exception("%s: a bug; again in %.0f s", where(thing), self.queue.failed(key))

    def _stretched(self, wait: float) -> float:
        active = sum(phase(thing) not in AT_REST for thing in self.of(RECAPTIONS)) if wait < inf else 0
        return max(wait, active / LOOKS) * random.uniform(0.9, 1.1)

    def _tell_schedule(self, thing: Object) -> None:
        name = thing["metadata"].get("labels", {}).get(SCHEDULE)
        if name:
            self.queue.add((SCHEDULES, thing["metadata"]["namespace"], name))


def key_of(resource: str, thing: Object) -> Key:
    return resource, thing["metadata"]["namespace"], thing["metadata"]["name"]


def slim(thing: Object) -> Object:
    """Without what is big and nobody reads: who set which field, and the whole object once more."""
    meta = {key: value for key, value in thing["metadata"].items() if key != "managedFields"}
    if "annotations" in meta:
        applied = "kubectl.kubernetes.io/last-applied-configuration"
        meta["annotations"] = {key: value for key, value in meta["annotations"].items() if key != applied}
    return {**thing, "metadata": meta}


def trigger(thing: Object) -> tuple[Any, ...]:
    """What of an object is somebody else's: a change of it is looked at at once."""
    meta = thing["metadata"]
    return (meta["uid"], meta["generation"], meta.get("deletionTimestamp"), meta.get("annotations", {}).get(RETRY))


def phase(thing: Object) -> str:
    return str(thing.get("status", {}).get("phase", ""))


def operate(settings: Settings) -> None:
    """Until SIGTERM.

    Raises:
        PermanentError: there is no cluster, or the port is taken.
        TemporaryError: the API server no longer knows who is asking.
    """
    cluster = connect(settings.namespace)
    cluster.outage = OUTAGE
    world = World(cluster, Kfp(settings, lambda: compiled(settings.images, settings.tag)), settings)
    lease = Lease(cluster, settings.identity)
    controller = Controller(world, lease)
    with serving(settings.port, controller.metrics.registry, controller.unhealthy, controller.unready):
        lease.start()
        threading.Thread(target=world.kfp.prepare, name="compile", daemon=True).start()
        try:
            with controller.working():
                asyncio.run(watch(controller, settings))
        except kopf.LoginError as error:  # a pod that starts anew reads its token anew
            raise TemporaryError("the API server doesn't know the operator's token or certificate (401)") from error
        finally:
            lease.stop()


async def watch(controller: Controller, settings: Settings) -> None:
    """Tell the controller what there is, until a signal stops it."""
    registry = kopf.OperatorRegistry()
    kopf.on.login(id="login", registry=registry)(kopf.login_via_client)
    for resource in KINDS:
        plural, _, group = resource.partition(".")

        def told(event: kopf.RawEvent, kind: str = resource, **_: object) -> None:
            thing: Any = event["object"]
            if event["type"] == "DELETED":
                controller.gone(kind, thing)
            else:
                controller.seen(kind, thing)

        kopf.on.event(group, "v1alpha1", plural, id=f"told-{plural}", registry=registry)(told)
    how = kopf.OperatorSettings()
    how.watching.server_timeout, how.watching.client_timeout = WATCH, WATCH + 60
    how.watching.connect_timeout = 10
    how.posting.enabled = False
    me: Any = settings.identity  # else kopf asks for the user's name, and a container's user may have none
    await kopf.operator(
        registry=registry,
        settings=how,
        identity=me,
        standalone=True,
        clusterwide=not settings.watched,
        namespaces=list(settings.watched),
    )
