"""A stand-in for the Job controller and the nodes: runs a Job's pods as Kubernetes would, as far as Jobs of ours go."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from pipelines.kubernetes.jobs import ranges
from tests.pipelines.kubernetes.api_server import Api, Object

DISRUPTED = "disrupted"  # instead of an exit code: the node was taken back

Outcome = int | str


@dataclass
class Pod:
    """One attempt at an index."""

    job: str
    index: int
    attempt: int
    command: list[str]

    @property
    def name(self) -> str:
        return f"{self.job}-{self.index}-{self.attempt}"


def run_here(pod: Pod) -> tuple[Outcome, str]:
    """The container's own command, in a process of this machine: exit code and log."""
    command = [sys.executable, "-m", "pipelines.cli", *pod.command[1:]]
    environment = {**os.environ, "JOB_COMPLETION_INDEX": str(pod.index)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    return done.returncode, done.stderr


@dataclass
class Controller:
    """Works through every Job that isn't suspended, and whose pool of nodes isn't held back."""

    api: Api
    run: Callable[[Pod], tuple[Outcome, str]] = run_here
    started: list[Pod] = field(default_factory=list)
    held: set[str] = field(default_factory=set)
    stop: threading.Event = field(default_factory=threading.Event)

    def _loop(self) -> None:
        seen: set[str] = set()
        threads = []
        while not self.stop.wait(0.02):
            for job in self.api.of("jobs"):
                uid = job["metadata"]["uid"]
                if job["metadata"]["labels"]["recaption.dev/pool"] in self.held:
                    continue
                if uid not in seen and not job["spec"].get("suspend") and "conditions" not in job.get("status", {}):
                    seen.add(uid)
                    threads.append(threading.Thread(target=self._job, args=(job,), daemon=True))
                    threads[-1].start()
        for thread in threads:
            thread.join(20)

    def _job(self, job: Object) -> None:
        spec, name, uid = job["spec"], job["metadata"]["name"], job["metadata"]["uid"]
        todo, lock = list(range(spec["completions"])), threading.Lock()
        ends: dict[str, list[int]] = {"completed": [], "failed": []}
        attempts, failures = Counter[int](), Counter[str]()

        def tell(**status: Any) -> None:
            with self.api.changed:
                if self.api.objects["jobs"].get(name, {}).get("metadata", {}).get("uid") == uid:
                    self.api.status(
                        name,
                        completedIndexes=ranges(sorted(ends["completed"])),
                        failedIndexes=ranges(sorted(ends["failed"])),
                        succeeded=len(ends["completed"]),
                        failed=failures["pods"],
                        **status,
                    )

        def slot() -> None:
            while todo and not self.stop.is_set() and name in self.api.objects["jobs"]:
                with lock:
                    if not todo or len(ends["failed"]) > spec["maxFailedIndexes"]:
                        return
                    index = todo.pop(0)
                verdict = self._attempt(job, index, attempts)
                with lock:
                    failures["pods"] += verdict != "completed"
                    if verdict == "again":
                        todo.insert(0, index)
                    else:
                        ends[verdict].append(index)
                    tell(active=min(len(todo), spec["parallelism"]), ready=min(len(todo), spec["parallelism"]))

        tell(active=spec["parallelism"], ready=spec["parallelism"])
        slots = [threading.Thread(target=slot, daemon=True) for _ in range(spec["parallelism"])]
        for thread in slots:
            thread.start()
        for thread in slots:
            thread.join()
        if len(ends["failed"]) > spec["maxFailedIndexes"]:
            tell(active=0, ready=0, conditions={"Failed": "MaxFailedIndexesExceeded"})
        elif ends["failed"]:
            tell(active=0, ready=0, conditions={"Failed": "FailedIndexes"})
        elif len(ends["completed"]) == spec["completions"]:
            tell(active=0, ready=0, conditions={"Complete": "CompletionsReached"})

    def _attempt(self, job: Object, index: int, attempts: Counter[int]) -> str:
        """`completed`, `failed` or `again`, by the Job's own rules."""
        name, spec = job["metadata"]["name"], job["spec"]
        command = spec["template"]["spec"]["containers"][0]["command"]
        pod = Pod(name, index, sum(p.job == name and p.index == index for p in self.started), command)
        self.started.append(pod)
        self.api.pod(name, index, pod.name, phase="Running")
        code, text = self.run(pod)
        self.api.logs[pod.name] = text
        number = 137 if code == DISRUPTED else int(code)
        ended = {"exitCode": number, "reason": "Error" if number else "Completed"}
        if name in self.api.objects["jobs"]:
            status = {"name": "stage", "image": "image", "state": {"terminated": ended}}
            phase = "Failed" if number else "Succeeded"
            self.api.pod(name, index, pod.name, phase=phase, containerStatuses=[status])
        if code == 0:
            return "completed"
        for rule in spec["podFailurePolicy"]["rules"]:
            if rule["action"] == "FailIndex" and code in rule["onExitCodes"]["values"]:
                return "failed"
            if rule["action"] == "Ignore" and code == DISRUPTED and "onPodConditions" in rule:
                return "again"
        attempts[index] += 1
        return "failed" if attempts[index] > spec["backoffLimitPerIndex"] else "again"


@contextmanager
def controlled(api: Api, run: Callable[[Pod], tuple[Outcome, str]] = run_here) -> Iterator[Controller]:
    controller = Controller(api, run)
    thread = threading.Thread(target=controller._loop, daemon=True)
    thread.start()
    try:
        yield controller
    finally:
        controller.stop.set()
        thread.join(30)
