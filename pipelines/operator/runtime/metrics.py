"""The operator's metrics for Prometheus.

The series of objects are made at each scrape from the objects that exist: those of a deleted object vanish by
themselves, and only a running object has series for its stages.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import prometheus_client as prometheus
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from pipelines.kubernetes.cluster import Conflict
from pipelines.operator.runtime.conditions import Object, condition, parse_time

PHASES = ("Pending", "Suspended", "Running", "Succeeded", "Failed", "Refused", "Ending")
OBJECT = ("object_namespace", "name")
"""Labels of an object. A scraper sets `namespace` itself: to that of the operator's pod."""
STAGE = (
    ("shards-done", "shards_done", "Shards a stage has finished"),
    ("shards-total", "shards_total", "Shards a stage has to do"),
    ("tasks-done", "tasks_done", "Tasks (or models) a stage has finished"),
    ("tasks-total", "tasks_total", "Tasks (or models) a stage has to do"),
    ("checkpoints", "checkpoints_done", "Checkpoints that the trainings have reached"),
    ("checkpointsTotal", "checkpoints_total", "Checkpoints of all trainings"),
    ("samples", "samples", "Samples a stage has done"),
    ("samplesPerSecond", "samples_per_second", "Samples a stage does per second"),
    ("gpuSeconds", "gpu_seconds", "Seconds of GPUs that a stage's finished work took"),
    ("retries", "retries", "Attempts of a stage's pods that failed"),
)
"""Of an entry of status.stages: the field (`unit-done` is done of that unit), the metric's name, its meaning."""
KINDS = ("Recaption", "RecaptionSchedule")
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
"""Buckets: a look without a question takes milliseconds; KFP may take 30 s to answer."""


@dataclass(frozen=True)
class Sources:
    """The values that a scrape asks for, from another thread: each call returns something nobody changes meanwhile."""

    recaptions: Callable[[], Iterable[Object]]
    schedules: Callable[[], Iterable[Object]]
    requests: Callable[[], Mapping[str, int]]
    """Requests sent to the API server, by `verb resource`: Cluster.requests."""
    is_leader: Callable[[], bool]
    is_kfp_reachable: Callable[[], bool]


class Metrics:
    """The operator's registry: its own metrics, and the process's memory and CPU time."""

    def __init__(self, sources: Sources) -> None:
        self.registry = prometheus.CollectorRegistry()
        self._seconds = prometheus.Histogram(
            "recaption_reconcile_seconds",
            "Duration of one reconciliation of an object",
            ["kind"],
            buckets=SECONDS,
            registry=self.registry,
        )
        self._errors = prometheus.Counter(
            "recaption_reconcile_errors", "Reconciliations of an object that failed", ["kind"], registry=self.registry
        )
        for kind in KINDS:  # from 0 on: Prometheus sees no increase in a series that begins with 1
            self._errors.labels(kind)
        self.registry.register(_ObjectMetrics(sources))
        prometheus.ProcessCollector(registry=self.registry)

    @contextmanager
    def reconciling(self, kind: str) -> Iterator[None]:
        """Time one reconciliation and count it as an error if it raises; a Conflict is none, it is decided anew."""
        began = time.perf_counter()
        try:
            yield
        except Conflict:
            raise
        except Exception:
            self._errors.labels(kind).inc()
            raise
        finally:
            self._seconds.labels(kind).observe(time.perf_counter() - began)


@dataclass(frozen=True)
class _ObjectMetrics(Collector):
    """The metrics that are made at each scrape."""

    sources: Sources

    def collect(self) -> Iterator[Metric]:
        """Make all series."""
        recaptions = list(self.sources.recaptions())
        yield _runs(recaptions)
        running = [thing for thing in recaptions if _phase(thing) == "Running"]
        yield from _stages(running)
        yield from _progress(running)
        yield from _costs(running)
        schedules = list(self.sources.schedules())
        yield _behind(schedules)
        yield from _times(schedules)
        yield _deletions({KINDS[0]: recaptions, KINDS[1]: schedules})
        yield _requests(self.sources.requests())
        leader, reachable = self.sources.is_leader(), self.sources.is_kfp_reachable()
        yield _flag("recaption_leader", "1 where this operator acts, 0 where it waits for the Lease", leader)
        yield _flag("recaption_kfp_reachable", "1 while KFP answers what it is asked, else 0", reachable)


def _runs(recaptions: Iterable[Object]) -> Metric:
    found = GaugeMetricFamily("recaption_runs", "Recaptions by phase", labels=["phase"])
    counts = Counter(dict.fromkeys(PHASES, 0))
    counts.update(map(_phase, recaptions))
    for phase, count in counts.items():
        found.add_metric([phase], count)
    return found


def _stages(running: Iterable[Object]) -> list[Metric]:
    labels = [*OBJECT, "stage"]
    found = {field: GaugeMetricFamily(f"recaption_stage_{name}", what, labels=labels) for field, name, what in STAGE}
    failures = GaugeMetricFamily("recaption_stage_failures", "Samples that a stage could not use", labels=labels)
    for thing in running:
        for stage in thing["status"].get("stages", ()):
            key = [*_key(thing), stage["name"]]
            unit = {f"{stage.get('unit')}-{end}": stage[end] for end in ("done", "total") if "unit" in stage}
            for field, value in {**stage, **unit}.items():
                if field in found:
                    found[field].add_metric(key, value)
            if "samples" in stage:
                failures.add_metric(key, sum(stage.get("failures", {}).values()))
    return [*found.values(), failures]


def _progress(running: Iterable[Object]) -> list[Metric]:
    """Make one number of each run that moves whenever anything of it is finished, and count its restarts."""
    done = GaugeMetricFamily(
        "recaption_run_progress",
        "Stages, shards, tasks and checkpoints that a run has finished, added up",
        labels=OBJECT,
    )
    restarts = GaugeMetricFamily("recaption_run_restarts", "Restarts in a row after bad luck", labels=OBJECT)
    for thing in running:
        stages = thing["status"].get("stages", ())
        finished = sum(stage.get("state") == "done" for stage in stages)
        counted = sum(stage.get("done", 0) + stage.get("checkpoints", 0) for stage in stages)
        done.add_metric(_key(thing), finished + counted)
        restarts.add_metric(_key(thing), thing["status"].get("restarts", 0))
    return [done, restarts]


def _costs(running: Iterable[Object]) -> list[Metric]:
    labels = [*OBJECT, "account"]
    hours = GaugeMetricFamily("recaption_run_gpu_hours", "GPU-hours of a run, spent or predicted", labels=labels)
    money = GaugeMetricFamily("recaption_run_cost", "Cost of a run by the prices of its pools", labels=labels)
    for thing in running:
        costs = thing["status"].get("costs", {})
        for account in ("spent", "predicted"):
            for family, field in ((hours, f"{account}GpuHours"), (money, f"{account}Money")):
                if field in costs:
                    family.add_metric([*_key(thing), account], costs[field])
    return [hours, money]


def _times(schedules: Iterable[Object]) -> list[Metric]:
    due = GaugeMetricFamily(
        "recaption_schedule_next_timestamp_seconds", "Time at which a schedule is due next", labels=OBJECT
    )
    missed = GaugeMetricFamily(
        "recaption_schedule_missed", "1 where a schedule's last time passed without an outcome", labels=OBJECT
    )
    for thing in schedules:
        status = thing.get("status", {})
        missed.add_metric(_key(thing), condition(status, "Scheduled").get("reason") == "MissedDeadline")
        if status.get("nextScheduleTime") and not thing.get("spec", {}).get("suspend"):
            due.add_metric(_key(thing), parse_time(status["nextScheduleTime"]).timestamp())
    return [due, missed]


def _deletions(things: Mapping[str, Iterable[Object]]) -> Metric:
    found = GaugeMetricFamily(
        "recaption_deletion_timestamp_seconds",
        "Time at which an object's deletion was asked for",
        labels=[*OBJECT, "kind"],
    )
    for kind, listed in things.items():
        for thing in listed:
            if since := thing["metadata"].get("deletionTimestamp"):
                found.add_metric([*_key(thing), kind], parse_time(since).timestamp())
    return found


def _behind(schedules: Iterable[Object]) -> Metric:
    found = GaugeMetricFamily(
        "recaption_schedule_dumps_behind", "Dumps a schedule wants and has not begun", labels=OBJECT
    )
    for thing in schedules:
        if "behind" in thing.get("status", {}):
            found.add_metric(_key(thing), thing["status"]["behind"])
    return found


def _requests(requests: Mapping[str, int]) -> Metric:
    found = CounterMetricFamily(
        "recaption_api_requests", "Requests to the Kubernetes API server", labels=["verb", "resource"]
    )
    for name, count in dict(requests).items():
        found.add_metric(name.split(" ", 1), count)
    return found


def _flag(name: str, what: str, value: bool) -> Metric:
    return GaugeMetricFamily(name, what, value=float(value))


def _phase(thing: Object) -> str:
    return str(thing.get("status", {}).get("phase", "Pending"))


def _key(thing: Object) -> list[str]:
    return [thing["metadata"]["namespace"], thing["metadata"]["name"]]
