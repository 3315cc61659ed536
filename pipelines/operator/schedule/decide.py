"""The decision about a RecaptionSchedule: a pure function of the object and an observation, called after every act.

A dump is started at most once, wherever the operator is killed: `status.pending` names the dump, then the dump is
claimed in the storage, then its Recaption is created, then `lastDump` replaces `pending`. A claim of this schedule
without `pending` is a dump that was started; the claim outlives the Recaption and the schedule. A pending dump is
always started: no deadline ends it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import Enum
from math import inf

from components.base.errors import PermanentError
from pipelines.kubeflow.parameters import source_of
from pipelines.operator.recaption.attempt import RETRY
from pipelines.operator.runtime.allowance import NotAllowed
from pipelines.operator.runtime.conditions import (
    Event,
    Object,
    condition,
    events,
    is_true,
    parse_time,
    timestamp,
    with_condition,
)
from pipelines.operator.runtime.tenants import Tenants
from pipelines.operator.schedule.template import claimant, name_of, recipe_for, timetable_of

FAILED = ("Failed", "Refused")
OUTCOMES = ("Started", "UpToDate", "NotReady", "MissedDeadline")  # of a scheduled time: shown until the next one
BAD_NEWS = ("StorageRefused", "StorageUnreachable", "NameTaken", "Refused", "MissedDeadline")
SOON = 60.0  # seconds until a service that did not answer is asked again; later, as many as it has been away
OFTEN = 600.0  # seconds between two looks at most: the clock may be set, and the end of a Recaption be missed
SKEW = timedelta(minutes=1)  # that the API server's clock may be ahead of ours


class ScheduleAct(Enum):
    """One thing to do before the next look; the value is what the log says."""

    LIST = "list the dumps, and those that are claimed"
    PROBE = "look for shards or tables of the wanted dumps"
    CLAIM = "claim the pending dump"
    CREATE = "create the pending dump's Recaption"
    LOOK = "look again"


@dataclass(frozen=True)
class ScheduleProblem:
    """Why a question or an act failed."""

    kind: str
    """The condition that shows it."""
    reason: str
    message: str


@dataclass(frozen=True)
class ScheduleObservation:
    """The schedule's Recaptions, and the answers about dumps; None where nothing was asked."""

    now: datetime
    tenants: Tenants = field(default_factory=Tenants)
    """What a recipe of each namespace may ask for."""
    recaptions: Sequence[Object] = ()
    """This schedule's Recaptions, finished or not."""
    newest: str = ""
    """The newest of all dumps."""
    wanted: tuple[str, ...] | None = None
    """The wanted dumps that nobody has claimed, newest first."""
    ready: str | None = None
    """The first wanted dump whose pool has begun; empty: none has."""
    holder: str | None = None
    """Who has claimed the pending dump."""
    created: bool = False
    """Whether the pending dump's Recaption is there."""
    problem: ScheduleProblem | None = None


@dataclass(frozen=True)
class ScheduleDecision:
    """The new status, then an act, or how long to wait."""

    status: Object
    act: ScheduleAct | None = None
    wait: float = inf
    """Seconds until the next look; inf: when the object changes."""
    events: tuple[Event, ...] = ()
    deleted: tuple[Object, ...] = ()
    """Recaptions that must go before the act: those replaced, or beyond the history's limits."""


def decide(thing: Object, seen: ScheduleObservation) -> ScheduleDecision:
    """Decide the next step towards what the object asks for."""
    return _Look(thing, seen).decide()


def is_finished(recaption: Object) -> bool:
    """Return whether a Recaption has ended for good: a failed one may have been told to start again."""
    status = recaption.get("status", {})
    told = recaption["metadata"].get("annotations", {}).get(RETRY, "")
    again = status.get("phase") == "Failed" and told != status.get("retried", "")
    return status.get("phase") in ("Succeeded", *FAILED) and not again


class _Look:
    """One look at one schedule, and the status that it leads to."""

    def __init__(self, thing: Object, seen: ScheduleObservation) -> None:
        self.thing, self.seen = thing, seen
        self.status: Object = dict(thing.get("status", {}))
        self.told: list[Event] = []
        self.pending: str = self.status.get("pending", "")
        self.unfinished = {r["metadata"]["name"]: r for r in seen.recaptions if not is_finished(r)}

    def decide(self) -> ScheduleDecision:
        """Decide the next step."""
        try:
            self.asked = timetable_of(self.thing)
            allowance = self.seen.tenants.of(self.thing["metadata"]["namespace"]).allowance
            allowance.check(self.asked.spec.template.spec, "spec.template.spec")
        except PermanentError as error:
            self.status.pop("nextScheduleTime", None)
            reason = "NotAllowed" if isinstance(error, NotAllowed) else "Invalid"
            self.say("Accepted", False, reason, str(error))
            return self.decision()
        self.say("Accepted", True, "Valid", "the schedule and the recipe of its template are valid")
        self.tick = self.due()
        if self.pending and (self.seen.created or self.own in self.names):
            return self.started()
        if self.asked.spec.suspend:
            self.tick = None
            self.say("Scheduled", False, "Suspended", "spec.suspend is true: nothing is started")
            return self.rest()
        if self.seen.problem:
            return self.retry_later(self.seen.problem)
        self.give_up_late()
        blocker = self.blocker if self.tick or self.pending else ""
        if self.pending and not blocker:
            return self.advance()
        if self.seen.wanted is None and (self.needs_listing() or (self.tick and not blocker)):
            return self.decision(ScheduleAct.LIST)
        return self.choose(blocker)

    def choose(self, blocker: str) -> ScheduleDecision:
        """Choose the dump of this scheduled time, or say why there is none."""
        wanted = self.seen.wanted
        if wanted is not None:
            self.say("DumpsListed", True, "Listed", f"the newest dump is {self.seen.newest}")
            self.status["behind"] = len(wanted)
        if self.tick and wanted == () and not self.pending:
            self.done(True, "UpToDate", f"every wanted dump was started before; the newest is {self.seen.newest}")
        elif blocker:
            self.say("Scheduled", False, "StillRunning", f"Recaption {blocker} is not finished: one runs at a time")
        elif self.tick and wanted:
            if self.seen.ready is None:
                return self.decision(ScheduleAct.PROBE)
            if self.seen.ready:
                self.status["pending"] = self.seen.ready
                return self.decision(ScheduleAct.CLAIM)
            missing = wanted[0] if len(wanted) == 1 else f"{wanted[0]} and {len(wanted) - 1} older ones"
            place = source_of(recipe_for(self.thing, wanted[0]))
            self.done(
                False,
                "NotReady",
                f"dump {missing}: nothing in {place} yet; checked again next time",
            )
        elif condition(self.status, "Scheduled").get("reason") not in OUTCOMES:
            self.say("Scheduled", True, "Waiting", "waits for the next scheduled time")
        return self.rest()

    def advance(self) -> ScheduleDecision:
        """Decide the pending dump's next step: claim it, then create its Recaption."""
        dump, holder = self.pending, self.seen.holder
        if holder is None:
            return self.decision(ScheduleAct.CLAIM)
        if holder != claimant(self.thing):
            self.told.append(Event("DumpTaken", f"dump {dump} is claimed by {holder}: it is not run here"))
            self.settle()
            return self.decision(ScheduleAct.LOOK)
        others = [r for r in self.unfinished.values() if "deletionTimestamp" not in r["metadata"]]
        replaced = tuple(others) if self.asked.spec.concurrency_policy == "Replace" else ()
        for recaption in replaced:
            self.told.append(
                Event("Replaced", f"Recaption {recaption['metadata']['name']} is deleted to start dump {dump}")
            )
        return self.decision(ScheduleAct.CREATE, deleted=replaced)

    def started(self) -> ScheduleDecision:
        """Record that the pending dump's Recaption was created."""
        message = f"Recaption {self.own} runs dump {self.pending}"
        self.told.append(Event("Started", message))
        self.status["lastDump"] = self.pending
        self.settle()
        self.done(True, "Started", message)
        return self.rest()

    def retry_later(self, problem: ScheduleProblem) -> ScheduleDecision:
        """Show what failed; ask again after as long as it has been failing."""
        known = condition(self.status, problem.kind)
        same = known.get("status") == "False" and known["reason"] == problem.reason
        # Another wording of the same outage is not worth a write.
        message = known["message"] if same and problem.reason.endswith("Unreachable") else problem.message
        self.say(problem.kind, False, problem.reason, message)
        self.give_up_late()
        since = parse_time(condition(self.status, problem.kind)["lastTransitionTime"])
        away = (self.seen.now - since).total_seconds()
        return self.rest(min(max(away, SOON), OFTEN))

    def due(self) -> datetime | None:
        """Return the newest scheduled time that has no outcome yet, however many were missed."""
        now, last = self.seen.now, self.status.get("lastScheduleTime")
        start = parse_time(last or self.thing["metadata"]["creationTimestamp"])
        if start > now + SKEW:  # a clock was wrong: its time in the future is taken for now
            self.status["lastScheduleTime"] = timestamp(now)
        newest = self.asked.times.newest(now)
        return newest if newest and newest > start else None

    def give_up_late(self) -> None:
        """Give a scheduled time up that is past its deadline."""
        deadline = self.asked.spec.starting_deadline_seconds
        if not self.tick or self.pending or deadline is None:
            return
        if self.seen.now <= self.tick + timedelta(seconds=deadline):
            return
        message = f"nothing could be started for {timestamp(self.tick)} within {deadline} s (startingDeadlineSeconds)"
        self.told.append(Event("MissedDeadline", message, True))
        self.done(False, "MissedDeadline", message)

    @property
    def own(self) -> str:
        """Return the name of the pending dump's Recaption."""
        return name_of(self.thing, self.pending)

    @property
    def names(self) -> list[str]:
        """Return the names of this schedule's Recaptions."""
        return [recaption["metadata"]["name"] for recaption in self.seen.recaptions]

    @property
    def blocker(self) -> str:
        """Return the Recaption that must finish first; empty where none must."""
        return next(iter(self.unfinished), "") if self.asked.spec.concurrency_policy == "Forbid" else ""

    def needs_listing(self) -> bool:
        """Return whether the dumps are to be listed, be it only to show how many are behind."""
        listed, following = condition(self.status, "DumpsListed"), self.status.get("nextScheduleTime")
        return (
            not is_true(self.status, "DumpsListed")
            or listed["observedGeneration"] != self.thing["metadata"]["generation"]
            or "behind" not in self.status
            or (following is not None and parse_time(following) <= self.seen.now)
        )

    def settle(self) -> None:
        """Take the pending dump off the list of what is to do."""
        self.status.pop("pending")
        if "behind" in self.status:
            self.status["behind"] = max(0, self.status["behind"] - 1)

    def done(self, true: bool, reason: str, message: str) -> None:
        """Record the outcome of the scheduled time."""
        self.say("Scheduled", true, reason, message)
        if self.tick:
            self.status["lastScheduleTime"] = timestamp(self.tick)
        self.tick = None

    def rest(self, wait: float = inf) -> ScheduleDecision:
        """Wait until the next scheduled time, or until the one that has no outcome yet is given up."""
        now, following = self.seen.now, self.asked.times.following(self.seen.now)
        self.status["active"] = sorted(self.unfinished)
        self.status.pop("nextScheduleTime", None)
        moments = []
        if following and not self.asked.spec.suspend:
            self.status["nextScheduleTime"] = timestamp(following)
            moments.append(following)
        deadline = self.asked.spec.starting_deadline_seconds
        if self.tick and deadline is not None:
            moments.append(self.tick + timedelta(seconds=deadline + 1))
        waits = [wait, *((moment - now).total_seconds() for moment in moments)]
        if moments or self.unfinished:
            waits.append(OFTEN)
        return self.decision(wait=min(waits), deleted=self.expired())

    def expired(self) -> tuple[Object, ...]:
        """List the finished Recaptions beyond the history's limits, the oldest first."""
        finished = [r for r in self.seen.recaptions if is_finished(r) and "deletionTimestamp" not in r["metadata"]]
        finished.sort(key=lambda r: r["status"].get("completionTime") or r["metadata"]["creationTimestamp"])
        failed = [r for r in finished if r["status"]["phase"] in FAILED]
        succeeded = [r for r in finished if r["status"]["phase"] not in FAILED]
        spec = self.asked.spec
        limits = ((succeeded, spec.successful_history_limit), (failed, spec.failed_history_limit))
        return tuple(r for group, limit in limits for r in group[: max(0, len(group) - limit)])

    def say(self, kind: str, true: bool, reason: str, message: str) -> None:
        """Set a condition."""
        generation = self.thing["metadata"]["generation"]
        self.status = with_condition(self.status, kind, true, reason, message, generation, self.seen.now)
        self.status["observedGeneration"] = generation

    def decision(
        self, act: ScheduleAct | None = None, wait: float = inf, deleted: tuple[Object, ...] = ()
    ) -> ScheduleDecision:
        """Return the decision, with an Event for each condition that changed."""
        bad = [(kind, "False") for kind in ("Accepted", "DumpsListed")]
        if condition(self.status, "Scheduled").get("reason") in BAD_NEWS:
            bad.append(("Scheduled", "False"))
        told = (*events(self.thing.get("status", {}), self.status, bad), *self.told)
        return ScheduleDecision(self.status, act, wait, tuple(dict.fromkeys(told)), deleted)
