"""What to do about a Recaption: a pure function of the object and of what was seen, asked again after every act.

A Recaption is executed by one KFP run per attempt. The attempt is written into the status before the KFP run is made,
so that whoever comes next finds that run by its name; a KFP run that was made twice nevertheless is settled by the
run's claim in the storage, and the one that holds it is followed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import Enum
from math import inf
from typing import Any

from components.base.errors import BAD_LUCK, PermanentError
from components.base.hashing import content_hash
from components.recipe.recipe import Recipe
from pipelines.kubeflow.client import KfpRun
from pipelines.operator.recaption.asked import asked
from pipelines.operator.recaption.endings import PAUSES, Ending, ending_of, restart_after
from pipelines.operator.recaption.status_view import best_of, mirrored
from pipelines.operator.runtime.conditions import (
    Event,
    Object,
    condition,
    is_true,
    parse_time,
    timestamp,
    with_condition,
)
from pipelines.operator.runtime.patches import FINALIZER

RETRY = "recaption.dev/retry"  # annotation: any new value starts a failed run again

FOLLOW = 20.0  # seconds between two looks at a KFP run
SOON = 5.0  # while something is about to change
LATER = 15.0  # after a question that was not answered
BOUND = 600.0  # seconds that a deletion may wait for KFP and storage

STOPPED = ("SUCCEEDED", "SKIPPED", "FAILED", "CANCELED")
STOPPED_SO = "stopped; what is done is kept"
OF_A_RUN = (
    *("stage", "progress", "rate", "stages", "run", "report", "datasets", "best", "bestResult"),
    *("startTime", "completionTime", "restartTime", "cleaned"),
)
BAD_NEWS = (("Accepted", "False"), ("Reachable", "False"), ("Failed", "True"))


class Act(Enum):
    """One thing to do before the next look."""

    ADOPT = "put our finalizer on the object"
    SUBMIT = "start the attempt's KFP run"
    TERMINATE = "end the attempt's KFP runs"
    RESUME = "let the KFP run go on that a suspension ended"
    PUT_AWAY = "delete what the ended KFP run left in the cluster, and give its claim up unless it is finished"
    LET_GO = "take our finalizer off the object"


@dataclass(frozen=True)
class Problem:
    """What could not be asked or done."""

    reason: str
    message: str


@dataclass(frozen=True)
class Seen:
    """What was found out; empty where there was nothing to ask about."""

    now: datetime
    runs: tuple[KfpRun, ...] = ()
    """All KFP runs of the attempt's name, oldest first: more than one only if two operators met."""
    run: str = ""
    """URI of the run that they planned."""
    holder: str | None = None
    """Who has claimed it: a KFP run's id; asked only where it matters."""
    progress: Mapping[str, Any] = field(default_factory=dict)
    """Its status.json."""
    results: Mapping[str, Any] = field(default_factory=dict)
    """Of a finished run: datasets, rows of the result table."""
    failure: Mapping[str, str] = field(default_factory=dict)
    """Why the plan step of the KFP run failed, where it did."""
    answered: bool = False
    """Whether both KFP and the storage were asked and have answered."""
    link: str = ""
    """What a link to a KFP run begins with; empty where no UI is known."""
    problem: Problem | None = None

    @property
    def chosen(self) -> KfpRun | None:
        """The KFP run that executes the attempt: who holds the claim, else who may still get it, else the oldest."""
        holder = [run for run in self.runs if run.id == self.holder]
        return next(iter((*holder, *self.live, *self.runs)), None)

    @property
    def live(self) -> tuple[KfpRun, ...]:
        return tuple(run for run in self.runs if run.state not in STOPPED)

    @property
    def finished(self) -> bool:
        """Whether the report, which comes last, is written."""
        stages: Mapping[str, Any] = self.progress.get("stages", {})
        return bool(stages.get("report", {}).get("state") == "done")


@dataclass(frozen=True)
class Decision:
    """The status as it now is, then what to do, or how long to wait."""

    status: Object
    act: Act | None = None
    wait: float = inf
    """Seconds until the next look; inf: at once after an act, without one when the object changes."""
    event: Event | None = None


def is_settled(thing: Object) -> bool:
    """Whether nothing is to be seen or done until the object changes."""
    meta, status = thing["metadata"], thing.get("status", {})
    return (
        "deletionTimestamp" not in meta
        and FINALIZER in meta.get("finalizers", ())
        and status.get("observedGeneration") == meta["generation"]
        and _retry(thing) == status.get("retried", "")
        and (
            status.get("phase") == "Refused"
            or (status.get("phase") in ("Succeeded", "Failed") and not is_under_way(thing))
        )
    )


def decide(thing: Object, seen: Seen) -> Decision:
    """One step towards what the object asks for."""
    meta = thing["metadata"]
    if "deletionTimestamp" in meta:
        return _end(thing, seen)
    if FINALIZER not in meta.get("finalizers", ()):
        return Decision(dict(thing.get("status", {})), Act.ADOPT)
    if is_settled(thing) and thing["status"]["phase"] != "Failed":  # that one's compute may be another by now
        return Decision(thing["status"])
    try:
        recipe: Recipe | None = asked(thing)
        status = _with(thing, seen, "Accepted", True, "Valid", "the recipe is valid")
    except PermanentError as error:
        recipe, status = None, _with(thing, seen, "Accepted", False, "Invalid", str(error))
    status["observedGeneration"] = meta["generation"]
    thing = {**thing, "status": status}
    if recipe is None and not is_under_way(thing):
        return Decision({**status, "phase": "Refused"})
    if seen.problem:
        return _unanswered(thing, seen, seen.problem)
    if seen.answered and condition(thing, "Reachable"):
        thing = {**thing, "status": _with(thing, seen, "Reachable", True, "Answered", "KFP and storage answer")}
    attempt = _attempt(thing, recipe) if recipe else status["kfp"]
    if attempt != status.get("kfp"):
        return _begin(thing, seen, attempt)
    if not is_under_way(thing):
        return Decision({**thing["status"], "retried": _retry(thing)})
    return _go_on(thing, seen, suspend=bool(thing["spec"].get("suspend")))


def _attempt(thing: Object, recipe: Recipe) -> Object:
    """Which attempt the object asks for: the one that is written down, or a new one."""
    spec, status = recipe.spec, thing["status"]
    content = spec.model_dump(mode="json", exclude={"suspend", "compute"}, exclude_defaults=True)
    compute = spec.compute.model_dump(mode="json", exclude_defaults=True)
    hashed = {"hash": content_hash(content), "compute": content_hash(compute)}
    have: Object = status.get("kfp", {})
    if have.get("hash") == hashed["hash"]:
        failed = (status.get("phase") == "Failed" and not is_under_way(thing)) or "restartTime" in status
        other = _retry(thing) != status.get("retried", "") or have["compute"] != hashed["compute"]
        if not (failed and other) and not have.get("refused"):  # that one KFP could not resume, or we ended it
            return have
    number = status.get("attempts", 0) + 1  # never counted back: a KFP run's name stands for one attempt
    return {**hashed, "name": _name(thing, hashed["hash"], number)}


def _name(thing: Object, hashed: str, number: int) -> str:
    meta = thing["metadata"]
    return f"{meta['namespace']}.{meta['name']}-{meta['uid'][:8]}-{hashed}-{number}"


def _begin(thing: Object, seen: Seen, attempt: Object) -> Decision:
    """Make way for another attempt, then write it down; only what is written down is submitted."""
    status = thing["status"]
    if status.get("kfp") and not status.get("cleaned"):
        return _stop(thing, seen, "Changed", "what the object asks for has changed; what is done is kept")
    kept = {key: value for key, value in status.items() if key not in OF_A_RUN}
    if not _is_restart(thing, attempt):
        kept.pop("restarts", None)
    thing = {**thing, "status": {**kept, "retried": _retry(thing)}}
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


def _is_restart(thing: Object, attempt: Object) -> bool:
    """Return whether the operator starts the same thing anew by itself: nobody changed or asked anything."""
    status = thing["status"]
    before, same = status.get("kfp", {}), ("hash", "compute")
    return all(before.get(k) == attempt[k] for k in same) and _retry(thing) == status.get("retried", "")


def _go_on(thing: Object, seen: Seen, suspend: bool) -> Decision:
    """The attempt is written down: start its KFP run, follow it, or take note of its end."""
    status, chosen = thing["status"], seen.chosen
    if status.get("completionTime"):  # its end stands, whatever has become of the KFP run since
        return _put_down(thing, seen, status)
    if chosen is None:
        if status["kfp"].get("runId"):
            return _failed(thing, seen, "KFPRunDeleted", f"KFP no longer has run {status['kfp']['runId']}")
        return Decision(_suspended(thing, seen, "not started")) if suspend else Decision(status, Act.SUBMIT)
    fields, waits = mirrored(seen.run, seen.progress)
    status = {**status, "kfp": _kfp(status, seen, chosen), **fields}
    status.setdefault("startTime", timestamp(parse_time(chosen.created) if chosen.created else seen.now))
    thing = {**thing, "status": status}
    if chosen.state not in STOPPED:
        status["retried"] = _retry(thing)  # of a run that goes on there is nothing to start again
        return _suspend(thing, seen) if suspend else _follow(thing, seen, chosen, waits)
    if seen.live:  # its twin must not take over what has come to its end
        return _put_down(thing, seen, thing["status"])
    if chosen.state in ("FAILED", "CANCELED"):  # a terminated run is FAILED in KFP 2.17: what was asked for decides
        if suspend:
            return _suspend(thing, seen)
        if is_true(thing, "Suspended"):
            return _resume(thing, seen)
    return _ended(thing, seen, chosen)


def _kfp(status: Object, seen: Seen, chosen: KfpRun) -> Object:
    kept = {key: value for key, value in status["kfp"].items() if key != "link"}
    link = {"link": f"{seen.link}{chosen.id}"} if seen.link else {}
    return {**kept, "runId": chosen.id, "state": chosen.state, **link}


def _follow(thing: Object, seen: Seen, chosen: KfpRun, waits: str) -> Decision:
    if is_true(thing, "Suspended") and chosen.state != "CANCELING":  # that one is resumed once it has ended
        thing = {**thing, "status": _with(thing, seen, "Suspended", False, "Resumed", "the KFP run goes on")}
    status = {**thing["status"], "phase": "Running", "cleaned": False}
    status.pop("restartTime", None)  # of a run that somebody has retried in KFP meanwhile
    reason = "Waiting" if waits else "Canceling" if chosen.state == "CANCELING" else "KFPRun"
    message = waits or f"KFP run {chosen.id} is {chosen.state.lower()}"
    wait = FOLLOW if seen.run and chosen.state != "CANCELING" else SOON
    return Decision(_with({**thing, "status": status}, seen, "Running", True, reason, message), wait=wait)


def _stop(thing: Object, seen: Seen, reason: str, message: str) -> Decision:
    """End the KFP run, then put away what it left; should the change be taken back meanwhile, another one goes on."""
    status = {**_with(thing, seen, "Running", False, reason, message), "phase": "Pending"}
    return _put_down(thing, seen, {**status, "kfp": {**status["kfp"], "refused": True}})


def _suspend(thing: Object, seen: Seen) -> Decision:
    return _put_down(thing, seen, _suspended(thing, seen, STOPPED_SO))


def _put_down(thing: Object, seen: Seen, status: Object) -> Decision:
    if seen.live:
        ending = all(run.state == "CANCELING" for run in seen.live)
        return Decision({**status, "cleaned": False}, None if ending else Act.TERMINATE, SOON)
    return Decision(status, None if status.get("cleaned") else Act.PUT_AWAY)


def _resume(thing: Object, seen: Seen) -> Decision:
    """KFP lets the same run go on, unless another has claimed what it executes."""
    if _is_anothers(seen):
        return _failed(thing, seen, "Claimed", _whose(seen))
    status = _with(thing, seen, "Running", False, "Resuming", "the KFP run that the suspension ended goes on")
    return Decision({**status, "phase": "Pending", "cleaned": False}, Act.RESUME, SOON)


def _suspended(thing: Object, seen: Seen, message: str) -> Object:
    text = f"spec.suspend is true: {message}"
    status = _with(thing, seen, "Suspended", True, "Suspended", text)
    status = _with({**thing, "status": status}, seen, "Running", False, "Suspended", text)
    status.pop("restartTime", None)
    return {**status, "phase": "Suspended", "rate": ""}


def _ended(thing: Object, seen: Seen, chosen: KfpRun) -> Decision:
    """The KFP run has come to its end by itself."""
    if seen.finished:
        return _complete(thing, seen)
    if chosen.state == "SUCCEEDED" and _is_anothers(seen):
        return _failed(thing, seen, "Claimed", _whose(seen))
    if chosen.was_terminated:
        return _failed(thing, seen, "Canceled", f"KFP run {chosen.id} was terminated in KFP")
    ending = ending_of(chosen, seen.progress, seen.failure)
    if ending.kind != BAD_LUCK:
        return _failed(thing, seen, ending.reason, ending.text)
    restart = restart_after(thing["status"], seen.now)
    if restart is None:
        text = f"{ending.text}; it was started anew {thing['status']['restarts']} times in a row"
        return _failed(thing, seen, ending.reason, text)
    return _start_anew(thing, seen, ending, *restart)


def _start_anew(thing: Object, seen: Seen, ending: Ending, number: int, pause: timedelta) -> Decision:
    """Another attempt goes on after bad luck, once what this attempt left is put away and a pause has passed."""
    status = dict(thing["status"])
    due = parse_time(status.setdefault("restartTime", timestamp(seen.now + pause)))
    if status.get("cleaned") and seen.now >= due:
        del status["restartTime"]
        return Decision({**status, "restarts": number, "kfp": {**status["kfp"], "refused": True}}, wait=0.0)
    message = f"{ending.text}; bad luck: restart {number} of {len(PAUSES)} at {timestamp(due)}"
    status = _with({**thing, "status": status}, seen, "Running", False, ending.reason, message)
    status |= {"phase": "Pending", "rate": ""}
    wait = (due - seen.now).total_seconds()
    return Decision(status, wait=wait) if status.get("cleaned") else Decision(status, Act.PUT_AWAY)


def _complete(thing: Object, seen: Seen) -> Decision:
    status = {**thing["status"], "phase": "Succeeded", "stage": "", "progress": "", "rate": ""}
    status |= {"datasets": list(seen.results.get("datasets", ())), "report": f"{seen.run}/report.html"}
    status |= best_of(seen.results.get("rows", ()))
    status.setdefault("completionTime", timestamp(seen.now))
    thing = {**thing, "status": status}
    message = f"{status['report']}" + (f"; best: {status['bestResult']}" if status.get("bestResult") else "")
    thing = {**thing, "status": _with(thing, seen, "Running", False, "Finished", "the run is finished")}
    status = _with(thing, seen, "Complete", True, "Finished", message)
    return Decision(status, None if status.get("cleaned") else Act.PUT_AWAY)


def _failed(thing: Object, seen: Seen, reason: str, message: str) -> Decision:
    status = {**thing["status"], "phase": "Failed", "rate": ""}
    status.setdefault("completionTime", timestamp(seen.now))
    text = f"{message}; to start it again: kubectl annotate --overwrite recaption {thing['metadata']['name']} "
    text += f"-n {thing['metadata']['namespace']} {RETRY}=$(date +%s)"
    thing = {**thing, "status": _with({**thing, "status": status}, seen, "Running", False, reason, message)}
    status = _with(thing, seen, "Failed", True, reason, text)
    return Decision(status, None if status.get("cleaned") else Act.PUT_AWAY)


def _end(thing: Object, seen: Seen) -> Decision:
    """The object is being deleted: its KFP run ends, what that left goes, then the finalizer; in time in any case."""
    meta, status = thing["metadata"], {**thing.get("status", {}), "phase": "Ending"}
    if FINALIZER not in meta.get("finalizers", ()):
        return Decision(dict(thing.get("status", {})))
    if not is_under_way(thing):
        return Decision(status, Act.LET_GO)
    until = parse_time(meta["deletionTimestamp"]) + timedelta(seconds=BOUND)
    if ((seen.problem or seen.live) and seen.now > until) or _is_hopeless(thing, seen):
        left = seen.problem.message if seen.problem else f"KFP run {seen.live[0].id} is {seen.live[0].state}"
        return Decision(
            status, Act.LET_GO, event=Event("GaveUp", f"deleted with its KFP run not put away: {left}", True)
        )
    message = f"it is deleted: first its KFP run ends, and what that left goes; until {timestamp(until)} at most"
    status = _with({**thing, "status": status}, seen, "Running", is_true(status, "Running"), "Ending", message)
    if seen.problem:
        return _unanswered({**thing, "status": status}, seen, seen.problem)
    decision = _put_down(thing, seen, status)
    return Decision(status, Act.LET_GO) if decision.act is None and not seen.live else decision


def _is_hopeless(thing: Object, seen: Seen) -> bool:
    """Whether the storage refuses, always did, and no KFP run is left to be ended: waiting mends nothing."""
    refused = seen.problem is not None and seen.problem.reason == "Refused"
    return refused and bool(seen.runs) and not seen.live and not thing["status"].get("run")


def _unanswered(thing: Object, seen: Seen, problem: Problem) -> Decision:
    """What KFP says is shown, and a KFP run that has to end is ended, also while the storage is away."""
    known = condition(thing, "Reachable")
    if known.get("status") == "False" and known["reason"] == problem.reason:
        problem = Problem(problem.reason, known["message"])  # the same in other words is not worth a write
    status = _with(thing, seen, "Reachable", False, problem.reason, problem.message)
    status.setdefault("phase", "Pending")
    if seen.chosen and is_under_way(thing):
        status["kfp"] = _kfp(status, seen, seen.chosen)
    deleted, suspend = "deletionTimestamp" in thing["metadata"], thing["spec"].get("suspend")
    if suspend and seen.live and not deleted:
        status = _suspended({**thing, "status": status}, seen, STOPPED_SO)
    ends = (suspend or deleted) and any(run.state != "CANCELING" for run in seen.live)
    return Decision(status, Act.TERMINATE if ends else None, LATER)


def is_under_way(thing: Object) -> bool:
    """Whether an attempt was written down and has not come to its end, be it its own or for an edit."""
    status = thing.get("status", {})
    kfp = status.get("kfp", {})
    return bool(kfp) and not (status.get("cleaned") and (status.get("completionTime") or kfp.get("refused")))


def _is_anothers(seen: Seen) -> bool:
    return seen.holder not in (None, *(run.id for run in seen.runs))


def _whose(seen: Seen) -> str:
    return (
        f"run {seen.run} is executed by KFP run {seen.holder}, whose name in KFP begins with its object's: "
        "another object asks for the same; delete one of them"
    )


def _retry(thing: Object) -> str:
    return str(thing["metadata"].get("annotations", {}).get(RETRY, ""))


def _with(thing: Object, seen: Seen, kind: str, true: bool, reason: str, message: str) -> Object:
    generation = thing["metadata"]["generation"]
    return with_condition(dict(thing.get("status", {})), kind, true, reason, message, generation, seen.now)
