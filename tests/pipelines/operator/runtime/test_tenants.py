"""What the operator's settings allow the recipes of each namespace, and whom their pods run as."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from components.base.errors import PermanentError
from pipelines.operator.runtime.allowance import NotAllowed
from pipelines.operator.runtime.conditions import condition
from pipelines.operator.runtime.settings import Settings
from pipelines.operator.runtime.tenants import Tenants
from tests.pipelines.operator.place import NAMESPACE, Place
from tests.pipelines.operator.runtime.test_allowance import KFP, recipe
from tests.pipelines.operator.schedule.test_decide import NOW, look, schedule

TEXT = """
tenants:
- namespaces: [vision, vision-*]
  storages: ["gs://bucket/vision/*", "gs://scratch/*"]
  nodeSelectors: ["cloud.google.com/gke-nodepool=vision-*"]
  parallelism: 20
  gpus: 4
  serviceAccount: vision
  secret: vision-keys
- namespaces: ["*"]
  priorityClasses: [low]
"""
POOL = "{name: a, parallelism: 4, accelerator: {}}"


def tenants(text: str = TEXT, **environment: str) -> Tenants:
    return Settings.from_environment({**KFP, "RECAPTION_TENANTS": text, **environment}).tenants


def refused(namespace: str, compute: str, storage: str) -> list[str]:
    try:
        tenants().of(namespace).allowance.check(recipe(compute, storage))
    except NotAllowed as error:
        return str(error).splitlines()
    return []


@pytest.mark.parametrize(
    ("storage", "taken"),
    [
        ("gs://bucket/vision/run", True),
        ("gs://scratch/x", True),
        ("gs://bucket/visions", False),
        ("gs://bucket/language/run", False),
        ("s3://bucket/vision/run", False),
        ("gs://bucket/vision/../language/run", False),
    ],
)
def test_a_tenant_writes_to_its_own_storages(storage: str, taken: bool) -> None:
    found = refused("vision-a", f"pools: [{POOL}]", storage)
    allowed = "this cluster allows gs://bucket/vision/*, gs://scratch/*"
    where = "(storages of vision, vision-* in RECAPTION_TENANTS of the operator)"
    assert found == ([] if taken else [f"spec.storage: found {storage}; {allowed} {where}"])


def test_a_tenant_has_limits_of_its_own_and_else_those_of_all() -> None:
    pools = "[{name: a, parallelism: 21, accelerator: {}, nodeSelector: {cloud.google.com/gke-nodepool: other}}]"
    compute = f"{{pools: {pools}, train: {{nodes: 1, gpusPerNode: 4}}}}"
    assert [line.partition(":")[0] for line in refused("vision", compute, "gs://scratch/x")] == [
        "spec.compute.pools[0].nodeSelector",
        "spec.compute.pools",
        "spec.compute.pools",
    ]
    assert refused("language", compute, "gs://anywhere") == []
    low = "pools: [{name: a, priorityClass: system-node-critical}]"
    assert "allows low (priorityClasses of *" in refused("language", low, "gs://anywhere")[0]
    shared = "but system-* (RECAPTION_ALLOW_PRIORITY_CLASSES of the operator)"
    one = "pools: [{name: a, parallelism: 1, accelerator: {}, priorityClass: system-node-critical}]"
    assert shared in refused("vision", one, "gs://scratch/x")[0]


def test_the_pods_of_a_tenant_run_as_its_account_with_its_secret() -> None:
    mine, other = tenants().of("vision"), tenants(RECAPTION_JOB_SERVICE_ACCOUNT="all").of("language")
    assert (mine.service_account, mine.secret) == ("vision", "vision-keys")
    assert (other.service_account, other.secret) == ("all", "recaption")


def test_the_tenants_of_the_how_to_are_valid() -> None:
    page = Path(__file__).parents[4] / "docs" / "how-to" / "cluster.md"
    (text,) = re.findall(r"```yml\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    assert [tenant.gpus for tenant in tenants(text).listed] == [16, 2]


def test_a_namespace_of_no_tenant_is_refused() -> None:
    with pytest.raises(NotAllowed) as caught:
        tenants("tenants: [{namespaces: [vision, audio-*]}]").of("language")
    says = "namespace language: this cluster allows vision, audio-* (RECAPTION_TENANTS of the operator)"
    assert str(caught.value) == says


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[a]", "RECAPTION_TENANTS: expected a mapping with the key tenants, a list"),
        ("tenants: [{storages: [x]}]", "RECAPTION_TENANTS: tenants[0].namespaces: "),
        ("tenants: [{namespaces: [a], gpu: 4}]", "RECAPTION_TENANTS: tenants[0].gpu: "),
        ("tenants: [{namespaces: [a], gpus: 0}]", "RECAPTION_TENANTS: tenants[0].gpus: "),
        ("tenants: []", "RECAPTION_TENANTS: tenants: "),
    ],
)
def test_a_mistake_in_the_setting_is_a_line(text: str, says: str) -> None:
    with pytest.raises(PermanentError) as caught:
        tenants(text)
    assert str(caught.value).startswith(says)


def test_the_operator_holds_a_recaption_to_its_namespaces_limits(here: Place) -> None:
    mine = {"namespaces": [NAMESPACE], "storages": [f"{here.folder}/*"], "serviceAccount": "team", "parallelism": 5}
    text = yaml.safe_dump({"tenants": [mine]})
    here.deps = replace(here.deps, settings=replace(here.deps.settings, tenants=tenants(text)))
    here.apply(compute={"pools": [{"name": "a", "parallelism": 6}]})
    here.look()
    assert here.reason("Accepted") == "False NotAllowed"
    assert "parallelism of research in RECAPTION_TENANTS" in condition(here.status(), "Accepted")["message"]
    here.apply(compute={"pools": [{"name": "a", "parallelism": 5}]})
    here.look()
    (run,) = here.runs()
    assert run["runtime_config"]["parameters"]["job_service_account"] == "team"


def test_a_schedule_of_no_tenant_is_refused_and_its_recipes_storage_is_checked() -> None:
    thing = schedule()
    for namespaces, says in ((["elsewhere"], "namespace "), ([thing["metadata"]["namespace"]], "spec.template.spec.s")):
        text = yaml.safe_dump({"tenants": [{"namespaces": namespaces, "storages": ["gs://other/*"]}]})
        found = condition(look(thing, NOW, tenants=tenants(text)).status, "Accepted")
        assert (found["status"], found["reason"]) == ("False", "NotAllowed")
        assert found["message"].startswith(says)
