"""The Grafana dashboard: it shows every metric of the operator, and no other."""

from __future__ import annotations

import json
import re
from typing import Any

from tests.manifests.rendering import MANIFESTS, one, render

# The operator's metrics and their labels.
METRICS: dict[str, set[str]] = {
    "recaption_runs": {"phase"},
    "recaption_stage_shards_done": {"object_namespace", "name", "stage"},
    "recaption_stage_shards_total": {"object_namespace", "name", "stage"},
    "recaption_stage_samples_per_second": {"object_namespace", "name", "stage"},
    **{
        f"recaption_stage_{what}": {"object_namespace", "name", "stage"}
        for what in (
            *("tasks_done", "tasks_total", "checkpoints_done", "checkpoints_total"),
            *("samples", "failures", "gpu_seconds", "retries"),
        )
    },
    "recaption_run_progress": {"object_namespace", "name"},
    "recaption_run_restarts": {"object_namespace", "name"},
    "recaption_run_gpu_hours": {"object_namespace", "name", "account"},
    "recaption_run_cost": {"object_namespace", "name", "account"},
    "recaption_deletion_timestamp_seconds": {"object_namespace", "name", "kind"},
    "recaption_schedule_missed": {"object_namespace", "name"},
    "recaption_schedule_next_timestamp_seconds": {"object_namespace", "name"},
    "recaption_reconcile_seconds": {"kind"},
    "recaption_reconcile_errors_total": {"kind"},
    "recaption_schedule_dumps_behind": {"object_namespace", "name"},
    "recaption_leader": set(),
    "recaption_kfp_reachable": set(),
    "recaption_api_requests_total": {"verb", "resource"},
}
HISTOGRAMS = {"recaption_reconcile_seconds"}
METRIC = re.compile(r"\brecaption_[a-z_]+\b")
DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}


def dashboard() -> dict[str, Any]:
    value: dict[str, Any] = json.loads((MANIFESTS / "monitoring" / "dashboard.json").read_text())
    return value


def targets() -> list[dict[str, Any]]:
    return [target for panel in dashboard()["panels"] for target in panel.get("targets", [])]


def metrics_in(query: str) -> set[str]:
    """Their names; of a histogram without what Prometheus puts behind it."""
    names = METRIC.findall(query)
    stems = {name: re.sub(r"_(bucket|count|sum)$", "", name) for name in names}
    return {stems[name] if stems[name] in HISTOGRAMS else name for name in names}


def test_every_metric_is_shown_and_no_other() -> None:
    queries = [target["expr"] for target in targets()]
    assert set().union(*map(metrics_in, queries)) == set(METRICS)
    for variable in dashboard()["templating"]["list"]:
        assert metrics_in(json.dumps(variable["query"])) <= set(METRICS)


def test_a_query_and_its_legend_use_labels_that_its_metrics_have() -> None:
    for target in targets():
        labels = set.intersection(*(METRICS[name] for name in metrics_in(target["expr"]))) | {"le"}
        used = set(re.findall(r"(\w+)\s*=~?\s*\"", target["expr"]))
        for grouping in re.findall(r"by \(([^)]*)\)", target["expr"]):
            used |= set(grouping.split(", "))
        used |= set(re.findall(r"{{(\w+)}}", target["legendFormat"]))
        assert used <= labels, target["expr"]


def test_rates_are_of_counters_and_quantiles_of_buckets() -> None:
    for query in (target["expr"] for target in targets()):
        for name in re.findall(r"rate\((\w+)", query):
            assert name.endswith(("_total", "_bucket", "_count")), query
        counters = [name for name in METRIC.findall(query) if name.endswith(("_bucket", "_count"))]
        assert all(f"rate({name}" in query for name in counters), query


def test_panels_have_a_title_a_place_of_their_own_and_the_chosen_data_source() -> None:
    panels = dashboard()["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    cells: set[tuple[int, int]] = set()
    for panel in panels:
        x, y, w, h = (panel["gridPos"][key] for key in "xywh")
        place = {(x + i, y + j) for i in range(w) for j in range(h)}
        assert panel["title"]
        assert x + w <= 24
        assert not place & cells, panel["title"]
        cells |= place
        sources = [target["datasource"] for target in panel.get("targets", [])]
        assert all(source == DATASOURCE for source in sources)
        assert sources or panel["type"] == "row"
    assert dashboard()["templating"]["list"][0]["type"] == "datasource"


def test_grafanas_sidecar_finds_it() -> None:
    config = one(render("monitoring"), "ConfigMap", "recaption-dashboard")
    assert config["metadata"]["labels"]["grafana_dashboard"] == "1"
    assert json.loads(config["data"]["recaption.json"]) == dashboard()
