"""The decision about a Recaption: a pure function of the object and an observation, called again after every act.

One KFP run executes each attempt. The attempt is written into the status before its KFP run is created, so that an
operator that starts later finds the KFP run by its name. Should two KFP runs of one name exist all the same, the claim
in the storage settles which one executes the run, and the operator follows that one.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from enum import Enum
from math import inf

from components.base.errors import BAD_LUCK, PermanentError
from components.recipe.recipe import Recipe
from pipelines.kubeflow.client import KfpRun
from pipelines.operator.recaption.attempt import (
    RETRY,
    attempt_for,
    is_automatic_restart,
    is_under_way,
    recipe_of,
    retry_of,
)
from pipelines.operator.recaption.endings import PAUSES, Ending, ending_of, restart_after
from pipelines.operator.recaption.observation import STOPPED, Observation, Problem
from pipelines.operator.recaption.status_view import prices_of, result_fields, run_fields
from pipelines.operator.runtime.allowance import NotAllowed
from pipelines.operator.runtime.conditions import (
    Event,
    Object,
    condition,
    is_true,
    parse_time,
    timestamp,
    with_condition,
)
from pipelines.operator.runtime.last_resort import end_of, gave_up
from pipelines.operator.runtime.patches import FINALIZER

FOLLOW = 20.0  # seconds between two looks at a KFP run
SOON = 5.0  # seconds while something is about to change
LATER = 15.0  # seconds after a question that was not answered
MUCH_LATER = 60.0  # seconds after a bug, whose traceback is logged each time

RUN_STOPPED = "the run is stopped; finished work is kept"
OF_A_RUN = (  # fields of the status that a new attempt starts without
    *("stage", "progress", "rate", "stages", "costs", "run", "report", "datasets", "empty", "best", "bestResult"),
    *("startTime", "completionTime", "restartTime", "cleaned"),
)
BAD_NEWS = (("Accepted", "False"), ("Reachable", "False"), ("Failed", "True"))


class Act(Enum):
    """One thing to do before the next look; the value is what the log says."""

    ADD_FINALIZER = "add the finalizer"
    SUBMIT = "start the attempt's KFP run"
    TERMINATE = "terminate the attempt's KFP runs"
    RESUME = "resume the KFP run that the suspension stopped"
    CLEAN_UP = "delete the Jobs that the ended KFP run left; release its claim unless the run is finished"
    REMOVE_FINALIZER = "remove the finalizer"


@dataclass(frozen=True)
class Decision:
    """The new status, then an act, or how long to wait."""

    status: Object
    act: Act | None = None
    wait: float = inf
    """Seconds until the next look; inf: at once after an act, without one when the object changes."""
    event: Event | None = None


def is_settled(thing: Object) -> bool:
    """Return whether nothing is to be observed or done until the object changes."""
    meta, status = thing["metadata"], thing.get("status", {})
    return (
        "deletionTimestamp" not in meta
        and FINALIZER in meta.get("finalizers", ())
        and status.get("observedGeneration") == meta["generation"]
        and retry_of(thing) == status.get("retried", "")
        and (
            status.get("phase") == "Refused"
            or (status.get("phase") in ("Succeeded", "Failed") and not is_under_way(thing))
        )
    )


def decide(thing: Object, seen: Observation) -> Decision:
    """Decide the next step towards what the object asks for."""
    meta = thing["metadata"]
    if "deletionTimestamp" in meta:
        return _delete(thing, seen)
    if FINALIZER not in meta.get("finalizers", ()):
        return Decision(dict(thing.get("status", {})), Act.ADD_FINALIZER)
    if is_settled(thing) and thing["status"]["phase"] != "Failed":  # that one's compute may be another by now
        return Decision(thing["status"])
    try:
        recipe: Recipe | None = recipe_of(thing, seen.tenants)
        status = _with(thing, seen, "Accepted", True, "Valid", "the recipe is valid")
    except PermanentError as error:
        reason = "NotAllowed" if isinstance(error, NotAllowed) else "Invalid"
        recipe, status = None, _with(thing, seen, "Accepted", False, reason, str(error))
    status["observedGeneration"] = meta["generation"]
    thing = {**thing, "status": status}
    if recipe is None and not is_under_way(thing):
        return Decision({**status, "phase": "Refused"})
    if seen.problem:
        return _unreachable(thing, seen, seen.problem)
    if seen.answered and condition(thing, "Reachable"):
        thing = {**thing, "status": _with(thing, seen, "Reachable", True, "Answered", "KFP and storage answer")}
    attempt = attempt_for(thing, recipe) if recipe else status["kfp"]
    if attempt != status.get("kfp"):
        return _begin(thing, seen, attempt)
    if not is_under_way(thing):
        return Decision({**thing["status"], "retried": retry_of(thing)})
    decision = _proceed(thing, seen, suspend=bool(thing["spec"].get("suspend")))
    ended = {**thing, "status": decision.status}
    if recipe is None and decision.act is None and not is_under_way(ended):
        return decide(ended, seen)  # no attempt follows the one that has ended, so say at once what stays
    return decision


def _begin(thing: Object, seen: Observation, attempt: Object) -> Decision:
    """Stop the attempt before, then write the new one down; only what is written down is submitted."""
    status = thing["status"]
    if status.get("kfp") and not status.get("cleaned"):
        return _stop(thing, seen, "Changed", "the spec has changed; finished work is kept")
    kept = {key: value for key, value in status.items() if key not in OF_A_RUN}
    if not is_automatic_restart(thing, attempt):
        kept.pop("restarts", None)
    thing = {**thing, "status": {**kept, "retried": retry_of(thing)}}
    if thing["spec"].get("suspend"):
        thing["status"].pop("kfp", None)
        return Decision(_suspended(thing, seen, "not started"))
    kept = thing["status"]
    kept |= {"phase": "Pending", "kfp": attempt, "attempts": status.get("attempts", 0) + 1}
    message = f"attempt {kept['attempts']} waits for its KFP run"
    for kind in ("Complete", "Failed", "Suspended"):
        if is_true(thing, kind):
            thing = {**thing, "status": _with(thing, seen, kind, False, "Pending", message)}
    return Decision(_with(thing, seen, "Running", False, "Pending", message), wait=0.0)  # is there a KFP run already?


def _proceed(thing: Object, seen: Observation, suspend: bool) -> Decision:
    """Start the KFP run of the attempt that is written down, follow it, or record its end."""
    status, chosen = thing["status"], seen.chosen
    if status.get("completionTime"):  # the recorded end stands, whatever has become of the KFP run since
        return _terminate_and_clean(seen, status)
    if chosen is None:
        if status["kfp"].get("runId"):
            return _failed(thing, seen, "KFPRunDeleted", f"KFP no longer has run {status['kfp']['runId']}")
        return Decision(_suspended(thing, seen, "not started")) if suspend else Decision(status, Act.SUBMIT)
    fields, waits = run_fields(seen.run, seen.progress, prices_of(thing["spec"]))
    status = {**status, "kfp": _kfp(status, seen, chosen), **fields}
    status.setdefault("startTime", timestamp(parse_time(chosen.created) if chosen.created else seen.now))
    thing = {**thing, "status": status}
    if chosen.state not in STOPPED:
        status["retried"] = retry_of(thing)  # a run that goes on need not be started again
        return _suspend(thing, seen) if suspend else _follow(thing, seen, chosen, waits)
    if seen.live:  # the other KFP run of that name must not take over what has ended
        return _terminate_and_clean(seen, thing["status"])
    if chosen.state in ("FAILED", "CANCELED"):  # KFP 2.17 calls a terminated run FAILED: what was asked for decides
        if suspend:
            return _suspend(thing, seen)
        if is_true(thing, "Suspended"):
            return _resume(thing, seen)
    return _ended(thing, seen, chosen)


def _kfp(status: Object, seen: Observation, chosen: KfpRun) -> Object:
    """Return status.kfp with the chosen KFP run's id, state and link."""
    kept = {key: value for key, value in status["kfp"].items() if key != "link"}
    link = {"link": f"{seen.link}{chosen.id}"} if seen.link else {}
    return {**kept, "runId": chosen.id, "state": chosen.state, **link}


def _follow(thing: Object, seen: Observation, chosen: KfpRun, waits: str) -> Decision:
    """Show how far the KFP run is."""
    if is_true(thing, "Suspended") and chosen.state != "CANCELING":  # that one is resumed once it has ended
        thing = {**thing, "status": _with(thing, seen, "Suspended", False, "Resumed", "the KFP run goes on")}
    status = {**thing["status"], "phase": "Running", "cleaned": False}
    status.pop("restartTime", None)  # somebody may have retried the run in KFP meanwhile
    reason = "Waiting" if waits else "Canceling" if chosen.state == "CANCELING" else "KFPRun"
    message = waits or f"KFP run {chosen.id} is {chosen.state.lower()}"
    wait = FOLLOW if seen.run and chosen.state != "CANCELING" else SOON
    return Decision(_with({**thing, "status": status}, seen, "Running", True, reason, message), wait=wait)


def _stop(thing: Object, seen: Observation, reason: str, message: str) -> Decision:
    """End the KFP run and clean up after it. Should the change be taken back meanwhile, a new attempt goes on."""
    status = {**_with(thing, seen, "Running", False, reason, message), "phase": "Pending"}
    return _terminate_and_clean(seen, {**status, "kfp": {**status["kfp"], "refused": True}})


def _suspend(thing: Object, seen: Observation) -> Decision:
    return _terminate_and_clean(seen, _suspended(thing, seen, RUN_STOPPED))


def _terminate_and_clean(seen: Observation, status: Object) -> Decision:
    """Terminate the KFP runs that have not ended, then delete what they left in the cluster."""
    if seen.live:
        ending = all(run.state == "CANCELING" for run in seen.live)
        return Decision({**status, "cleaned": False}, None if ending else Act.TERMINATE, SOON)
    return Decision(status, None if status.get("cleaned") else Act.CLEAN_UP)


def _resume(thing: Object, seen: Observation) -> Decision:
    """Let the same KFP run go on, unless another one has claimed the run."""
    if seen.claimed_by_another:
        return _failed(thing, seen, "Claimed", _claimed_message(seen))
    status = _with(thing, seen, "Running", False, "Resuming", "resuming the KFP run that the suspension stopped")
    return Decision({**status, "phase": "Pending", "cleaned": False}, Act.RESUME, SOON)


def _suspended(thing: Object, seen: Observation, message: str) -> Object:
    """Return the status of a suspended object."""
    text = f"spec.suspend is true: {message}"
    status = _with(thing, seen, "Suspended", True, "Suspended", text)
    status = _with({**thing, "status": status}, seen, "Running", False, "Suspended", text)
    status.pop("restartTime", None)
    return {**status, "phase": "Suspended", "rate": ""}


def _ended(thing: Object, seen: Observation, chosen: KfpRun) -> Decision:
    """Record the end of a KFP run that nobody stopped, or restart it after bad luck."""
    if seen.finished:
        return _complete(thing, seen)
    if chosen.state == "SUCCEEDED" and seen.claimed_by_another:
        return _failed(thing, seen, "Claimed", _claimed_message(seen))
    if chosen.was_terminated:
        return _failed(thing, seen, "Canceled", f"KFP run {chosen.id} was terminated in KFP")
    ending = ending_of(chosen, seen.progress, seen.failure)
    if ending.kind != BAD_LUCK:
        return _failed(thing, seen, ending.reason, ending.text)
    restart = restart_after(thing["status"], seen.now)
    if restart is None:
        text = f"{ending.text}; it was restarted {thing['status']['restarts']} times in a row"
        return _failed(thing, seen, ending.reason, text)
    return _restart(thing, seen, ending, *restart)


def _restart(thing: Object, seen: Observation, ending: Ending, number: int, pause: timedelta) -> Decision:
    """Begin another attempt after bad luck, once the ended one is cleaned up and a pause has passed."""
    status = dict(thing["status"])
    due = parse_time(status.setdefault("restartTime", timestamp(seen.now + pause)))
    if status.get("cleaned") and seen.now >= due:
        del status["restartTime"]
        return Decision({**status, "restarts": number, "kfp": {**status["kfp"], "refused": True}}, wait=0.0)
    message = f"{ending.text}; bad luck: restart {number} of {len(PAUSES)} at {timestamp(due)}"
    status = _with({**thing, "status": status}, seen, "Running", False, ending.reason, message)
    status |= {"phase": "Pending", "rate": ""}
    wait = (due - seen.now).total_seconds()
    return Decision(status, wait=wait) if status.get("cleaned") else Decision(status, Act.CLEAN_UP)


def _complete(thing: Object, seen: Observation) -> Decision:
    status = {**thing["status"], "phase": "Succeeded", "stage": "", "progress": "", "rate": ""}
    status |= {"report": f"{seen.run}/report.html", **result_fields(seen.results)}
    status.setdefault("completionTime", timestamp(seen.now))
    thing = {**thing, "status": status}
    message = f"{status['report']}" + (f"; best: {status['bestResult']}" if status.get("bestResult") else "")
    thing = {**thing, "status": _with(thing, seen, "Running", False, "Finished", "the run is finished")}
    status = _with(thing, seen, "Complete", True, "Finished", message)
    return Decision(status, None if status.get("cleaned") else Act.CLEAN_UP)


def _failed(thing: Object, seen: Observation, reason: str, message: str) -> Decision:
    status = {**thing["status"], "phase": "Failed", "rate": ""}
    status.setdefault("completionTime", timestamp(seen.now))
    text = f"{message}; to start it again: kubectl annotate --overwrite recaption {thing['metadata']['name']} "
    text += f"-n {thing['metadata']['namespace']} {RETRY}=$(date +%s)"
    thing = {**thing, "status": _with({**thing, "status": status}, seen, "Running", False, reason, message)}
    status = _with(thing, seen, "Failed", True, reason, text)
    return Decision(status, None if status.get("cleaned") else Act.CLEAN_UP)


def _delete(thing: Object, seen: Observation) -> Decision:
    """End and clean up a deleted object's KFP run, but not beyond its bound, then remove the finalizer."""
    meta, status = thing["metadata"], {**thing.get("status", {}), "phase": "Ending"}
    if FINALIZER not in meta.get("finalizers", ()):
        return Decision(dict(thing.get("status", {})))
    if not is_under_way(thing):
        return Decision(status, Act.REMOVE_FINALIZER)
    until = end_of(thing)
    if ((seen.problem or seen.live) and seen.now > until) or _is_hopeless(thing, seen):
        left = seen.problem.message if seen.problem else f"KFP run {seen.live[0].id} is {seen.live[0].state}"
        return Decision(status, Act.REMOVE_FINALIZER, event=gave_up(left))
    message = f"being deleted: waits until its KFP run and its Jobs are gone, but not beyond {timestamp(until)}"
    status = _with({**thing, "status": status}, seen, "Running", is_true(status, "Running"), "Ending", message)
    if seen.problem:
        return _unreachable({**thing, "status": status}, seen, seen.problem)
    decision = _terminate_and_clean(seen, status)
    return Decision(status, Act.REMOVE_FINALIZER) if decision.act is None and not seen.live else decision


def _is_hopeless(thing: Object, seen: Observation) -> bool:
    """Return whether the storage refuses, always did, and no KFP run is left to be ended: waiting mends nothing."""
    refused = seen.problem is not None and seen.problem.reason == "Refused"
    return refused and bool(seen.runs) and not seen.live and not thing["status"].get("run")


def _unreachable(thing: Object, seen: Observation, problem: Problem) -> Decision:
    """Show what KFP answered, and terminate what has to end, also while the storage does not answer."""
    known = condition(thing, "Reachable")
    if known.get("status") == "False" and known["reason"] == problem.reason:
        problem = Problem(problem.reason, known["message"])  # another wording of the same is not worth a write
    status = _with(thing, seen, "Reachable", False, problem.reason, problem.message)
    status.setdefault("phase", "Pending")
    if seen.chosen and is_under_way(thing):
        status["kfp"] = _kfp(status, seen, seen.chosen)
    deleted, suspend = "deletionTimestamp" in thing["metadata"], thing["spec"].get("suspend")
    if suspend and seen.live and not deleted:
        status = _suspended({**thing, "status": status}, seen, RUN_STOPPED)
    ends = (suspend or deleted) and any(run.state != "CANCELING" for run in seen.live)
    return Decision(status, Act.TERMINATE if ends else None, MUCH_LATER if problem.reason == "Bug" else LATER)


def _claimed_message(seen: Observation) -> str:
    return (
        f"run {seen.run} is executed by KFP run {seen.holder} of another object that asks for the same "
        "(a KFP run's name begins with its object's namespace and name); delete one of them"
    )


def _with(thing: Object, seen: Observation, kind: str, true: bool, reason: str, message: str) -> Object:
    """Return the object's status with a condition set."""
    generation = thing["metadata"]["generation"]
    return with_condition(dict(thing.get("status", {})), kind, true, reason, message, generation, seen.now)
