"""What to do about a RecaptionSchedule: a pure function of the object and of what was seen, asked after every act.

A dump is started at most once, wherever the operator is killed: `status.pending` names it, then its claim is made in
the storage, then its Recaption, and with `lastDump` the name goes. A claim of ours without `pending` is a dump that is
done; it outlives the Recaption, and the schedule. What is pending is decided: no deadline ends it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import Enum
from math import inf

from components.base.errors import PermanentError
from pipelines.kubeflow.parameters import source_of
from pipelines.operator.recaption.decide import RETRY
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
from pipelines.operator.schedule.template import claimant, name_of, recipe_for, timetable_of

FAILED = ("Failed", "Refused")
OUTCOMES = ("Started", "UpToDate", "NotReady", "MissedDeadline")  # what came of a tick: it stands until the next
TROUBLE = ("StorageRefused", "StorageUnreachable", "NameTaken", "Refused", "MissedDeadline")
SOON = 60.0  # seconds until what is away is asked again; then as many as it has been away
OFTEN = 600.0  # seconds between two looks at most: a clock may be set, and a finished Recaption be missed
SKEW = timedelta(minutes=1)  # by which the API server's clock may be ahead of ours


class Act(Enum):
    """One thing to do before the next look."""

    LIST = "ask which dumps there are, and which are claimed"
    PROBE = "look for shards or tables of the dumps that are wanted"
    CLAIM = "claim the pending dump"
    CREATE = "make the pending dump's Recaption"
    LOOK = "begin anew"


@dataclass(frozen=True)
class Trouble:
    """What could not be asked or done."""

    kind: str
    """The condition that tells."""
    reason: str
    message: str


@dataclass(frozen=True)
class Seen:
    """What was found out; None where nothing was asked."""

    now: datetime
    recaptions: Sequence[Object] = ()
    """This schedule's, finished or not."""
    newest: str = ""
    """Of all dumps there are."""
    wanted: tuple[str, ...] | None = None
    """The dumps to do that nobody has claimed, newest first."""
    ready: str | None = None
    """The first of them whose pool has begun; empty: none has."""
    holder: str | None = None
    """Who has the pending dump's claim."""
    created: bool = False
    """Whether the pending dump's Recaption is there."""
    trouble: Trouble | None = None


@dataclass(frozen=True)
class Decision:
    """The status as it now is, then what to do, or how long to wait."""

    status: Object
    act: Act | None = None
    wait: float = inf
    """Seconds until the next look; inf: when the object changes."""
    events: tuple[Event, ...] = ()
    deleted: tuple[Object, ...] = ()
    """Recaptions that must go before the act: those replaced, or beyond the history's limits."""


def decide(thing: Object, seen: Seen) -> Decision:
    """One step towards what the object asks for."""
    return _Look(thing, seen).decide()


def is_finished(recaption: Object) -> bool:
    """Whether nothing more comes of it: a failed one may have been told to start again."""
    status = recaption.get("status", {})
    told = recaption["metadata"].get("annotations", {}).get(RETRY, "")
    again = status.get("phase") == "Failed" and told != status.get("retried", "")
    return status.get("phase") in ("Succeeded", *FAILED) and not again


class _Look:
    """One look at one schedule, and the status that it leads to."""

    def __init__(self, thing: Object, seen: Seen) -> None:
        self.thing, self.seen = thing, seen
        self.status: Object = dict(thing.get("status", {}))
        self.told: list[Event] = []
        self.pending: str = self.status.get("pending", "")
        self.unfinished = {r["metadata"]["name"]: r for r in seen.recaptions if not is_finished(r)}

    def decide(self) -> Decision:
        try:
            self.asked = timetable_of(self.thing)
        except PermanentError as error:
            self.status.pop("nextScheduleTime", None)
            self.say("Accepted", False, "Invalid", str(error))
            return self.decision()
        self.say("Accepted", True, "Valid", "the schedule and the recipe of its template are valid")
        self.tick = self.due()
        if self.pending and (self.seen.created or self.own in self.names):
            return self.started()
        if self.asked.spec.suspend:
            self.tick = None
            self.say("Scheduled", False, "Suspended", "spec.suspend is true: nothing is started")
            return self.rest()
        if self.seen.trouble:
            return self.troubled(self.seen.trouble)
        self.give_up_late()
        blocker = self.blocker if self.tick or self.pending else ""
        if self.pending and not blocker:
            return self.advance()
        if self.seen.wanted is None and (self.is_news() or (self.tick and not blocker)):
            return self.decision(Act.LIST)
        return self.choose(blocker)

    def choose(self, blocker: str) -> Decision:
        """Which dump this tick is for."""
        wanted = self.seen.wanted
        if wanted is not None:
            self.say("DumpsListed", True, "Listed", f"the newest dump is {self.seen.newest}")
            self.status["behind"] = len(wanted)
        if self.tick and wanted == () and not self.pending:
            self.done(True, "UpToDate", f"every dump that is wanted is done; the newest is {self.seen.newest}")
        elif blocker:
            self.say("Scheduled", False, "StillRunning", f"Recaption {blocker} is not finished: one runs at a time")
        elif self.tick and wanted:
            if self.seen.ready is None:
                return self.decision(Act.PROBE)
            if self.seen.ready:
                self.status["pending"] = self.seen.ready
                return self.decision(Act.CLAIM)
            missing = wanted[0] if len(wanted) == 1 else f"{wanted[0]} and {len(wanted) - 1} older ones"
            place = source_of(recipe_for(self.thing, wanted[0]))
            self.done(False, "NotReady", f"dump {missing}: nothing in {place} yet; the next tick looks again")
        elif condition(self.status, "Scheduled").get("reason") not in OUTCOMES:
            self.say("Scheduled", True, "Waiting", "the next tick starts what is wanted then")
        return self.rest()

    def advance(self) -> Decision:
        """The pending dump's next step."""
        dump, holder = self.pending, self.seen.holder
        if holder is None:
            return self.decision(Act.CLAIM)
        if holder != claimant(self.thing):
            self.told.append(Event("DumpTaken", f"dump {dump} is claimed by {holder}: it is not done here"))
            self.settle()
            return self.decision(Act.LOOK)
        others = [r for r in self.unfinished.values() if "deletionTimestamp" not in r["metadata"]]
        replaced = tuple(others) if self.asked.spec.concurrency_policy == "Replace" else ()
        for recaption in replaced:
            self.told.append(Event("Replaced", f"Recaption {recaption['metadata']['name']} makes way for dump {dump}"))
        return self.decision(Act.CREATE, deleted=replaced)

    def started(self) -> Decision:
        message = f"Recaption {self.own} does dump {self.pending}"
        self.told.append(Event("Started", message))
        self.status["lastDump"] = self.pending
        self.settle()
        self.done(True, "Started", message)
        return self.rest()

    def troubled(self, trouble: Trouble) -> Decision:
        """What is away is asked again after as long as it has been away."""
        known = condition(self.status, trouble.kind)
        same = known.get("status") == "False" and known["reason"] == trouble.reason
        # An outage in other words is not worth a write.
        message = known["message"] if same and trouble.reason.endswith("Unreachable") else trouble.message
        self.say(trouble.kind, False, trouble.reason, message)
        self.give_up_late()
        since = parse_time(condition(self.status, trouble.kind)["lastTransitionTime"])
        away = (self.seen.now - since).total_seconds()
        return self.rest(min(max(away, SOON), OFTEN))

    def due(self) -> datetime | None:
        """The newest tick that nothing came of yet, for however many that were missed."""
        now, last = self.seen.now, self.status.get("lastScheduleTime")
        start = parse_time(last or self.thing["metadata"]["creationTimestamp"])
        if start > now + SKEW:  # a clock was wrong: what it said of the future is taken for now
            self.status["lastScheduleTime"] = timestamp(now)
        newest = self.asked.ticks.newest(now)
        return newest if newest and newest > start else None

    def give_up_late(self) -> None:
        deadline = self.asked.spec.starting_deadline_seconds
        if not self.tick or self.pending or deadline is None:
            return
        if self.seen.now <= self.tick + timedelta(seconds=deadline):
            return
        message = f"nothing came of {timestamp(self.tick)} within {deadline} s (startingDeadlineSeconds)"
        self.told.append(Event("MissedDeadline", message, True))
        self.done(False, "MissedDeadline", message)

    @property
    def own(self) -> str:
        """The Recaption of the pending dump."""
        return name_of(self.thing, self.pending)

    @property
    def names(self) -> list[str]:
        return [recaption["metadata"]["name"] for recaption in self.seen.recaptions]

    @property
    def blocker(self) -> str:
        """The Recaption that must be finished first."""
        return next(iter(self.unfinished), "") if self.asked.spec.concurrency_policy == "Forbid" else ""

    def is_news(self) -> bool:
        """Whether the dumps are to be listed, be it only to say how many are behind."""
        listed, following = condition(self.status, "DumpsListed"), self.status.get("nextScheduleTime")
        return (
            not is_true(self.status, "DumpsListed")
            or listed["observedGeneration"] != self.thing["metadata"]["generation"]
            or "behind" not in self.status
            or (following is not None and parse_time(following) <= self.seen.now)
        )

    def settle(self) -> None:
        """The pending dump is no longer to do."""
        self.status.pop("pending")
        if "behind" in self.status:
            self.status["behind"] = max(0, self.status["behind"] - 1)

    def done(self, true: bool, reason: str, message: str) -> None:
        """Something came of the tick, or nothing will."""
        self.say("Scheduled", true, reason, message)
        if self.tick:
            self.status["lastScheduleTime"] = timestamp(self.tick)
        self.tick = None

    def rest(self, wait: float = inf) -> Decision:
        """Until the next tick, or until a tick of which nothing came yet is given up."""
        now, following = self.seen.now, self.asked.ticks.following(self.seen.now)
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
        """Finished Recaptions beyond what is kept, the oldest first."""
        finished = [r for r in self.seen.recaptions if is_finished(r) and "deletionTimestamp" not in r["metadata"]]
        finished.sort(key=lambda r: r["status"].get("completionTime") or r["metadata"]["creationTimestamp"])
        failed = [r for r in finished if r["status"]["phase"] in FAILED]
        succeeded = [r for r in finished if r["status"]["phase"] not in FAILED]
        spec = self.asked.spec
        limits = ((succeeded, spec.successful_history_limit), (failed, spec.failed_history_limit))
        return tuple(r for group, limit in limits for r in group[: max(0, len(group) - limit)])

    def say(self, kind: str, true: bool, reason: str, message: str) -> None:
        generation = self.thing["metadata"]["generation"]
        self.status = with_condition(self.status, kind, true, reason, message, generation, self.seen.now)
        self.status["observedGeneration"] = generation

    def decision(self, act: Act | None = None, wait: float = inf, deleted: tuple[Object, ...] = ()) -> Decision:
        bad = [(kind, "False") for kind in ("Accepted", "DumpsListed")]
        if condition(self.status, "Scheduled").get("reason") in TROUBLE:
            bad.append(("Scheduled", "False"))
        told = (*events(self.thing.get("status", {}), self.status, bad), *self.told)
        return Decision(self.status, act, wait, tuple(dict.fromkeys(told)), deleted)
