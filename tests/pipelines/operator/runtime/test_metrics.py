"""What Prometheus reads, in its own text format, of objects as the operator holds them."""

from __future__ import annotations

import json
import re
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from kubernetes import client
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from components.base.errors import TemporaryError
from pipelines.kubernetes.cluster import Cluster, Conflict
from pipelines.operator.runtime.metrics import KINDS, PHASES, Metrics, Sources

EMPTY = Sources(lambda: [], lambda: [], lambda: {}, lambda: True, lambda: True)
STATUS = "recaptions.recaption.dev/status"
DASHBOARD = Path(__file__).parents[4] / "manifests/monitoring/dashboard.json"


def thing(name: str, **status: Any) -> dict[str, Any]:
    return {"metadata": {"namespace": "research", "name": name}, "status": status}


def series(metrics: Metrics, prefix: str) -> dict[str, float]:
    """Of a scrape, by `name{labels}`, without the moments at which they were made."""
    text = generate_latest(metrics.registry).decode()
    lines = [line for line in text.splitlines() if line.startswith(prefix) and "_created" not in line]
    return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines)}


def test_runs_are_counted_by_phase_and_one_that_nobody_looked_at_yet_is_pending() -> None:
    things = [thing("a", phase="Running"), thing("b", phase="Failed"), thing("c", phase="Failed"), thing("d")]
    metrics = Metrics(replace(EMPTY, recaptions=lambda: things))
    expected = dict.fromkeys(PHASES, 0) | {"Running": 1, "Failed": 2, "Pending": 1}
    assert series(metrics, "recaption_runs") == {f'recaption_runs{{phase="{p}"}}': n for p, n in expected.items()}


def test_a_running_object_has_its_stages_until_it_ends_or_is_deleted() -> None:
    stages = [
        {"name": "index", "state": "done", "unit": "shards", "done": 8, "total": 8, "samples": 80_000, "seconds": 5},
        {
            "name": "caption:blip2",
            "state": "running",
            "unit": "shards",
            "done": 3,
            "total": 8,
            "samplesPerSecond": 75.2,
        },
        {"name": "train", "state": "running", "unit": "tasks", "done": 1, "total": 2},
        {"name": "evaluate", "state": ""},
    ]
    things = [thing("a", phase="Running", stages=stages), thing("b", phase="Succeeded", stages=stages)]
    metrics = Metrics(replace(EMPTY, recaptions=lambda: things))
    labels = '{{name="a",object_namespace="research",stage="{}"}}'
    assert series(metrics, "recaption_stage") == {
        "recaption_stage_shards_done" + labels.format("index"): 8,
        "recaption_stage_shards_total" + labels.format("index"): 8,
        "recaption_stage_shards_done" + labels.format("caption:blip2"): 3,
        "recaption_stage_shards_total" + labels.format("caption:blip2"): 8,
        "recaption_stage_samples_per_second" + labels.format("caption:blip2"): 75.2,
    }
    things.clear()
    assert series(metrics, "recaption_stage") == {}


def test_a_schedule_is_behind_by_what_its_status_says() -> None:
    things = [thing("weekly", behind=3), thing("new")]
    metrics = Metrics(replace(EMPTY, schedules=lambda: things))
    expected = {'recaption_schedule_dumps_behind{name="weekly",object_namespace="research"}': 3}
    assert series(metrics, "recaption_schedule") == expected


def test_no_label_is_one_that_the_scraper_sets_itself() -> None:
    """Of Prometheus with the Prometheus Operator, and of Google's managed one: they rename or overwrite ours."""
    theirs = {"namespace", "pod", "container", "job", "instance", "endpoint", "service", "cluster", "location", "node"}
    stages = [{"name": "index", "state": "done", "unit": "shards", "done": 8, "total": 8, "samplesPerSecond": 7.0}]
    things = [thing("a", phase="Running", stages=stages, behind=1)]
    made = Metrics(replace(EMPTY, recaptions=lambda: things, schedules=lambda: things, requests=lambda: {"get x": 1}))
    with made.reconciling("Recaption"):
        pass
    labels = {label for name in series(made, "recaption_") for label in re.findall(r"(\w+)=", name)}
    assert "object_namespace" in labels
    assert not labels & theirs


@pytest.mark.parametrize("value", [True, False])
def test_leader_and_kfp_are_flags(value: bool) -> None:
    metrics = Metrics(replace(EMPTY, is_leader=lambda: value, is_kfp_reachable=lambda: not value))
    assert series(metrics, "recaption_leader") == {"recaption_leader": value}
    assert series(metrics, "recaption_kfp") == {"recaption_kfp_reachable": not value}


def test_looks_are_timed_and_failures_counted_but_for_conflicts() -> None:
    metrics = Metrics(EMPTY)
    for error in (None, TemporaryError("KFP is away"), KeyError("a bug"), Conflict("changed meanwhile")):
        with pytest.raises(type(error)) if error else nullcontext(), metrics.reconciling("Recaption"):
            if error:
                raise error
    assert series(metrics, "recaption_reconcile_errors") == {
        'recaption_reconcile_errors_total{kind="Recaption"}': 2,
        'recaption_reconcile_errors_total{kind="RecaptionSchedule"}': 0,
    }
    times = series(metrics, "recaption_reconcile_seconds")
    assert times['recaption_reconcile_seconds_count{kind="Recaption"}'] == 4
    assert times['recaption_reconcile_seconds_bucket{kind="Recaption",le="1.0"}'] == 4


def test_requests_are_those_of_the_cluster_in_all_its_namespaces_and_threads() -> None:
    cluster = Cluster(client.ApiClient(client.Configuration(host="http://127.0.0.1:9")), "research")
    others = [cluster.within(f"n{i}") for i in range(4)]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)  # threads that take turns at every moment
    try:
        with ThreadPoolExecutor(len(others)) as pool:
            list(pool.map(lambda c: [c._count("patch", STATUS) for _ in range(5_000)], others))
    finally:
        sys.setswitchinterval(interval)
    metrics = Metrics(replace(EMPTY, requests=lambda: cluster.requests))
    name = f'recaption_api_requests_total{{resource="{STATUS}",verb="patch"}}'
    assert series(metrics, "recaption_api_requests_total") == {name: 20_000}
    cluster.client.close()


def test_every_metric_says_what_it_is_and_two_operators_of_one_process_have_their_own() -> None:
    first, second = Metrics(EMPTY), Metrics(EMPTY)
    with first.reconciling(KINDS[0]):
        pass
    assert series(first, "recaption_reconcile_seconds_count") != series(second, "recaption_reconcile_seconds_count")
    families = list(text_string_to_metric_families(generate_latest(first.registry).decode()))
    assert all(family.documentation for family in families)
    assert "process_resident_memory_bytes" in {family.name for family in families}


def test_the_dashboard_asks_for_nothing_that_there_is_not() -> None:
    metrics = Metrics(EMPTY)
    families = list(text_string_to_metric_families(generate_latest(metrics.registry).decode()))
    kinds = {family.name: family.type for family in families}
    parts = {"counter": ("_total",), "histogram": ("_bucket", "_count", "_sum"), "gauge": ("",)}
    there = {name + end for name, kind in kinds.items() for end in parts[kind] if name.startswith("recaption_")}
    asked = set(re.findall(r"\brecaption_\w+", json.dumps(json.loads(DASHBOARD.read_text()))))
    assert asked
    assert asked <= there
