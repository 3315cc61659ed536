"""One RecaptionSchedule after the other is looked at, and brought a step further: the I/O around `schedules`.

<storage>/schedules/<name>/<dump>.json   who does the dump; KFP's recurring runs of that name go by it, too
"""

from __future__ import annotations

import logging
from dataclasses import replace
from math import inf

from components.base.errors import PermanentError, RecaptionError
from components.pool.shards import has_begun
from components.stages.discover.dumps import claim_path, claimed, wanted
from components.storage.claims import claim
from pipelines.kubernetes.cluster import RECAPTIONS, SCHEDULES, QuotaRefused
from pipelines.operator.runtime.conditions import Object
from pipelines.operator.runtime.dependencies import World
from pipelines.operator.runtime.patches import tell, where, write_status
from pipelines.operator.schedule.decide import Act, Decision, Seen, Trouble, decide
from pipelines.operator.schedule.template import (
    SCHEDULE,
    claimant,
    is_its,
    name_of,
    recaption_of,
    recipe_for,
    timetable_of,
)

log = logging.getLogger(__name__)

STEPS = 32  # acts of one turn: a start takes four, and every dump that another has claimed meanwhile as many
SOON = 5.0  # seconds


def reconcile(thing: Object, world: World) -> float:
    """Seconds until the next look; inf: when the object changes.

    Also to be called when one of its Recaptions has finished or is gone.

    Raises:
        Conflict: the object has changed meanwhile.
        TemporaryError, PermanentError: the API server is away or refuses.
    """
    found = _newest(thing, world) if thing.get("status", {}).get("pending") else thing
    if found is None or "deletionTimestamp" in found["metadata"]:
        return inf  # its Recaptions go with it
    thing, seen = found, observe(found, world)
    for _ in range(STEPS):
        decision = decide(thing, seen)
        if decision.act in (Act.LIST, Act.PROBE):
            asked = _ask(decision.act, thing, seen, world)
            if asked is None:
                return SOON
            seen = asked
            continue
        written = _write(thing, decision, seen, world)
        if written is None:
            return inf
        if decision.act is None:
            return decision.wait
        log.info("%s: %s", where(written), decision.act.value)
        thing, seen = written, perform(decision.act, written, seen, world)
    return SOON


def _newest(thing: Object, world: World) -> Object | None:
    """The object as it is now. What a watch tells may be late, and what was pending then be done long ago."""
    meta = thing["metadata"]
    found = world.cluster.within(meta["namespace"]).get(SCHEDULES, meta["name"])
    return found if found and found["metadata"]["uid"] == meta["uid"] else None


def observe(thing: Object, world: World) -> Seen:
    """The clock, and the Recaptions of this schedule."""
    meta = thing["metadata"]
    found, _ = world.cluster.within(meta["namespace"]).find(RECAPTIONS, f"{SCHEDULE}={meta['name']}")
    return Seen(world.now(), tuple(recaption for recaption in found if is_its(recaption, thing)))


def _ask(act: Act, thing: Object, seen: Seen, world: World) -> Seen | None:
    """With what there is outside of the cluster; None while another thread is asking for the same."""
    if act is Act.PROBE:
        return _probed(thing, seen)
    timetable = timetable_of(thing)
    try:
        dumps = world.dumps.get(timetable.spec.index)
    except RecaptionError as error:
        reason = "NoList" if isinstance(error, PermanentError) else "Unreachable"
        return replace(seen, trouble=Trouble("DumpsListed", reason, str(error)))
    if dumps is None:
        return None
    try:
        claims = claimed(world.storage(timetable.spec.template.spec.storage), thing["metadata"]["name"])
    except RecaptionError as error:
        return replace(seen, trouble=_storage_trouble(error))
    todo = tuple(dump for dump in wanted(dumps, timetable.oldest) if dump not in claims)
    return replace(seen, newest=dumps[0], wanted=todo)


def _probed(thing: Object, seen: Seen) -> Seen:
    """With the newest of the wanted dumps whose pool has begun."""
    try:
        for dump in seen.wanted or ():
            if has_begun(recipe_for(thing, dump).spec.pool):
                return replace(seen, ready=dump)
    except RecaptionError as error:
        return replace(seen, trouble=_storage_trouble(error))
    return replace(seen, ready="")


def perform(act: Act, thing: Object, seen: Seen, world: World) -> Seen:
    """Do one thing: what is seen then."""
    if act is Act.LOOK:
        return observe(thing, world)
    dump = thing["status"]["pending"]
    if act is Act.CREATE:
        return _create(thing, dump, seen, world)
    try:
        storage = world.storage(timetable_of(thing).spec.template.spec.storage)
        return replace(seen, holder=claim(storage, claim_path(thing["metadata"]["name"], dump), claimant(thing)))
    except RecaptionError as error:
        return replace(seen, trouble=_storage_trouble(error))


def _create(thing: Object, dump: str, seen: Seen, world: World) -> Seen:
    """Made once: one of this name that is ours is what an operator made that was killed then."""
    cluster, name = world.cluster.within(thing["metadata"]["namespace"]), name_of(thing, dump)
    try:
        if cluster.create(RECAPTIONS, recaption_of(thing, dump)):
            return replace(observe(thing, world), created=True)
    except (PermanentError, QuotaRefused) as error:
        return replace(seen, trouble=Trouble("Scheduled", "Refused", str(error)))
    found = cluster.get(RECAPTIONS, name)
    if found and is_its(found, thing):
        return replace(observe(thing, world), created=True)
    message = f"dump {dump} waits: there is a Recaption {name} that isn't this schedule's; delete that one"
    return replace(seen, trouble=Trouble("Scheduled", "NameTaken", message))


def _write(thing: Object, decision: Decision, seen: Seen, world: World) -> Object | None:
    """Write what was decided, then tell it and delete what has to go; the object then, None when it is gone."""
    written = write_status(world.cluster, SCHEDULES, thing, decision.status)
    if written is None:
        return None
    for event in decision.events:
        tell(world.cluster, written, event, seen.now)
    cluster = world.cluster.within(thing["metadata"]["namespace"])
    for meta in (recaption["metadata"] for recaption in decision.deleted):
        log.info("%s: delete Recaption %s", where(thing), meta["name"])
        cluster.delete(RECAPTIONS, meta["name"], meta["uid"])
    return written


def _storage_trouble(error: RecaptionError) -> Trouble:
    reason = "StorageRefused" if isinstance(error, PermanentError) else "StorageUnreachable"
    return Trouble("Scheduled", reason, str(error))
