"""Starts a stage's Jobs or adopts those that are there, and follows them to their end."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from components.base.errors import PermanentError, RecaptionError, TemporaryError, Terminated
from pipelines.kubernetes import diagnosis
from pipelines.kubernetes.cluster import EVENTS, JOBS, PODS, WORKFLOWS, Cluster, Object, QuotaRefused
from pipelines.kubernetes.diagnosis import Blockage, PodEnding
from pipelines.kubernetes.jobs import (
    CONTAINER,
    SPEC,
    TASKS,
    LaunchedStage,
    Owner,
    Target,
    owner_reference,
    parse_ranges,
    selector,
)

log = logging.getLogger(__name__)

LAST_LINES = 20  # of a failed pod's log
EXPLAINED = 3  # failed indexes that are looked at: one reason mostly fails them all
DEADLINE = "spec.compute.deadlineHours"
LAST_WORDS = 15.0  # seconds for deleting Jobs after SIGTERM, within a pod's usual grace of 30


@dataclass(frozen=True)
class Pace:
    """Seconds between looks, and how long nothing may happen."""

    look: float = 5.0
    """Least time between two listings of the Jobs, however busy the watch is."""
    beat: float = 60.0
    """Most time between two listings, however silent the watch is; also between two writes of the status, of which
    the first come sooner: after a tenth of the time that the stage has taken so far."""
    stuck: float = 900.0
    """Most time without any pod where somebody must change something: images are pulled within minutes, or never."""
    scarce: float = 4 * 3600.0
    """Most time without any pod where nodes or quota are used up: spot nodes can be gone for hours."""


@dataclass(frozen=True)
class JobStates:
    """The Jobs of a stage as listed at one moment."""

    jobs: Mapping[str, Object]
    """The Jobs by name."""
    version: str

    @property
    def open(self) -> list[Object]:
        return [job for job in self.jobs.values() if not diagnosis.is_finished(job)]

    def count(self, what: str) -> int:
        return sum(diagnosis.counted(job, what) for job in self.jobs.values())

    @property
    def state(self) -> str:
        """Describe the pods in one line."""
        running, active = self.count("ready"), self.count("active")
        queued = sum(diagnosis.is_waiting(job) for job in self.open)
        parts = [f"{running} pods run"]
        parts += [f"{active - running} pods wait"] if active > running else []
        parts += [f"{queued} Jobs are queued"] if queued else []
        parts += [f"{self.count('failed')} attempts failed"] if self.count("failed") else []
        return ", ".join(parts)


class FanOut:
    """The Jobs of one stage, one per pool of nodes.

    Attributes:
        tasks: by Job, which task each index stands for.
        trouble: why some Job runs no pod; empty when all is well.
    """

    kind = JOBS
    container = CONTAINER

    def __init__(self, cluster: Cluster, target: Target, launched: LaunchedStage, pace: Pace, deadline: float) -> None:
        self.cluster, self.target, self.launched, self.pace, self.deadline = cluster, target, launched, pace, deadline
        self.clock = cluster.clock
        self.tasks: dict[str, list[int]] = {}
        self._begun: set[str] = set()
        self._finished: dict[str, Object] = {}  # kept: Kubernetes clears them away while others still run
        self.selector = selector(launched.run, launched.key)
        self._may_see_workflow = True
        self._began, self._beaten = self.clock.monotonic(), -math.inf
        self.trouble = ""

    def run(
        self, bodies: Sequence[Object], done: Callable[[set[int]], None], beat: Callable[[JobStates], None]
    ) -> None:
        """Start the Jobs and follow them until all tasks are through.

        Args:
            done: called with all tasks that are completed, each time.
            beat: called before the first Job starts, then about every `pace.beat` seconds, and at the end.

        Raises:
            PermanentError: bad input; the log's last lines are those of a failed pod.
            TemporaryError: bad luck; what can't start has been deleted.
        """
        try:
            for body in bodies:
                self._start(body, beat)
            seen = self._follow(done, beat)
        except (Terminated, KeyboardInterrupt):
            self._let_go()
            raise
        beat(seen)  # with the counts at the end
        self._judge(seen)

    def _start(self, body: Object, beat: Callable[[JobStates], None]) -> None:
        """Create the Job or adopt it: never a second one beside it."""
        name, since = body["metadata"]["name"], self.clock.monotonic()
        self._begun.add(name)  # before it is there: a signal may come with the answer
        while True:
            self._beat(beat, JobStates({}, ""))
            try:
                if self.cluster.create(self.kind, body):
                    self.tasks[name] = parse_ranges(body["metadata"]["annotations"][TASKS])
                    log.info("%s: Job %s started, %d tasks", self.launched.key, name, len(self.tasks[name]))
                    return
                if self._adopt(body):
                    return
                why = f"Job {name} is still being deleted"
            except QuotaRefused as refused:
                why = str(refused)
            if self.clock.monotonic() - since > self.pace.scarce:
                self._delete()
                raise TemporaryError(
                    f"{self.launched.key}: Job {name} can't be created since {self.pace.scarce:.0f} s: {why}"
                )
            self._tell(why)
            self.clock.sleep(self.pace.look)

    def _adopt(self, body: Object) -> bool:
        """Return whether the Job of that name is ours to follow; a finished one that can be done anew is deleted."""
        meta = body["metadata"]
        job = self.cluster.get(self.kind, meta["name"])
        if job is None or job["metadata"].get("deletionTimestamp"):
            return False
        found = job["metadata"]
        owner = self.target.owner
        owned = owner is not None and any(o["uid"] == owner.uid for o in found.get("ownerReferences", []))
        if diagnosis.is_finished(job) and not (owned and self._had_bad_input(job)):
            self.cluster.delete(self.kind, meta["name"], found["uid"])
            return False
        annotations = found.get("annotations", {})
        if annotations.get(SPEC) != meta["annotations"][SPEC]:
            raise PermanentError(
                f"{self.launched.key}: Job {meta['name']} is there with another image or other settings; wait for "
                f"its end, or end it with `recaption cleanup {self.launched.run}`"
            )
        if owner and not owned:
            self.cluster.own(self.kind, meta["name"], [owner_reference(owner)])
        self.tasks[meta["name"]] = parse_ranges(annotations[TASKS])
        log.info("%s: Job %s is there already; following it", self.launched.key, meta["name"])
        return True

    def _had_bad_input(self, job: Object) -> bool:
        """Return whether a finished Job would fail again, for bad input. One that is Complete would not."""
        return bool(diagnosis.condition(job, "Failed")) and diagnosis.is_bad_input(self._endings(job))

    def _follow(self, done: Callable[[set[int]], None], beat: Callable[[JobStates], None]) -> JobStates:
        moved = looked = started = self.clock.monotonic()
        before: tuple[int, ...] = ()
        while True:
            began = self.clock.monotonic()
            seen = self._look()
            done({self.tasks[name][i] for name, job in seen.jobs.items() for i in diagnosis.completed(job)})
            if not seen.open:
                return seen
            counts = (seen.count("succeeded"), seen.count("failed"))
            if seen.count("ready") or counts != before or all(map(diagnosis.is_waiting, seen.open)):
                moved, before = began, counts
            if began - looked >= self.pace.beat / 4 or began - moved > self.pace.stuck:
                looked = began
                self._check(seen, began - moved, began - started)
            if self._beat(beat, seen):
                self._stop_if_ended()
            self.cluster.wait(self.kind, self.selector, seen.version, self.pace.beat / 4)
            self.clock.sleep(max(0.0, self.pace.look - (self.clock.monotonic() - began)))

    def _beat(self, beat: Callable[[JobStates], None], seen: JobStates) -> bool:
        now = self.clock.monotonic()
        if now - self._beaten < min(self.pace.beat, max(self.pace.look, (now - self._began) / 10)):
            return False
        self._beaten = self.clock.monotonic()
        beat(seen)
        return True

    def _look(self) -> JobStates:
        found, version = self.cluster.find(self.kind, self.selector)
        listed = {job["metadata"]["name"]: job for job in found if job["metadata"]["name"] in self.tasks}
        jobs = self._finished | listed
        self._finished = {name: job for name, job in jobs.items() if diagnosis.is_finished(job)}
        gone = sorted(self.tasks.keys() - jobs.keys())
        if gone:
            self._stop_if_ended()
            raise TemporaryError(
                f"{self.launched.key}: Job {', '.join(gone)} was deleted by someone; run again to go on"
            )
        return JobStates(jobs, version)

    def _check(self, seen: JobStates, still: float, since: float) -> None:
        """Say why nothing runs, and give up after the time that this may take."""
        idle = [job for job in seen.open if not diagnosis.counted(job, "ready")]
        queued = [job["metadata"]["name"] for job in idle if diagnosis.is_waiting(job)]
        found = next(filter(None, map(self._blockage, (job for job in idle if not diagnosis.is_waiting(job)))), None)
        if found:
            self._tell(found.text)
        elif queued:
            self._tell(f"Job {queued[0]} is queued until Kueue lets it start")
        else:
            self.trouble = ""
        if still > (self.pace.stuck if found is None or found.bad_input else self.pace.scarce):
            text = found.text if found else "its Jobs start no pod, and no event says why; is the Job controller there?"
            self._give_up(found is not None and found.bad_input, f"nothing ran for {still:.0f} s: {text}")
        if len(queued) == len(seen.open) and since > self.deadline:
            text = f"Job {queued[0]} waits in its queue for {since:.0f} s, which is {DEADLINE}"
            self._give_up(True, f"{text}; look at its Kueue Workload")

    def _give_up(self, bad_input: bool, text: str) -> None:
        self._delete()
        raise (PermanentError if bad_input else TemporaryError)(f"{self.launched.key}: {text}; its Jobs are deleted")

    def _blockage(self, job: Object) -> Blockage | None:
        name = job["metadata"]["name"]
        pods, _ = self.cluster.find(PODS, f"batch.kubernetes.io/job-name={name}", "status.phase=Pending", 10)
        events: list[Object] = []
        if not pods:
            events, _ = self.cluster.find(EVENTS, "", f"involvedObject.kind=Job,involvedObject.name={name}", 50)
        return diagnosis.find_blockage(pods, events)

    def _judge(self, seen: JobStates) -> None:
        """Raise if a Job failed, after logging the last lines of the failed pods."""
        lost = [job for job in seen.jobs.values() if diagnosis.condition(job, "Failed")]
        if not lost:
            return
        endings = [(job, ending) for job in lost for ending in self._endings(job)]
        worst = next((pair for pair in endings if diagnosis.is_bad_input([pair[1]])), endings[0] if endings else None)
        job = worst[0] if worst else lost[0]
        why = diagnosis.condition(job, "Failed") or {}
        tasks = sum(len(diagnosis.failed(job)) for job in lost)
        text = f"{self.launched.key}: {tasks} tasks failed (Job {job['metadata']['name']}: {why.get('reason')}"
        text += f", {why['message']})" if why.get("message") else ")"
        kind: type[RecaptionError] = TemporaryError
        if any(diagnosis.ran_out_of_time(job) for job in lost):  # the user's own limit: another try would double it
            text += f"; its time is up, {DEADLINE}: raise it, then start the run again to go on"
            kind = PermanentError
        elif worst:
            ending = worst[1]
            lines = self.cluster.log(ending.pod, self.container, LAST_LINES) or ending.message
            for line in lines.splitlines():
                log.error("%s | %s", ending.pod, line)
            last = (lines.strip().splitlines() or [""])[-1].strip().removeprefix("error: ")
            task = self.tasks[job["metadata"]["name"]][ending.index]
            text += f"; task {task}: {ending.text}" + (f": {last}" if last else "")
            kind = PermanentError if diagnosis.is_bad_input([ending]) else TemporaryError
        raise kind(text)

    def _endings(self, job: Object) -> list[PodEnding]:
        """Describe how the last pod of some failed indexes ended."""
        endings = []
        for index in diagnosis.failed(job)[:EXPLAINED]:
            labels = f"batch.kubernetes.io/job-name={job['metadata']['name']}"
            labels += f",batch.kubernetes.io/job-completion-index={index}"
            pods, _ = self.cluster.find(PODS, labels, "status.phase=Failed", 10)
            pods.sort(key=lambda pod: str(pod["metadata"].get("creationTimestamp", "")))
            endings += [diagnosis.ended(pod, self.container) for pod in pods[-1:]]
        return endings

    def _stop_if_ended(self) -> None:
        if self._run_ended():
            raise Terminated

    def _run_ended(self) -> bool:
        """Return whether the KFP run that owns the Jobs is being ended; False where that can't be known."""
        owner: Owner | None = self.target.owner
        if owner is None or not self._may_see_workflow:
            return False
        try:
            return diagnosis.workflow_ended(self.cluster.get(WORKFLOWS, owner.name), owner.uid)
        except PermanentError as error:
            log.warning("%s: %s; until then only the exit step ends a terminated run's Jobs", self.launched.key, error)
            self._may_see_workflow = False
            return False

    def _let_go(self) -> None:
        """Leave the Jobs to the next launcher if this one is only evicted; delete them if their run is being ended."""
        try:
            with self.cluster.hurried(LAST_WORDS):
                if self._run_ended():
                    self._delete()
                    log.info("%s: the KFP run is being ended; its Jobs are deleted", self.launched.key)
                    return
        except RecaptionError as error:
            log.warning("%s: %s", self.launched.key, error)
        log.info(
            "%s: its Jobs go on; the same command follows them again, `recaption cleanup %s` ends them",
            self.launched.key,
            self.launched.run,
        )

    def _delete(self) -> None:
        for name in sorted(self._begun):
            self.cluster.delete(self.kind, name)

    def _tell(self, text: str) -> None:
        """Log a warning, once."""
        if text != self.trouble:
            log.warning("%s: %s", self.launched.key, text)
            self.trouble = text
