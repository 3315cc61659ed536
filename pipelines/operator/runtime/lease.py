"""Leader election: of several operators the holder of the Lease acts, as with Kubernetes' own controllers."""

from __future__ import annotations

import logging
import threading
import time
from datetime import UTC, datetime

from components.base.errors import RecaptionError
from pipelines.kubernetes.cluster import LEASES, Cluster
from pipelines.operator.runtime.conditions import Object

log = logging.getLogger(__name__)

NAME = "recaption-operator"
DURATION = 30  # seconds after the holder's last renewal until another operator takes over
RENEW = 5.0  # seconds between two renewals
MARGIN = 10.0  # seconds before the Lease's end from which on the holder begins nothing


class Lease:
    """One candidate for the Lease. A thread acquires and renews it; `acts` tells whether it is held."""

    def __init__(self, cluster: Cluster, identity: str, duration: int = DURATION, renew: float = RENEW) -> None:
        self.cluster, self.identity, self.duration, self.renew = cluster, identity, duration, renew
        self.holder = ""
        """The other operator that holds the Lease, as last read."""
        self._until = 0.0
        self._seen: tuple[object, float] = (None, 0.0)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="lease", daemon=True)

    @property
    def acts(self) -> bool:
        """Return whether this operator may act."""
        return time.monotonic() < self._until

    def start(self) -> None:
        """Start the thread that acquires and renews the Lease."""
        self._thread.start()

    def stop(self) -> None:
        """Release the Lease, so that the next operator need not wait."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(self.renew + 10)
        if self.acts:
            self._until = 0.0
            try:
                self._take(released=True)
            except RecaptionError as error:
                log.info("lease %s: not released: %s", NAME, error)

    def _keep(self) -> None:
        """Acquire and renew the Lease until `stop`; log each change."""
        told = ""
        while True:
            try:
                self._take()
            except RecaptionError as error:
                log.warning("lease %s: %s", NAME, error)
            except Exception:  # without this thread the operator would never act again
                log.exception("lease %s: a bug; again in %.0f s", NAME, self.renew)
            if (state := self._state()) != told:
                log.info("lease %s: %s", NAME, state)
                told = state
            if self._stop.wait(self.renew):
                return

    def _state(self) -> str:
        """Return who acts, for the log."""
        if self.acts:
            return "this operator acts"
        return f"{self.holder} acts, this operator waits" if self.holder else "nobody acts yet"

    def _take(self, released: bool = False) -> None:
        """Renew our Lease, or take one that was not renewed for its duration by our own clock."""
        asked = time.monotonic()
        found = self.cluster.get(LEASES, NAME)
        if found is None:
            mine = not released and self.cluster.create(LEASES, self._body({}))
        else:
            spec, version = found.get("spec", {}), found["metadata"]["resourceVersion"]
            holder = spec.get("holderIdentity")
            self.holder = "" if holder == self.identity else holder or ""
            if self._seen[0] != version:
                self._seen = (version, time.monotonic())
            stale = time.monotonic() - self._seen[1] > spec.get("leaseDurationSeconds", self.duration)
            if holder not in (None, "", self.identity) and not stale:
                self._until = 0.0
                return
            body = self._body(spec, released)
            body["metadata"]["resourceVersion"] = version
            mine = self.cluster.patch(LEASES, NAME, body) is not None and not released
        self._until = asked + self.duration - min(MARGIN, self.duration / 3) if mine else 0.0

    def _body(self, before: Object, released: bool = False) -> Object:
        """Return the Lease to be written."""
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        ours = before.get("holderIdentity") == self.identity
        return {
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": {"name": NAME},
            "spec": {
                "holderIdentity": "" if released else self.identity,
                "leaseDurationSeconds": self.duration,
                "acquireTime": before.get("acquireTime", now) if ours else now,
                "renewTime": now,
                "leaseTransitions": before.get("leaseTransitions", 0) + (0 if ours or not before else 1),
            },
        }
