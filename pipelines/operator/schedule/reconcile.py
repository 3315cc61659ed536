"""The reconciliation of one RecaptionSchedule: observe it, decide, write its status, and act.

<storage>/schedules/<name>/<dump>.json   who runs the dump; KFP's recurring runs of that name keep to it, too
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
from pipelines.operator.runtime.dependencies import Dependencies
from pipelines.operator.runtime.patches import post_event, where, write_status
from pipelines.operator.schedule.decide import (
    ScheduleAct,
    ScheduleDecision,
    ScheduleObservation,
    ScheduleProblem,
    decide,
)
from pipelines.operator.schedule.template import (
    SCHEDULE,
    claimant,
    is_created_by,
    name_of,
    recaption_of,
    recipe_for,
    timetable_of,
)

log = logging.getLogger(__name__)

STEPS = 32  # acts of one reconciliation: a start takes four, and every dump that another has claimed as many
SOON = 5.0  # seconds


def reconcile(thing: Object, deps: Dependencies) -> float:
    """Bring a RecaptionSchedule nearer to what its spec asks for; also when one of its Recaptions ended or is gone.

    Returns:
        seconds until the next look; inf: none until the object changes.

    Raises:
        Conflict: the object has changed meanwhile.
        TemporaryError, PermanentError: the API server is away or refuses.
    """
    found = _newest(thing, deps) if thing.get("status", {}).get("pending") else thing
    if found is None or "deletionTimestamp" in found["metadata"]:
        return inf  # its Recaptions go with it
    thing, seen = found, observe(found, deps)
    for _ in range(STEPS):
        decision = decide(thing, seen)
        if decision.act in (ScheduleAct.LIST, ScheduleAct.PROBE):
            asked = _ask(decision.act, thing, seen, deps)
            if asked is None:
                return SOON
            seen = asked
            continue
        written = _write(thing, decision, seen, deps)
        if written is None:
            return inf
        if decision.act is None:
            return decision.wait
        log.info("%s: %s", where(written), decision.act.value)
        thing, seen = written, perform(decision.act, written, seen, deps)
    return SOON


def _newest(thing: Object, deps: Dependencies) -> Object | None:
    """Read the object again: a watch may be late, and what was pending then may be done long ago."""
    meta = thing["metadata"]
    found = deps.cluster.within(meta["namespace"]).get(SCHEDULES, meta["name"])
    return found if found and found["metadata"]["uid"] == meta["uid"] else None


def observe(thing: Object, deps: Dependencies) -> ScheduleObservation:
    """Observe the clock, and the Recaptions of this schedule."""
    meta = thing["metadata"]
    found, _ = deps.cluster.within(meta["namespace"]).find(RECAPTIONS, f"{SCHEDULE}={meta['name']}")
    ours = tuple(recaption for recaption in found if is_created_by(recaption, thing))
    return ScheduleObservation(deps.now(), deps.settings.tenants, ours)


def _ask(act: ScheduleAct, thing: Object, seen: ScheduleObservation, deps: Dependencies) -> ScheduleObservation | None:
    """Add the dumps and their claims; return None while another thread is listing the same dumps."""
    if act is ScheduleAct.PROBE:
        return _probed(thing, seen)
    timetable = timetable_of(thing)
    try:
        dumps = deps.dumps.get(timetable.spec.index, thing["metadata"]["namespace"])
    except RecaptionError as error:
        reason = "NoList" if isinstance(error, PermanentError) else "Unreachable"
        return replace(seen, problem=ScheduleProblem("DumpsListed", reason, str(error)))
    if dumps is None:
        return None
    try:
        claims = claimed(deps.storage(timetable.spec.template.spec.storage), thing["metadata"]["name"])
    except RecaptionError as error:
        return replace(seen, problem=_storage_problem(error))
    todo = tuple(dump for dump in wanted(dumps, timetable.oldest) if dump not in claims)
    return replace(seen, newest=dumps[0], wanted=todo)


def _probed(thing: Object, seen: ScheduleObservation) -> ScheduleObservation:
    """Add the newest of the wanted dumps whose pool has begun."""
    try:
        for dump in seen.wanted or ():
            if has_begun(recipe_for(thing, dump).spec.pool):
                return replace(seen, ready=dump)
    except RecaptionError as error:
        return replace(seen, problem=_storage_problem(error))
    return replace(seen, ready="")


def perform(act: ScheduleAct, thing: Object, seen: ScheduleObservation, deps: Dependencies) -> ScheduleObservation:
    """Carry out an act, and return the observation afterwards."""
    if act is ScheduleAct.LOOK:
        return observe(thing, deps)
    dump = thing["status"]["pending"]
    if act is ScheduleAct.CREATE:
        return _create(thing, dump, seen, deps)
    try:
        storage = deps.storage(timetable_of(thing).spec.template.spec.storage)
        return replace(seen, holder=claim(storage, claim_path(thing["metadata"]["name"], dump), claimant(thing)))
    except RecaptionError as error:
        return replace(seen, problem=_storage_problem(error))


def _create(thing: Object, dump: str, seen: ScheduleObservation, deps: Dependencies) -> ScheduleObservation:
    """Create the dump's Recaption, unless an operator that was killed had created it."""
    cluster, name = deps.cluster.within(thing["metadata"]["namespace"]), name_of(thing, dump)
    try:
        if cluster.create(RECAPTIONS, recaption_of(thing, dump)):
            return replace(observe(thing, deps), created=True)
    except (PermanentError, QuotaRefused) as error:
        return replace(seen, problem=ScheduleProblem("Scheduled", "Refused", str(error)))
    found = cluster.get(RECAPTIONS, name)
    if found and is_created_by(found, thing):
        return replace(observe(thing, deps), created=True)
    message = f"dump {dump} waits: there is a Recaption {name} that isn't this schedule's; delete that one"
    return replace(seen, problem=ScheduleProblem("Scheduled", "NameTaken", message))


def _write(thing: Object, decision: ScheduleDecision, seen: ScheduleObservation, deps: Dependencies) -> Object | None:
    """Write the status, post the Events, delete Recaptions; return the object afterwards, None when it is gone."""
    written = write_status(deps.cluster, SCHEDULES, thing, decision.status)
    if written is None:
        return None
    for event in decision.events:
        post_event(deps.cluster, written, event, seen.now)
    cluster = deps.cluster.within(thing["metadata"]["namespace"])
    for meta in (recaption["metadata"] for recaption in decision.deleted):
        log.info("%s: delete Recaption %s", where(thing), meta["name"])
        cluster.delete(RECAPTIONS, meta["name"], meta["uid"])
    return written


def _storage_problem(error: RecaptionError) -> ScheduleProblem:
    reason = "StorageRefused" if isinstance(error, PermanentError) else "StorageUnreachable"
    return ScheduleProblem("Scheduled", reason, str(error))
