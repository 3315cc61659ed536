"""The operator's process: kopf watches the objects, a queue orders them, threads reconcile each in its newest state.

kopf is used for its watches only (`on.event`): it puts no finalizer and no annotation of its own on an object, and no
decision depends on having seen a change. A listing of all objects, at the start and every ten minutes, makes up for a
watch that misses events.
"""

from __future__ import annotations

import asyncio
import logging
import random
import sys
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
from pipelines.operator.recaption.attempt import RETRY
from pipelines.operator.runtime.conditions import Object
from pipelines.operator.runtime.dependencies import Dependencies
from pipelines.operator.runtime.kfp import Kfp, compiled
from pipelines.operator.runtime.last_resort import settle
from pipelines.operator.runtime.lease import Lease
from pipelines.operator.runtime.metrics import Metrics, Sources
from pipelines.operator.runtime.patches import API, where
from pipelines.operator.runtime.queue import DueQueue, Key
from pipelines.operator.runtime.serving import serving
from pipelines.operator.runtime.settings import Settings
from pipelines.operator.schedule import reconcile as schedules
from pipelines.operator.schedule.template import SCHEDULE

log = logging.getLogger(__name__)

KINDS: dict[str, tuple[str, Callable[[Object, Dependencies], float]]] = {
    RECAPTIONS: ("Recaption", recaptions.reconcile),
    SCHEDULES: ("RecaptionSchedule", schedules.reconcile),
}
WORKERS = 6
SHARE = 3  # workers that one namespace's objects may have at once
LIST_EVERY = 600.0  # seconds between two listings of everything
AT_REST = ("Suspended", "Succeeded", "Failed", "Refused")
RATE = 10.0  # reconciliations per second over all Recaptions: with more of them, each waits longer
LONGEST_WAIT = 120.0  # seconds that a due object may wait for a worker
LONGEST_LOOK = 900.0  # seconds that one reconciliation may take: a storage that is down takes 120 s a request
SHUTDOWN = 20.0  # seconds for reconciliations under way at the end: the pod has 30, the Lease is released after them
OUTAGE = 20.0  # seconds that one reconciliation waits for an API server that is down; the queue waits longer
WATCH = 300  # seconds after which a watch is started again
DEEP = 25_000
"""Calls within calls that Python allows: the API server takes objects of 10,000 brackets in brackets where a CRD has no
type for a value, and a list or a watch that couldn't be read for one of them would keep the operator from all. Python's
JSON takes a C stack of 8 MB to more than 60,000."""


class Controller:
    """The newest state of all objects, and the threads that reconcile them."""

    def __init__(self, deps: Dependencies, lease: Lease) -> None:
        self.deps, self.lease, self.queue = deps, lease, DueQueue(SHARE)
        self.objects: dict[Key, Object] = {}
        self.listed = 0.0
        self._lock = threading.RLock()
        self._stop = threading.Event()
        sources = Sources(
            recaptions=lambda: self.objects_of(RECAPTIONS),
            schedules=lambda: self.objects_of(SCHEDULES),
            requests=lambda: self.deps.cluster.requests,
            is_leader=lambda: lease.acts,
            is_kfp_reachable=lambda: deps.kfp.reachable,
        )
        self.metrics = Metrics(sources)

    def objects_of(self, resource: str) -> list[Object]:
        """List the objects of one kind."""
        with self._lock:
            return [thing for (kind, _, _), thing in self.objects.items() if kind == resource]

    def update(self, resource: str, thing: Object) -> None:
        """Keep the newest state of an object, and queue it if anything but its status changed."""
        key = key_of(resource, thing)
        with self._lock:
            before = self.objects.get(key)
            self.objects[key] = slim(thing)
        if before is None or trigger(before) != trigger(thing):
            self.queue.add(key)
        if phase(before or {}) != phase(thing):
            self._queue_schedule(thing)

    def remove(self, resource: str, thing: Object) -> None:
        """Forget an object that is gone."""
        key = key_of(resource, thing)
        with self._lock:
            kept = self.objects.get(key)
            if kept and kept["metadata"]["uid"] != thing["metadata"]["uid"]:
                return  # kopf orders the events of one uid only: another object of that name may be there by now
            self.objects.pop(key, None)
        self.queue.forget(key)
        self._queue_schedule(thing)

    def list_all(self) -> None:
        """List all objects, and forget those that are gone. What the watch reports meanwhile is newer and is kept."""
        namespaces = self.deps.settings.watched or ("",)
        for resource, (kind, _) in KINDS.items():
            with self._lock:
                before = {key: thing for key, thing in self.objects.items() if key[0] == resource}
            listed = [thing for n in namespaces for thing in self.deps.cluster.within(n).find(resource)[0]]
            found = {key_of(resource, thing): {**thing, "apiVersion": API, "kind": kind} for thing in listed}
            for key in dict.fromkeys((*found, *before)):
                with self._lock:
                    if self.objects.get(key) is not before.get(key):
                        continue
                    if key in found:
                        self.update(resource, found[key])
                        if phase(found[key]) not in AT_REST:  # in case nothing has queued it
                            self.queue.add(key, LIST_EVERY)
                    else:
                        self.remove(resource, before[key])
        self.listed = time.monotonic()

    @contextmanager
    def working(self) -> Iterator[None]:
        """Run the threads that list and reconcile objects while the context lasts."""
        threads = [threading.Thread(target=self._work, name=f"worker-{i}", daemon=True) for i in range(WORKERS)]
        threads.append(threading.Thread(target=self._keep_listing, name="listing", daemon=True))
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self._stop.set()
            self.queue.close()
            end = time.monotonic() + SHUTDOWN
            for thread in threads:
                thread.join(max(0.0, end - time.monotonic()))

    def unhealthy(self) -> list[str]:
        """List the problems that only a restart mends."""
        found = []
        if self.lease.acts and self.queue.busy < WORKERS and self.queue.overdue > LONGEST_WAIT:
            found.append(f"an object has been due for {self.queue.overdue:.0f} s")
        if self.queue.longest > LONGEST_LOOK:
            found.append(f"one reconciliation takes {self.queue.longest:.0f} s")
        if self.listed and time.monotonic() - self.listed > 3 * LIST_EVERY:
            found.append(f"the objects were last listed {time.monotonic() - self.listed:.0f} s ago")
        return found

    def unready(self) -> list[str]:
        """List what is missing before the operator can work."""
        return [] if self.listed else ["the objects are not listed yet"]

    def _keep_listing(self) -> None:
        """List all objects every LIST_EVERY seconds; after an error with growing pauses."""
        pause = 1.0
        while not self._stop.is_set():
            try:
                self.list_all()
                pause = 1.0
            except Exception as error:  # without this thread nothing would make up for a watch that misses events
                bug = not isinstance(error, RecaptionError)
                log.warning("listing all objects: %s; tried again in %.0f s", error, pause, exc_info=bug)
                self._stop.wait(pause)
                pause = min(2 * pause, 60.0)
                continue
            self._stop.wait(LIST_EVERY)

    def _work(self) -> None:
        """Reconcile one due object after the other while this operator holds the Lease."""
        while not self._stop.is_set():
            if not self.lease.acts:
                self._stop.wait(0.5)
                continue
            key = self.queue.take()
            if key is None:
                return
            if self.lease.acts:  # the Lease may be lost while the queue is empty
                self._reconcile(key)
            else:
                self.queue.done(key, 0.0)

    def _reconcile(self, key: Key) -> None:
        """Reconcile an object, and queue it again at the time that it asks for."""
        with self._lock:
            thing = self.objects.get(key)
        if thing is None:
            self.queue.done(key, inf)
            return
        kind, reconcile = KINDS[key[0]]
        try:
            with self.metrics.reconciling(kind):
                wait = reconcile(thing, self.deps)
            self.queue.done(key, self._spread(wait) if key[0] == RECAPTIONS else wait)  # a schedule is on time
        except Conflict:  # the watch is about to bring the newer object
            self.queue.failed(key)
        except TemporaryError as error:
            log.warning("%s: %s; tried again in %.0f s", where(thing), error, self.queue.failed(key))
        except Exception as error:
            self._fail(key, thing, error)

    def _fail(self, key: Key, thing: Object, error: Exception) -> None:
        """Log and show what trying again may not mend, and try again all the same."""
        left = inf
        try:
            left = settle(key[0], thing, self.deps.cluster, error, self.deps.now())
        except Exception:
            log.exception("%s: a bug while a failure was shown", where(thing))
        pause = self.queue.failed(key)
        self.queue.add(key, left)  # no later than a deletion's bound
        if isinstance(error, RecaptionError):
            log.warning("%s: %s; tried again in %.0f s", where(thing), error, pause)
        else:
            log.error("%s: a bug; tried again in %.0f s", where(thing), pause, exc_info=error)

    def _spread(self, wait: float) -> float:
        """Return a longer wait where there are many active Recaptions, with some jitter."""
        active = sum(phase(thing) not in AT_REST for thing in self.objects_of(RECAPTIONS)) if wait < inf else 0
        return max(wait, active / RATE) * random.uniform(0.9, 1.1)

    def _queue_schedule(self, thing: Object) -> None:
        """Queue the schedule that a Recaption belongs to, if any."""
        name = thing["metadata"].get("labels", {}).get(SCHEDULE)
        if name:
            self.queue.add((SCHEDULES, thing["metadata"]["namespace"], name))


def key_of(resource: str, thing: Object) -> Key:
    """Return an object's key in the queue."""
    return resource, thing["metadata"]["namespace"], thing["metadata"]["name"]


def slim(thing: Object) -> Object:
    """Drop managedFields and the last applied configuration: they are large, and nothing here reads them."""
    meta = {key: value for key, value in thing["metadata"].items() if key != "managedFields"}
    if "annotations" in meta:
        applied = "kubectl.kubernetes.io/last-applied-configuration"
        meta["annotations"] = {key: value for key, value in meta["annotations"].items() if key != applied}
    return {**thing, "metadata": meta}


def trigger(thing: Object) -> tuple[Any, ...]:
    """Return the parts of an object that others change; a change of one of them is reconciled at once."""
    meta = thing["metadata"]
    return (meta["uid"], meta["generation"], meta.get("deletionTimestamp"), meta.get("annotations", {}).get(RETRY))


def phase(thing: Object) -> str:
    """Return status.phase; empty where there is none."""
    return str(thing.get("status", {}).get("phase", ""))


def operate(settings: Settings) -> None:
    """Run the operator until SIGTERM.

    Raises:
        PermanentError: there is no cluster, or the port is taken.
        TemporaryError: the API server no longer knows who is asking.
    """
    sys.setrecursionlimit(DEEP)
    cluster = connect(settings.namespace)
    cluster.outage = OUTAGE
    deps = Dependencies(
        cluster, Kfp(settings, lambda: compiled(settings.images, settings.tag, settings.pods)), settings
    )
    lease = Lease(cluster, settings.identity)
    controller = Controller(deps, lease)
    with serving(settings.port, controller.metrics.registry, controller.unhealthy, controller.unready):
        lease.start()
        threading.Thread(target=deps.kfp.prepare, name="compile", daemon=True).start()
        try:
            with controller.working():
                asyncio.run(watch(controller, settings))
        except kopf.LoginError as error:  # a pod that starts anew reads its token anew
            raise TemporaryError("the API server doesn't know the operator's token or certificate (401)") from error
        finally:
            lease.stop()


async def watch(controller: Controller, settings: Settings) -> None:
    """Watch all objects and pass every change to the controller, until a signal stops it."""
    registry = kopf.OperatorRegistry()
    kopf.on.login(id="login", registry=registry)(kopf.login_via_client)
    for resource in KINDS:
        plural, _, group = resource.partition(".")

        def on_event(event: kopf.RawEvent, kind: str = resource, **_: object) -> None:
            thing: Any = event["object"]
            if event["type"] == "DELETED":
                controller.remove(kind, thing)
            else:
                controller.update(kind, thing)

        kopf.on.event(group, "v1alpha1", plural, id=f"event-{plural}", registry=registry)(on_event)
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
