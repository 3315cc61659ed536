"""The reconciliation of one Recaption: observe it, decide, write its status, and act, until there is nothing to do.

It reads from the storage:

<storage>/claims/<KFP run>.json      which run this KFP run has planned
<storage>/runs/<run>/claim.json      which KFP run executes the run
<storage>/runs/<run>/status.json     how far the run is
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from math import inf
from typing import Any

from components.base.errors import PermanentError, RecaptionError, TemporaryError, failure_of
from components.recipe.recipe import dump_recipe
from components.storage.claims import claim, claimed_by, failure_to_plan, planned_by
from components.storage.interface import Storage
from components.storage.small_files import read_small_json
from pipelines.kubeflow.client import KfpRun
from pipelines.kubeflow.parameters import parameters
from pipelines.kubernetes.cleanup import cleanup
from pipelines.kubernetes.cluster import RECAPTIONS, Conflict
from pipelines.operator.recaption.attempt import is_under_way, recipe_of
from pipelines.operator.recaption.decide import BAD_NEWS, Act, decide
from pipelines.operator.recaption.observation import STOPPED, Observation, Problem
from pipelines.operator.recaption.status_view import linked, result_fields, run_fields
from pipelines.operator.runtime.conditions import Object, events, with_condition
from pipelines.operator.runtime.dependencies import Dependencies
from pipelines.operator.runtime.patches import post_event, set_finalizer, where, write_status

log = logging.getLogger(__name__)

STEPS = 8  # acts of one reconciliation: the longest way, from an edit to the next KFP run, has four


def reconcile(thing: Object, deps: Dependencies) -> float:
    """Bring a Recaption nearer to what its spec asks for.

    Returns:
        seconds until the next look; inf: none until the object changes.

    Raises:
        Conflict: the object has changed meanwhile.
        TemporaryError, PermanentError: the API server is away or refuses.
    """
    notes: Object = {}  # fields that an act changed, until they are written
    problem: Problem | None = None
    for _ in range(STEPS):
        noted = {**thing, "status": {**thing.get("status", {}), **notes}}
        seen = observe(noted, deps, problem)
        decision = decide(noted, seen)
        told = [linked(event, decision.status) for event in events(thing.get("status", {}), decision.status, BAD_NEWS)]
        written = write_status(deps.cluster, RECAPTIONS, thing, decision.status)
        if written is None:
            return inf
        for event in (*told, *([decision.event] if decision.event else ())):
            post_event(deps.cluster, written, event, seen.now)
        thing, notes = written, {}
        if decision.act is None:
            if decision.wait > 0:
                return decision.wait
            continue
        log.info("%s: %s", where(thing), decision.act.value)
        try:
            found, notes = perform(decision.act, thing, seen, deps)
        except Conflict:
            raise
        except Exception as error:
            problem = _problem(error)
            continue
        if found is None:
            return inf
        if decision.wait < inf and not notes:
            return decision.wait
        thing = found
    return 1.0


def observe(thing: Object, deps: Dependencies, problem: Problem | None = None) -> Observation:
    """Ask KFP and the storage for what `decide` has to know, and no more than that."""
    ui = deps.settings.ui
    seen = Observation(deps.now(), deps.settings.tenants, link=f"{ui}/#/runs/details/" if ui else "", problem=problem)
    if problem or not is_under_way(thing):
        return seen
    attempt = thing["status"]["kfp"]
    try:
        seen = replace(seen, runs=_kfp_runs(thing, attempt, deps))  # known also where the storage is away
        storage = deps.storage(thing["spec"]["storage"])
        known = thing["status"].get("run", "").rpartition("/")[2]
        ids = [i for i in dict.fromkeys([*(run.id for run in seen.runs), attempt.get("runId", "")]) if i]
        name = known or next(filter(None, (planned_by(storage, run_id) for run_id in ids)), "")
        seen = replace(seen, answered=bool(ids))  # else there was nothing to ask the storage for
        if seen.chosen and seen.chosen.state in STOPPED:
            seen = replace(seen, failure=failure_to_plan(storage, seen.chosen.id))
        return _with_run(seen, storage, name) if name else seen
    except Exception as error:  # what a tenant's storage answers can make a library raise anything
        return replace(seen, problem=_problem(error))


def _problem(error: Exception) -> Problem:
    """Return what the condition Reachable says of a failure; a bug is logged with its traceback."""
    if isinstance(error, RecaptionError):
        return Problem("Refused" if isinstance(error, PermanentError) else "NoAnswer", str(error))
    log.error("a bug, which the object's condition Reachable shows", exc_info=error)
    return Problem("Bug", failure_of(error)["message"])


def _kfp_runs(thing: Object, attempt: Mapping[str, Any], deps: Dependencies) -> tuple[KfpRun, ...]:
    """Look up an attempt's KFP runs: by id while it runs, which is cheap; else by name, as there may be several."""
    namespace = thing["metadata"]["namespace"]
    if known := attempt.get("runId"):
        run = deps.kfp.get(namespace, known)
        if run and run.state not in STOPPED:
            return (run,)
    return tuple(deps.kfp.find(namespace, attempt["name"]))


def _with_run(seen: Observation, storage: Storage, name: str) -> Observation:
    """Add what the storage has of the planned run."""
    folder, uri = f"runs/{name}", f"{storage.uri}/runs/{name}"
    seen = replace(
        seen, run=uri, progress=_read(storage, f"{folder}/status.json", lambda found: run_fields(uri, found))
    )
    if len(seen.runs) != 1 or seen.runs[0].state in STOPPED:
        seen = replace(seen, holder=claimed_by(storage, f"{folder}/claim.json"))
    if not seen.finished:
        return seen
    return replace(seen, results=_read(storage, f"{folder}/results.json", result_fields))


def _read(storage: Storage, path: str, use: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
    """Read a JSON file of a run; return nothing where there is no such file.

    Args:
        use: what will be done with its content, tried here so that a damaged file is refused here.

    Raises:
        PermanentError: the file is damaged, or too large.
    """
    try:
        found: dict[str, Any] = read_small_json(storage, path)
        if found is None:
            return {}
        use(found)
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError) as error:
        raise PermanentError(
            f"{storage.uri}/{path}: not as recaption writes it ({error}); what else writes there?"
        ) from error
    return found


def perform(act: Act, thing: Object, seen: Observation, deps: Dependencies) -> tuple[Object | None, Object]:
    """Carry out an act.

    Returns:
        the object afterwards, None when it is gone; and the fields of its status that the act changed.
    """
    namespace = thing["metadata"]["namespace"]
    if act in (Act.ADD_FINALIZER, Act.REMOVE_FINALIZER):
        return set_finalizer(deps.cluster, RECAPTIONS, thing, act is Act.ADD_FINALIZER), {}
    if act is Act.SUBMIT:
        attempt = thing["status"]["kfp"]
        run_id = deps.kfp.submit(namespace, attempt["name"], submitted(thing, deps))
        return thing, {"kfp": {**attempt, "runId": run_id}}
    if act is Act.TERMINATE:
        for run in seen.runs:
            if run.state not in (*STOPPED, "CANCELING"):
                deps.kfp.terminate(namespace, run.id)
    elif act is Act.RESUME:
        return thing, _resume(thing, seen, deps)
    elif act is Act.CLEAN_UP:
        _clean_up(thing, seen, deps)
        return thing, {"cleaned": True}
    return thing, {}


def submitted(thing: Object, deps: Dependencies) -> dict[str, str]:
    """Return the values of the pipeline's parameters."""
    settings = deps.settings
    tenancy = settings.tenants.of(thing["metadata"]["namespace"])
    given = {
        "recipe": dump_recipe(recipe_of(thing, settings.tenants)),
        "job_service_account": tenancy.service_account,
        "job_secret": tenancy.secret,
    }
    return {p.name: p.default for p in parameters(settings.images, settings.tag)} | given


def _resume(thing: Object, seen: Observation, deps: Dependencies) -> Object:
    """Claim the run again, then let KFP resume its KFP run; where KFP can't, have another attempt go on.

    Returns:
        the changed fields of the status.

    Raises:
        TemporaryError: another KFP run has claimed the run meanwhile.
    """
    kfp_run = seen.chosen
    assert kfp_run is not None  # there is nothing to resume otherwise
    if seen.run:
        storage, path = _claim(thing, seen, deps)
        holder = claim(storage, path, kfp_run.id)
        if holder != kfp_run.id:
            raise TemporaryError(f"run {seen.run} was claimed by {holder} just now")
    try:
        deps.kfp.retry(thing["metadata"]["namespace"], kfp_run.id)
    except PermanentError as error:
        log.warning("%s: KFP can't resume run %s (%s); a new KFP run goes on", where(thing), kfp_run.id, error)
        return {"kfp": {**thing["status"]["kfp"], "refused": True}}
    generation = thing["metadata"]["generation"]
    status = with_condition(  # at once: should the run fail before the next look, that is no suspension
        thing["status"], "Suspended", False, "Resumed", "the KFP run goes on", generation, seen.now
    )
    return {"conditions": status["conditions"]}


def _clean_up(thing: Object, seen: Observation, deps: Dependencies) -> None:
    """Delete the Jobs of the attempt's run and release its claim, unless another KFP run executes it now."""
    if not seen.run:
        return
    storage, path = _claim(thing, seen, deps)
    holder = claimed_by(storage, path)
    ours = {run.id for run in seen.runs} | {thing["status"]["kfp"].get("runId")}
    if holder is not None and holder not in ours:
        return
    cluster = deps.cluster.within(deps.kfp.namespace_of(thing["metadata"]["namespace"]))
    for deleted in cleanup(cluster, seen.run):
        log.info("%s: deleted %s", where(thing), deleted)
    if holder is not None and not seen.finished:
        storage.delete(path)
        log.info("%s: claim released; another KFP run may take over %s", where(thing), seen.run)


def _claim(thing: Object, seen: Observation, deps: Dependencies) -> tuple[Storage, str]:
    """Return the storage and the path in it of the run's claim."""
    return deps.storage(thing["spec"]["storage"]), f"runs/{seen.run.rpartition('/')[2]}/claim.json"
