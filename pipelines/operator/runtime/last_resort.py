"""When a reconciliation raises what nobody foresaw: the object says so, and its deletion still comes to an end."""

from __future__ import annotations

import logging
from datetime import datetime, timedelta
from math import inf

from components.base.errors import RecaptionError, failure_of
from pipelines.kubernetes.cluster import RECAPTIONS, SCHEDULES, Cluster
from pipelines.operator.runtime.conditions import Event, Object, condition, parse_time, with_condition
from pipelines.operator.runtime.patches import FINALIZER, post_event, set_finalizer, where, write_status

log = logging.getLogger(__name__)

BOUND = timedelta(seconds=600)
"""How long a deletion may wait for KFP, for the storage, or for the mending of a bug."""
SHOWN_BY = {RECAPTIONS: "Reachable", SCHEDULES: "Scheduled"}
"""The condition that says so; the next look that succeeds replaces it."""


def end_of(thing: Object) -> datetime:
    """Return the moment from which on a deleted object's finalizer goes, whatever is left undone."""
    return parse_time(thing["metadata"]["deletionTimestamp"]) + BOUND


def settle(resource: str, thing: Object, cluster: Cluster, error: Exception, now: datetime) -> float:
    """Show in an object's conditions why its reconciliation failed; let a deleted one go once its bound has passed.

    Returns:
        seconds until the object must be looked at again; inf: whenever it would be anyway.
    """
    meta, message = thing["metadata"], failure_of(error)["message"]
    try:
        newest = cluster.within(meta["namespace"]).get(resource, meta["name"])
        if newest is None or newest["metadata"]["uid"] != meta["uid"]:
            return inf
        newest = {**thing, **newest}  # a listed object has its kind from us
        ends = "deletionTimestamp" in newest["metadata"] and FINALIZER in newest["metadata"].get("finalizers", ())
        left = (end_of(newest) - now).total_seconds() if ends else inf
        if left <= 0:
            post_event(cluster, newest, gave_up(message), now)
            set_finalizer(cluster, resource, newest, False)
            return inf
        _show(resource, newest, cluster, message, now)
        return left + 1
    except RecaptionError as refusal:
        log.warning("%s: its conditions don't show the failure: %s", where(thing), refusal)
    return inf


def gave_up(left: str) -> Event:
    """Return the Event of a finalizer that goes although this is left undone."""
    return Event("GaveUp", f"deleted without cleaning up after its KFP run: {left}", True)


def _show(resource: str, thing: Object, cluster: Cluster, message: str, now: datetime) -> None:
    kind, status = SHOWN_BY[resource], thing.get("status", {})
    if condition(status, kind).get("reason") == "Bug":
        return
    text = f"the operator could not decide what to do and tries again: {message}"
    made = with_condition(status, kind, False, "Bug", text, thing["metadata"]["generation"], now)
    written = write_status(cluster, resource, thing, made)
    if written is not None:
        post_event(cluster, written, Event("Bug", text, True), now)
