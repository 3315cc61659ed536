"""Follows TrainJobs as Indexed Jobs are followed: one of them is a Job whose only task is one mixture."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from components.base.errors import PermanentError
from components.engine.stage import Needs
from components.pool.run import Run
from components.recipe.nodes import train_pool
from pipelines.kubernetes import diagnosis
from pipelines.kubernetes.cluster import EVENTS, PODS, TRAIN_JOBS, Object
from pipelines.kubernetes.diagnosis import Blockage, PodEnding
from pipelines.kubernetes.jobs import Target
from pipelines.kubernetes.trainjobs import NODE, RUNTIME, LaunchedTraining, build_train_job
from pipelines.kubernetes.watching import EXPLAINED, FanOut, JobStates

JOBSET = "jobset.sigs.k8s.io/jobset-name"  # label of a TrainJob's pods; the JobSet has the TrainJob's name


def untrained(run: Run) -> list[int]:
    """Return the numbers of the trained mixtures that have no model yet."""
    paths = [f"{run.model_folder(mixture)}/model.json" for mixture in run.trained]
    return [number for number, path in enumerate(paths) if run.storage.size(path) is None]


def train_jobs(run: Run, uri: str, needs: Needs, target: Target, only: str | None) -> Callable[[int], Object]:
    """Return a function that builds the TrainJob of a trained mixture, by its number.

    Raises:
        PermanentError: there is no such pool.
    """
    compute = run.spec.compute
    nodes, pool = compute.train, train_pool(compute, only)
    deadline = compute.deadline_hours * 3600

    def build(number: int) -> Object:
        training = LaunchedTraining(uri, run.trained[number].name, number, needs)
        return build_train_job(training, nodes, pool, target, deadline)

    return build


def as_job(train_job: Object) -> Object:
    """Add the status that a Job of one index would have; a pod count is a multiple of the nodes."""
    status, nodes = train_job.get("status", {}), train_job["spec"]["trainer"]["numNodes"]
    children = status.get("jobsStatus") or []
    found = {key: nodes * sum(child[key] for child in children) for key in ("ready", "active")}
    if diagnosis.condition(train_job, "Complete"):
        found |= {"succeeded": 1, "completedIndexes": "0"}
    elif diagnosis.condition(train_job, "Failed"):
        found |= {"failed": 1, "failedIndexes": "0"}
    return {**train_job, "status": {**status, **found}}


class TrainJobFanOut(FanOut):
    """The TrainJobs that run at one time.

    Attributes:
        starved: whether nothing could run, so that others needn't be tried.
    """

    kind = TRAIN_JOBS
    container = NODE
    starved = False

    def _start(self, body: Object, beat: Callable[[JobStates], None]) -> None:
        try:
            super()._start(body, beat)
        except PermanentError as error:
            if RUNTIME in str(error):  # Trainer's webhook refuses a TrainJob whose runtime doesn't exist
                raise PermanentError(f"{error}; install it with `kubectl apply -k manifests/training`") from error
            raise

    def _look(self) -> JobStates:
        seen = super()._look()
        return JobStates({name: as_job(job) for name, job in seen.jobs.items()}, seen.version)

    def _judge(self, seen: JobStates) -> None:
        """Delete what is complete, which no one else does; what failed stays until the run's end, to be looked at."""
        for name, job in seen.jobs.items():
            if diagnosis.condition(job, "Complete"):
                self.cluster.delete(self.kind, name, job["metadata"]["uid"])
        super()._judge(seen)

    def _give_up(self, bad_input: bool, text: str) -> None:
        self.starved = True
        super()._give_up(bad_input, text)

    def _blockage(self, job: Object) -> Blockage | None:
        name = job["metadata"]["name"]
        pods, _ = self.cluster.find(PODS, f"{JOBSET}={name}", "status.phase=Pending", 10)
        if pods:
            return diagnosis.find_blockage(pods, [])
        child = f"involvedObject.kind=Job,involvedObject.name={name}-{NODE}-0"  # its events tell of a refused pod
        for fields in (f"involvedObject.name={name}", child):
            events, _ = self.cluster.find(EVENTS, "", fields, 50)
            if found := diagnosis.find_blockage([], events):
                return found
        return None

    def _endings(self, job: Object) -> list[PodEnding]:
        """Describe how the failed nodes ended, bad input first: most nodes end because of another one."""
        pods, _ = self.cluster.find(PODS, f"{JOBSET}={job['metadata']['name']}", "status.phase=Failed", 100)
        endings = [replace(diagnosis.ended(pod, self.container), index=0) for pod in pods]
        endings.sort(key=lambda ending: not diagnosis.is_bad_input([ending]))
        return endings[:EXPLAINED]
