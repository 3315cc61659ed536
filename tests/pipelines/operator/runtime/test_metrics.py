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
import yaml
from kubernetes import client
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from components.base.errors import TemporaryError
from pipelines.kubernetes.cluster import Cluster, Conflict
from pipelines.operator.runtime.metrics import KINDS, PHASES, Metrics, Sources

EMPTY = Sources(lambda: [], lambda: [], lambda: {}, lambda: True, lambda: True)
STATUS = "recaptions.recaption.dev/status"
ROOT = Path(__file__).parents[4]
DASHBOARD = ROOT / "manifests/monitoring/dashboard.json"
RULES = ROOT / "manifests/components/prometheus/rules.yaml"
TROUBLESHOOTING = ROOT / "docs/troubleshooting.md"
WORDS = {"and", "or", "on", "offset", "object_namespace", "name", "phase", "account"}
"""What an alert's expression has besides functions and metrics: PromQL's words, and labels."""


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
        "recaption_stage_samples" + labels.format("index"): 80_000,
        "recaption_stage_failures" + labels.format("index"): 0,
        "recaption_stage_tasks_done" + labels.format("train"): 1,
        "recaption_stage_tasks_total" + labels.format("train"): 2,
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
    assert series(metrics, "recaption_schedule_dumps") == expected


def test_what_a_stage_costs_retries_and_has_trained() -> None:
    train = {"name": "train", "state": "running", "unit": "tasks", "done": 1, "total": 2}
    stage = {**train, "checkpoints": 7, "checkpointsTotal": 10, "gpuSeconds": 3600, "retries": 4}
    caption = {"name": "caption:a", "state": "done", "samples": 100, "failures": {"sample: x": 3, "sample: y": 2}}
    costs = {"spentGpuHours": 1.0, "predictedGpuHours": 2.5, "spentMoney": 3.5}
    things = [thing("a", phase="Running", stages=[stage, caption], costs=costs, restarts=2)]
    found = series(Metrics(replace(EMPTY, recaptions=lambda: things)), "recaption_")
    of = '{{name="a",object_namespace="research",stage="{}"}}'.format
    assert found["recaption_stage_gpu_seconds" + of("train")] == 3600
    assert found["recaption_stage_retries" + of("train")] == 4
    assert found["recaption_stage_checkpoints_done" + of("train")] == 7
    assert found["recaption_stage_checkpoints_total" + of("train")] == 10
    assert found["recaption_stage_failures" + of("caption:a")] == 5
    run = 'name="a",object_namespace="research"'
    assert found[f"recaption_run_progress{{{run}}}"] == 1 + 1 + 7  # a stage, a model, the checkpoints
    assert found[f"recaption_run_restarts{{{run}}}"] == 2
    hours = {
        account: found[f'recaption_run_gpu_hours{{account="{account}",{run}}}'] for account in ("spent", "predicted")
    }
    assert hours == {"spent": 1.0, "predicted": 2.5}
    assert [name for name in found if name.startswith("recaption_run_cost")] == [
        f'recaption_run_cost{{account="spent",{run}}}'
    ]


def test_a_deletion_and_a_schedule_have_their_times_and_two_kinds_of_one_name_their_own_series() -> None:
    gone, weekly = thing("weekly"), thing("weekly", nextScheduleTime="2026-11-29T08:00:00Z")
    gone["metadata"]["deletionTimestamp"] = weekly["metadata"]["deletionTimestamp"] = "2026-11-29T07:00:00Z"
    weekly["status"]["conditions"] = [{"type": "Scheduled", "status": "False", "reason": "MissedDeadline"}]
    made = Metrics(replace(EMPTY, recaptions=lambda: [gone], schedules=lambda: [weekly]))
    assert set(series(made, "recaption_deletion").values()) == {1795935600.0}
    assert len(series(made, "recaption_deletion")) == 2
    assert set(series(made, "recaption_schedule_next").values()) == {1795939200.0}
    assert set(series(made, "recaption_schedule_missed").values()) == {1.0}
    weekly["spec"] = {"suspend": True}
    assert series(made, "recaption_schedule_next") == {}


def test_no_label_is_one_that_the_scraper_sets_itself() -> None:
    """Of Prometheus with the Prometheus Operator, and of Google's managed one: they rename or overwrite ours."""
    theirs = {"namespace", "pod", "container", "job", "instance", "endpoint", "service", "cluster", "location", "node"}
    stages = [{"name": "index", "state": "done", "unit": "shards", "done": 8, "total": 8, "samplesPerSecond": 7.0}]
    things = [thing("a", phase="Running", stages=stages, behind=1, costs={"spentGpuHours": 1.0})]
    things[0]["metadata"]["deletionTimestamp"] = "2026-11-29T07:00:00Z"
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


def exported() -> set[str]:
    """The names of all series that the operator exports."""
    families = list(text_string_to_metric_families(generate_latest(Metrics(EMPTY).registry).decode()))
    kinds = {family.name: family.type for family in families}
    parts = {"counter": ("_total",), "histogram": ("_bucket", "_count", "_sum"), "gauge": ("",)}
    return {name + end for name, kind in kinds.items() for end in parts[kind] if name.startswith("recaption_")}


def test_the_dashboard_asks_for_nothing_that_there_is_not() -> None:
    asked = set(re.findall(r"\brecaption_\w+", json.dumps(json.loads(DASHBOARD.read_text()))))
    assert asked
    assert asked <= exported()


def test_the_alerts_ask_for_nothing_that_there_is_not() -> None:
    rules = yaml.safe_load(RULES.read_text())
    assert rules["kind"] == "PrometheusRule"
    alerts = [rule for group in rules["spec"]["groups"] for rule in group["rules"]]
    assert len({alert["alert"] for alert in alerts}) == len(alerts)
    for alert in alerts:
        words = set(re.findall(r"[a-z_]\w*(?![\w(])", re.sub(r'"[^"]*"|\[\w+\]|\d\w*', "", alert["expr"])))
        assert words & exported(), alert["alert"]
        assert words <= exported() | WORDS, alert["alert"]
        assert alert["expr"].count("(") == alert["expr"].count(")")
        assert alert["labels"]["severity"] in ("warning", "critical")


def test_every_alert_has_a_section_that_says_what_to_do() -> None:
    """Anchors as Markdown's renderers make them of a heading."""
    page = TROUBLESHOOTING.read_text()
    anchors = {re.sub(r"[^a-z0-9 -]", "", h.lower()).replace(" ", "-") for h in re.findall(r"^#+ (.+)$", page, re.M)}
    for group in yaml.safe_load(RULES.read_text())["spec"]["groups"]:
        for alert in group["rules"]:
            place, _, anchor = alert["annotations"]["runbook"].partition("#")
            assert place == "docs/troubleshooting.md"
            assert anchor in anchors, alert["alert"]
