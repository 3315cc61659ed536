"""Writes to the API server: a status, a finalizer, an Event. Each write names the version that was decided on."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from components.base.errors import RecaptionError
from components.base.hashing import content_hash
from components.base.printable import printable, printable_lines
from pipelines.kubernetes.cluster import EVENTS, Cluster
from pipelines.operator.runtime.conditions import Event, Object, timestamp

log = logging.getLogger(__name__)

LONGEST = 1024  # characters of an Event's message: Kubernetes' limit
FINALIZER = "recaption.dev/operator"
API = "recaption.dev/v1alpha1"


def write_status(cluster: Cluster, resource: str, thing: Object, status: Object) -> Object | None:
    """Write an object's status; return the object, or None when it is gone.

    Raises:
        Conflict: it has changed meanwhile and must be decided anew.
    """
    change = merge_patch(thing.get("status", {}), status)
    if not change:
        return thing
    return _patch(cluster, resource, thing, {"status": change}, "status")


def set_finalizer(cluster: Cluster, resource: str, thing: Object, present: bool) -> Object | None:
    """Add or remove our finalizer; return the object, or None when it is gone. Raises Conflict like write_status."""
    others = [f for f in thing["metadata"].get("finalizers", ()) if f != FINALIZER]
    finalizers = [*others, FINALIZER] if present else others
    return _patch(cluster, resource, thing, {"metadata": {"finalizers": finalizers}})


def _patch(cluster: Cluster, resource: str, thing: Object, body: Object, part: str = "") -> Object | None:
    meta = {**body.get("metadata", {}), "resourceVersion": thing["metadata"]["resourceVersion"]}
    return cluster.within(thing["metadata"]["namespace"]).patch(
        resource, thing["metadata"]["name"], {**body, "metadata": meta}, part
    )


def merge_patch(old: Mapping[str, Any], new: Mapping[str, Any]) -> Object:
    """Return the RFC 7386 patch that turns `old` into `new`; empty when they are equal."""
    patch: Object = {key: None for key in old if key not in new}
    for key, value in new.items():
        if key not in old:
            patch[key] = value
        elif isinstance(value, Mapping) and isinstance(old[key], Mapping):
            if change := merge_patch(old[key], value):
                patch[key] = change
        elif value != old[key]:
            patch[key] = value
    return patch


def post_event(cluster: Cluster, thing: Object, event: Event, now: datetime) -> None:
    """Log an Event and post it, once for each object, reason and message. A failure to post is only logged."""
    level, text = logging.WARNING if event.warning else logging.INFO, printable(event.message, LONGEST)
    log.log(level, "%s: %s: %s", where(thing), event.reason, text)
    try:
        cluster.within(thing["metadata"]["namespace"]).create(EVENTS, event_of(thing, event, now))
    except RecaptionError as error:  # a namespace that is being deleted takes no new objects, a full quota none either
        log.info("%s: the Event was not posted: %s", where(thing), error)


def event_of(thing: Object, event: Event, now: datetime) -> Object:
    """Return the Event as a Kubernetes object."""
    meta, moment = thing["metadata"], timestamp(now)
    made_of = [meta["uid"], meta.get("generation"), event.reason, event.message]
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": f"{meta['name']}.{content_hash(made_of)[:16]}", "namespace": meta["namespace"]},
        "involvedObject": {
            "apiVersion": thing["apiVersion"],
            "kind": thing["kind"],
            "name": meta["name"],
            "namespace": meta["namespace"],
            "uid": meta["uid"],
            "resourceVersion": meta["resourceVersion"],
        },
        "type": "Warning" if event.warning else "Normal",
        "reason": event.reason,
        "message": printable_lines(event.message[:LONGEST]),
        "source": {"component": "recaption-operator"},
        "firstTimestamp": moment,
        "lastTimestamp": moment,
        "count": 1,
    }


def where(thing: Object) -> str:
    """Return `kind namespace/name`, for messages."""
    return f"{thing.get('kind', 'object')} {thing['metadata']['namespace']}/{thing['metadata']['name']}"
