"""A real API server with our CRDs says of every recipe what the command line says, as far as a CRD can.

They are made in API groups of the tests' own, where no operator sees them, and go again.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import pytest
import yaml
from kubernetes import client

from pipelines.kubeflow.parameters import NOT_HERE
from pipelines.operator.crd.generate import recaption_crd, schedule_crd
from pipelines.operator.runtime.conditions import with_condition
from tests.pipelines.operator.corpus import (
    ADMITTED,
    BAD,
    BASE,
    GOOD,
    LOCAL,
    OPERATOR,
    REFUSED,
    SCHEDULE_BASE,
    Case,
    changed,
    said,
)

Object = dict[str, Any]
BAD_TOP_K = changed(BASE, {"spec.columns.0.caption.topK": 0})
ANY = "x-kubernetes-preserve-unknown-fields"
NOW = datetime(2026, 11, 24, tzinfo=UTC)
CLUSTERS = {  # path of an object of the cluster, by kind
    "CustomResourceDefinition": "/apis/apiextensions.k8s.io/v1/customresourcedefinitions",
}


@dataclass
class Server:
    """Requests to the API server, with our resources in a group of the test's own; a refusal is an answer."""

    api: client.ApiClient
    namespace: str
    group: str = field(default_factory=lambda: f"t{uuid.uuid4().hex[:8]}.recaption.dev")
    made: list[str] = field(default_factory=list)

    def ask(self, method: str, path: str, body: Object | None = None, **options: str) -> tuple[int, Object]:
        headers = {"Accept": options.pop("accept", "application/json")}
        headers["Content-Type"] = options.pop("content", "application/json")
        more = {"auth_settings": ["BearerToken"], "_preload_content": False}
        try:
            answer = self.api.call_api(path, method, {}, list(options.items()), headers, body, **more)[0]
        except client.ApiException as error:
            text = error.body.decode() if isinstance(error.body, bytes) else error.body
            return error.status, json.loads(text) if text.startswith("{") else {"message": text}  # 404 page not found
        return answer.status, json.loads(answer.data)

    def path(self, name: str = "", kind: str = "Recaption") -> str:
        return f"/apis/{self.group}/v1alpha1/namespaces/{self.namespace}/{kind.lower()}s/{name}".rstrip("/")

    def create(self, value: Object, dry: bool = False) -> tuple[int, Object]:
        """As kubectl does: strict."""
        value = {**value, "apiVersion": value["apiVersion"].replace("recaption.dev/v1", f"{self.group}/v1")}
        if value["metadata"].get("namespace"):
            value["metadata"] = {**value["metadata"], "namespace": self.namespace}
        path = self.path(kind="RecaptionSchedule" if value["kind"] == "RecaptionSchedule" else "Recaption")
        return self.ask("POST", path, value, fieldValidation="Strict", **({"dryRun": "All"} if dry else {}))

    def patch(self, path: str, change: Object) -> tuple[int, Object]:
        return self.ask("PATCH", path, change, content="application/merge-patch+json", fieldValidation="Strict")

    def apply(self, value: Object, **options: str) -> None:
        """An object of the cluster, server-side."""
        path = f"{CLUSTERS[value['kind']]}/{value['metadata']['name']}"
        how = {"content": "application/apply-patch+yaml", "fieldManager": "recaption-test", "force": "true"}
        status, answer = self.ask("PATCH", path, value, **how, **options)
        assert status in (200, 201), answer
        self.made.append(path)

    def ours(self, value: Object) -> Object:
        """A CRD, for this group."""
        made: Object = json.loads(json.dumps(value).replace("recaption.dev", self.group))
        return made

    def remove(self) -> None:
        for path in dict.fromkeys(self.made):
            self.ask("DELETE", path)


def until(done: Callable[[], bool], what: str, seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < end, f"not within {seconds:.0f} s: {what}"
        time.sleep(0.2)


@pytest.fixture
def empty(api: client.ApiClient, namespace: str) -> Iterator[Server]:
    """Without CRDs."""
    server = Server(api, namespace)
    try:
        yield server
    finally:
        server.remove()


@pytest.fixture(scope="module")
def server(api: client.ApiClient, namespace: str) -> Iterator[Server]:
    made = Server(api, namespace)
    try:
        for thing in (recaption_crd(), schedule_crd()):
            made.apply(made.ours(thing))
        until(lambda: made.create(BASE, dry=True)[0] == 201, "Recaptions are served")
        until(lambda: made.create(SCHEDULE_BASE, dry=True)[0] == 201, "RecaptionSchedules are served")
        yield made
    finally:
        made.remove()


@pytest.fixture
def recaption(server: Server) -> Iterator[str]:
    """Path of an object."""
    path = server.path(f"case-{uuid.uuid4().hex[:8]}")
    status, answer = server.create(changed(BASE, {"metadata.name": path.rpartition("/")[2]}))
    assert status == 201, answer
    yield path
    server.ask("DELETE", path)


def test_what_is_shipped_is_accepted(empty: Server) -> None:
    for thing in (recaption_crd(), schedule_crd()):
        empty.apply(thing, dryRun="All")
    empty.made.clear()


@pytest.mark.parametrize("case", [*GOOD, *ADMITTED, *(c for c in BAD if c.by == OPERATOR)], ids=str)
def test_what_is_good_is_admitted_and_what_only_the_operator_refuses(server: Server, case: Case) -> None:
    status, answer = server.create(case.value, dry=True)
    assert status == 201, answer["message"]


@pytest.mark.parametrize("case", [*(c for c in BAD if c.by != OPERATOR), *REFUSED, *LOCAL], ids=str)
def test_what_is_bad_is_refused(server: Server, case: Case) -> None:
    status, answer = server.create(case.value, dry=True)
    assert status in (400, 422), answer


def test_a_refusal_reads_well(server: Server) -> None:
    web = changed(BASE, {"spec.storage": "https://bucket"})
    cause = server.create(web, dry=True)[1]["details"]["causes"][0]
    assert cause["field"] == "spec.storage"
    assert cause["message"].endswith("expected gs://bucket/path or s3://bucket/path; a cluster's pods share no folder")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"storage": "gs://other"}, "spec.storage can't be changed; make another Recaption"),
        ({"pool": {"name": "large"}}, "spec.pool can't be changed; make another Recaption"),
        ({"pool": {"subset": None}}, "spec.pool can't be changed"),
        ({"pool": {"subset": {"seed": 1}}}, "spec.pool can't be changed"),
        (
            {"compute": {"shardsPerTask": 4}},
            "spec.compute.shardsPerTask can't be changed; a run keeps its number of tasks",
        ),
    ],
)
def test_what_may_not_change_does_not(server: Server, recaption: str, change: Object, message: str) -> None:
    status, answer = server.patch(recaption, {"spec": change})
    assert status == 422, answer
    assert message in answer["message"]


@pytest.mark.parametrize(
    "change",
    [
        {"suspend": True},
        {"mixtures": [{"name": "raw", "rules": [{"text": "raw"}]}], "train": {"mixtures": None}},
        {"compute": {"shardsPerTask": None}},  # and so the default that it was
        {"compute": None},
        {"pool": {"subset": {"seed": None}}},
        {"train": {"scale": {"model": "ViT-B-32", "batchSize": 8, "learningRate": 1, "warmup": 0, "samples": 80}}},
        {"train": None, "evaluate": None, "compute": {"train": {"nodes": 2}}},
    ],
)
def test_what_may_change_changes(server: Server, recaption: str, change: Object) -> None:
    status, answer = server.patch(recaption, {"spec": change})
    assert status == 200, answer["message"]


@pytest.fixture
def crawled(server: Server) -> Iterator[str]:
    """Path of an object whose pool is downloaded."""
    path = server.path(f"case-{uuid.uuid4().hex[:8]}")
    pool = {"name": "crawl", "commonCrawl": {"dump": "latest"}}
    status, answer = server.create(changed(BASE, {"metadata.name": path.rpartition("/")[2], "spec.pool": pool}))
    assert status == 201, answer
    yield path
    server.ask("DELETE", path)


def test_a_download_may_change_and_what_is_downloaded_may_not(server: Server, crawled: str) -> None:
    answer = server.patch(crawled, {"spec": {"download": {"retry": ["transient"]}}})[1]
    assert answer["spec"]["download"]["perHostConnections"] == 4
    assert answer["spec"]["pool"]["commonCrawl"]["base"] == "https://data.commoncrawl.org"
    assert server.patch(crawled, {"spec": {"download": {"retry": ["transient", "all"]}}})[0] == 200
    assert server.patch(crawled, {"spec": {"download": None}})[0] == 200
    for change in ({"dump": "CC-MAIN-2026-43"}, {"sample": 5}, {"seed": 1}, None):
        status, answer = server.patch(crawled, {"spec": {"pool": {"commonCrawl": change}}})
        assert status == 422, change
        assert "spec.pool can't be changed; make another Recaption" in answer["message"]


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"pool": {"urls": "/x.csv"}}, "spec.pool"),
        ({"pool": {"subset": {"shards": 1}}}, "spec.pool"),
        ({"download": {"contact": "a b"}}, "spec.download.contact"),
        ({"download": {"allowNetworks": ["10.0.0.0/8"]}}, "spec.download.allowNetworks"),
        ({"pool": {"commonCrawl": None, "shards": "/x"}, "download": {}}, "spec.download"),
    ],
)
def test_what_is_wrong_with_a_download_is_said_in_the_same_words(
    server: Server, crawled: str, change: Object, field: str
) -> None:
    spec = server.ask("GET", crawled)[1]["spec"]
    for key, value in change.items():
        merged = {**spec.get(key, {}), **value}
        spec[key] = {k: v for k, v in merged.items() if v is not None}
    here = said({**BASE, "spec": spec}) or f"{field}: {NOT_HERE}"
    causes = server.create({**BASE, "spec": spec}, dry=True)[1]["details"]["causes"]
    messages = {cause["field"]: cause["message"].rpartition("Invalid value: ")[2] for cause in causes}
    assert here.rpartition(": ")[2] in messages[field]


def test_a_number_that_is_no_default_stays_when_its_key_goes(server: Server) -> None:
    path = server.path(f"case-{uuid.uuid4().hex[:8]}")
    made = changed(BASE, {"metadata.name": path.rpartition("/")[2], "spec.compute.shardsPerTask": 4})
    assert server.create(made)[0] == 201
    assert server.patch(path, {"spec": {"compute": {"shardsPerTask": None}}})[0] == 422
    assert server.patch(path, {"spec": {"compute": {"shardsPerTask": 4}}})[0] == 200
    server.ask("DELETE", path)


def test_defaults_are_filled_in(server: Server, recaption: str) -> None:
    spec = server.ask("GET", recaption)[1]["spec"]
    assert spec["columns"][0]["caption"]["temperature"] == 0.75
    assert spec["compute"]["shardsPerTask"] == 8
    assert spec["scorer"] == {"model": "ViT-L-14"}
    assert spec["suspend"] is False
    assert spec["mixtures"][0]["rules"][0]["where"] == [{"score": "raw", "top": 0.3}, {"flag": "english"}]


STATUS: Object = {
    "phase": "Running",
    "observedGeneration": 1,
    "stage": "caption",
    "progress": "120/800 shards",
    "rate": "75.2/s",
    "stages": [
        {"name": "index", "state": "done", "unit": "shards", "done": 800, "total": 800, "samples": 8_000_000}
        | {"seconds": 60, "samplesPerSecond": 1234.5, "failures": {"not an image": 3}},
        {"name": "caption", "state": "running"},
    ],
    "run": "gs://bucket/recaption/runs/base-1",
    "kfp": {
        "hash": "a",
        "compute": "b",
        "runId": "c",
        "name": "d",
        "state": "RUNNING",
        "link": "http://e",
    }
    | {"refused": True},
    "attempts": 1,
    "retried": "3",
    "startTime": "2026-11-24T10:00:00Z",
    "completionTime": "2026-11-24T11:00:00Z",
    "report": "gs://bucket/report.html",
    "datasets": [{"mixture": "raw30-blip2", "uri": "gs://bucket/datasets/x", "pairs": 5_000_000}],
    "best": {"mixture": "raw30-blip2", "metric": "average", "value": 0.317},
    "bestResult": "raw30-blip2 0.317",
    "cleaned": True,
}


def test_the_status_is_kept_whole_and_apart_from_the_spec(server: Server, recaption: str) -> None:
    status = with_condition(STATUS, "Accepted", True, "Valid", "the recipe is valid", 1, NOW)
    code, answer = server.patch(f"{recaption}/status", {"status": status, "spec": {"suspend": True}})
    assert code == 200, answer
    assert answer["status"] == status  # nothing is unknown to the schema
    assert (answer["spec"]["suspend"], answer["metadata"]["generation"]) == (False, 1)
    assert server.patch(recaption, {"status": {"phase": "Failed"}, "spec": {"suspend": True}})[0] == 200
    answer = server.ask("GET", recaption)[1]
    assert (answer["status"], answer["spec"]["suspend"]) == (status, True)
    for wrong in ({"phase": "Odd"}, {"stages": [{"name": "a"}, {"name": "a"}]}, {"observedGeneration": "1"}):
        assert server.patch(f"{recaption}/status", {"status": wrong})[0] == 422, wrong


def test_the_table_that_kubectl_prints(server: Server, recaption: str) -> None:
    status = with_condition(STATUS, "Accepted", True, "Valid", "the recipe is valid", 1, NOW)
    server.patch(f"{recaption}/status", {"status": status})
    table = server.ask("GET", recaption, accept="application/json;as=Table;v=v1;g=meta.k8s.io")[1]
    cells = dict(zip((c["name"] for c in table["columnDefinitions"]), table["rows"][0]["cells"], strict=True))
    shown = {c["name"] for c in table["columnDefinitions"] if not c["priority"]}
    assert shown == {"Name", "Phase", "Stage", "Progress", "Rate", "Best", "Age"}
    assert [cells[key] for key in ("Phase", "Stage", "Progress", "Rate", "Best", "Accepted", "Report")] == [
        *("Running", "caption", "120/800 shards", "75.2/s", "raw30-blip2 0.317", "Valid", "gs://bucket/report.html")
    ]


def test_objects_are_selected_by_pool_storage_and_phase(server: Server, recaption: str) -> None:
    server.patch(f"{recaption}/status", {"status": {"phase": "Suspended"}})
    for selector in ("spec.pool.name=medium", "spec.storage=gs://bucket/recaption", "status.phase=Suspended"):
        found = server.ask("GET", server.path(), fieldSelector=selector)[1]["items"]
        assert recaption.rpartition("/")[2] in [item["metadata"]["name"] for item in found], selector
    assert server.ask("GET", server.path(), fieldSelector="spec.pool.name=other")[1]["items"] == []


def test_a_schedules_template_may_change_and_its_status_is_kept_whole(server: Server) -> None:
    path = server.path(f"weekly-{uuid.uuid4().hex[:8]}", "RecaptionSchedule")
    status, answer = server.create(changed(SCHEDULE_BASE, {"metadata.name": path.rpartition("/")[2]}))
    assert status == 201, answer
    assert answer["spec"]["timeZone"] == "Etc/UTC"
    assert answer["spec"]["template"]["spec"]["compute"]["shardsPerTask"] == 8
    changes = {"storage": "gs://other", "pool": {"name": "dumps-{dump}"}, "compute": {"shardsPerTask": 2}}
    status, answer = server.patch(path, {"spec": {"template": {"spec": changes}}})
    assert status == 200, answer.get("message", answer)
    status, answer = server.patch(path, {"spec": {"template": {"spec": {"storage": "gs://b/{dump}"}}}})
    assert "found {dump} in it; a schedule's runs share one storage" in answer["message"]
    made = {"observedGeneration": 1, "lastScheduleTime": "2026-11-24T10:00:00Z", "pending": "CC-MAIN-2026-47"}
    made |= {
        "nextScheduleTime": "2026-11-25T10:00:00Z",
        "lastDump": "CC-MAIN-2026-43",
        "behind": 2,
        "active": ["a", "b"],
    }
    made = with_condition(made, "DumpsListed", True, "Listed", "the newest dump is CC-MAIN-2026-47", 1, NOW)
    assert server.patch(f"{path}/status", {"status": made})[1]["status"] == made
    server.ask("DELETE", path)


def test_an_object_of_an_older_crd_can_be_labelled_mended_and_ended(empty: Server) -> None:
    """What is no longer valid stays until it is touched; a finalizer comes off all the same."""
    old = empty.ours(recaption_crd())
    [version] = old["spec"]["versions"]
    version["schema"]["openAPIV3Schema"]["properties"]["spec"] = {"type": "object", ANY: True}
    del version["selectableFields"]
    empty.apply(old)
    value = changed(BAD_TOP_K, {"metadata.name": "older", "metadata.finalizers": ["a.example/b"]})
    until(lambda: empty.create(value)[0] in (201, 409), "the old CRD is served")
    empty.apply(empty.ours(recaption_crd()))
    until(lambda: empty.create(BAD_TOP_K, dry=True)[0] == 422, "the new CRD is served")

    path = empty.path("older")
    assert empty.patch(path, {"metadata": {"labels": {"a": "b"}}})[0] == 200
    assert empty.patch(f"{path}/status", {"status": {"phase": "Refused"}})[0] == 200
    assert empty.patch(path, {"spec": {"suspend": True}})[0] == 200  # topK isn't touched
    empty.ask("DELETE", path)
    assert empty.patch(path, {"metadata": {"finalizers": []}})[0] == 200
    until(lambda: empty.ask("GET", path)[0] == 404, "it is gone")


def kubectl(*arguments: str, text: str = "") -> subprocess.CompletedProcess[str]:
    if shutil.which("kubectl") is None:
        pytest.skip("no kubectl")
    return subprocess.run(["kubectl", *arguments], input=text, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("way", [[], ["--server-side"]])
def test_kubectl_applies_a_recipe_and_says_what_is_wrong(server: Server, way: list[str]) -> None:
    name = f"kubectl-{uuid.uuid4().hex[:8]}"
    text = yaml.safe_dump(changed(BASE, {"metadata.name": name, "apiVersion": f"{server.group}/v1alpha1"}))
    apply = ["apply", "-n", server.namespace, *way, "-f", "-"]
    done = kubectl(*apply, text=text)
    assert done.returncode == 0, done.stderr
    again = kubectl(*apply, text=text.replace("gs://bucket/recaption", "gs://elsewhere"))
    assert "spec.storage can't be changed; make another Recaption" in again.stderr
    typo = kubectl(*apply, text=text.replace("- raw30-blip2\n", "- raw30\n"))
    assert "raw30 is no mixture" in typo.stderr


def test_kubectl_explains(server: Server) -> None:
    version = f"--api-version={server.group}/v1alpha1"
    said = " ".join(kubectl("explain", "recaption.spec.mixtures", version).stdout.split())
    assert "The training sets to make: each picks a text per image, or drops the image." in said
    assert "rules <[]Object> -required- Rules, tried in this order; an image that none matches is dropped." in said
    said = " ".join(kubectl("explain", "recaption.spec.mixtures.rules.text", version).stdout.split())
    assert "concat <[]string> Texts joined by a space, in this order." in said
