"""One Recaption after the other is looked at, and brought a step nearer to what it asks for: the I/O around `decide`.

<storage>/claims/<KFP run>.json      which run this KFP run has planned
<storage>/runs/<run>/claim.json      which KFP run executes it
<storage>/runs/<run>/status.json     how far it is
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from math import inf
from typing import Any

from components.base.errors import PermanentError, RecaptionError, TemporaryError
from components.recipe.recipe import dump_recipe
from components.storage.claims import claim, claimed_by, failure_to_plan, planned_by
from components.storage.interface import Storage
from pipelines.kubeflow.client import KfpRun
from pipelines.kubeflow.parameters import parameters
from pipelines.kubernetes.cleanup import cleanup
from pipelines.kubernetes.cluster import RECAPTIONS, Conflict
from pipelines.operator.recaption.asked import asked
from pipelines.operator.recaption.decide import BAD_NEWS, STOPPED, Act, Problem, Seen, decide, is_under_way
from pipelines.operator.recaption.status_view import best_of, mirrored
from pipelines.operator.runtime.conditions import Object, events, with_condition
from pipelines.operator.runtime.dependencies import World
from pipelines.operator.runtime.patches import set_finalizer, tell, where, write_status

log = logging.getLogger(__name__)

STEPS = 8  # acts of one turn: the longest way, from an edit to the next KFP run, has four


def reconcile(thing: Object, world: World) -> float:
    """Seconds until the next look; inf: when the object changes.

    Raises:
        Conflict: the object has changed meanwhile.
        TemporaryError, PermanentError: the API server is away or refuses.
    """
    notes: Object = {}  # what an act came to, until it is written
    problem: Problem | None = None
    for _ in range(STEPS):
        noted = {**thing, "status": {**thing.get("status", {}), **notes}}
        seen = observe(noted, world, problem)
        decision = decide(noted, seen)
        told = events(thing.get("status", {}), decision.status, BAD_NEWS)
        written = write_status(world.cluster, RECAPTIONS, thing, decision.status)
        if written is None:
            return inf
        for event in (*told, *([decision.event] if decision.event else ())):
            tell(world.cluster, written, event, seen.now)
        thing, notes = written, {}
        if decision.act is None:
            if decision.wait > 0:
                return decision.wait
            continue
        log.info("%s: %s", where(thing), decision.act.value)
        try:
            found, notes = perform(decision.act, thing, seen, world)
        except Conflict:
            raise
        except RecaptionError as error:
            problem = _problem(error)
            continue
        if found is None:
            return inf
        if decision.wait < inf and not notes:
            return decision.wait
        thing = found
    return 1.0


def observe(thing: Object, world: World, problem: Problem | None = None) -> Seen:
    """What `decide` has to know, and no more than that."""
    ui = world.settings.ui
    seen = Seen(world.now(), link=f"{ui}/#/runs/details/" if ui else "", problem=problem)
    if problem or not is_under_way(thing):
        return seen
    attempt = thing["status"]["kfp"]
    try:
        seen = replace(seen, runs=_kfp_runs(thing, attempt, world))  # known also where the storage is away
        storage = world.storage(thing["spec"]["storage"])
        known = thing["status"].get("run", "").rpartition("/")[2]
        ids = [i for i in dict.fromkeys([*(run.id for run in seen.runs), attempt.get("runId", "")]) if i]
        name = known or next(filter(None, (planned_by(storage, run_id) for run_id in ids)), "")
        seen = replace(seen, answered=bool(ids))  # else there was nothing to ask the storage for
        if seen.chosen and seen.chosen.state in STOPPED:
            seen = replace(seen, failure=failure_to_plan(storage, seen.chosen.id))
        return _look_into(seen, storage, name) if name else seen
    except RecaptionError as error:
        return replace(seen, problem=_problem(error))


def _problem(error: RecaptionError) -> Problem:
    return Problem("Refused" if isinstance(error, PermanentError) else "NoAnswer", str(error))


def _kfp_runs(thing: Object, attempt: Mapping[str, Any], world: World) -> tuple[KfpRun, ...]:
    """By id while it runs, which is cheap; by name where there may be several, or none."""
    namespace = thing["metadata"]["namespace"]
    if known := attempt.get("runId"):
        run = world.kfp.get(namespace, known)
        if run and run.state not in STOPPED:
            return (run,)
    return tuple(world.kfp.find(namespace, attempt["name"]))


def _look_into(seen: Seen, storage: Storage, name: str) -> Seen:
    folder, uri = f"runs/{name}", f"{storage.uri}/runs/{name}"
    seen = replace(seen, run=uri, progress=_read(storage, f"{folder}/status.json", lambda found: mirrored(uri, found)))
    if len(seen.runs) != 1 or seen.runs[0].state in STOPPED:
        seen = replace(seen, holder=claimed_by(storage, f"{folder}/claim.json"))
    if not seen.finished:
        return seen
    return replace(seen, results=_read(storage, f"{folder}/results.json", lambda found: best_of(found.get("rows", ()))))


def _read(storage: Storage, path: str, use: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
    """Empty where there is no such file. Raises PermanentError: it is of no use, which must be known before it is."""
    if storage.size(path) is None:
        return {}
    try:
        found: dict[str, Any] = json.loads(storage.read(path))
        use(found)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise PermanentError(
            f"{storage.uri}/{path}: not as recaption writes it ({error}); what else writes there?"
        ) from error
    return found


def perform(act: Act, thing: Object, seen: Seen, world: World) -> tuple[Object | None, Object]:
    """Do one thing: the object then (None when it is gone), and what of its status is to be noted."""
    namespace = thing["metadata"]["namespace"]
    if act in (Act.ADOPT, Act.LET_GO):
        return set_finalizer(world.cluster, RECAPTIONS, thing, act is Act.ADOPT), {}
    if act is Act.SUBMIT:
        attempt = thing["status"]["kfp"]
        return thing, {
            "kfp": {**attempt, "runId": world.kfp.submit(namespace, attempt["name"], submitted(thing, world))}
        }
    if act is Act.TERMINATE:
        for run in seen.runs:
            if run.state not in (*STOPPED, "CANCELING"):
                world.kfp.terminate(namespace, run.id)
    elif act is Act.RESUME:
        return thing, _resume(thing, seen, world)
    elif act is Act.PUT_AWAY:
        _put_away(thing, seen, world)
        return thing, {"cleaned": True}
    return thing, {}


def submitted(thing: Object, world: World) -> dict[str, Any]:
    """The pipeline's parameters."""
    settings = world.settings
    given = {
        "recipe": dump_recipe(asked(thing)),
        "job_service_account": settings.job_service_account,
        "job_secret": settings.job_secret,
    }
    return {p.name: p.default for p in parameters(settings.images, settings.tag)} | given


def _resume(thing: Object, seen: Seen, world: World) -> Object:
    """Claim what the suspension gave up, then let KFP go on; where it can't, another attempt does."""
    kfp_run = seen.chosen
    assert kfp_run is not None  # there is nothing to resume otherwise
    if seen.run:
        storage, path = _claim(thing, seen, world)
        holder = claim(storage, path, kfp_run.id)
        if holder != kfp_run.id:
            raise TemporaryError(f"run {seen.run} was claimed by {holder} just now")
    try:
        world.kfp.retry(thing["metadata"]["namespace"], kfp_run.id)
    except PermanentError as error:
        log.warning("%s: KFP can't resume run %s (%s); a new one goes on", where(thing), kfp_run.id, error)
        return {"kfp": {**thing["status"]["kfp"], "refused": True}}
    generation = thing["metadata"]["generation"]
    status = with_condition(  # at once: should it fail before the next look, nobody asked for that
        thing["status"], "Suspended", False, "Resumed", "the KFP run goes on", generation, seen.now
    )
    return {"conditions": status["conditions"]}


def _put_away(thing: Object, seen: Seen, world: World) -> None:
    """What another KFP run executes by now is left alone."""
    if not seen.run:
        return
    storage, path = _claim(thing, seen, world)
    holder = claimed_by(storage, path)
    ours = {run.id for run in seen.runs} | {thing["status"]["kfp"].get("runId")}
    if holder is not None and holder not in ours:
        return
    cluster = world.cluster.within(world.kfp.namespace_of(thing["metadata"]["namespace"]))
    for deleted in cleanup(cluster, seen.run):
        log.info("%s: deleted %s", where(thing), deleted)
    if holder is not None and not seen.finished:
        storage.delete(path)


def _claim(thing: Object, seen: Seen, world: World) -> tuple[Storage, str]:
    return world.storage(thing["spec"]["storage"]), f"runs/{seen.run.rpartition('/')[2]}/claim.json"
