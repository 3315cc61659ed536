"""What a tenant's recipe may ask of the cluster's nodes, as the operator's settings have it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from components.base.errors import PermanentError
from components.recipe.recipe import Spec
from components.recipe.yaml_io import check
from pipelines.operator.runtime.allowance import Allowance, NotAllowed
from pipelines.operator.runtime.conditions import condition
from pipelines.operator.runtime.settings import Settings
from tests.pipelines.operator.place import Place
from tests.pipelines.operator.schedule.test_decide import NOW, look, schedule

MANIFESTS = Path(__file__).parents[4] / "manifests"
KFP = {"KF_PIPELINES_ENDPOINT": "http://kfp"}


def recipe(text: str, storage: str = "gs://bucket/team") -> Spec:
    """A recipe's spec with this `compute`."""
    pool = {"name": "a", "shards": "gs://pool"}
    spec = {"storage": storage, "pool": pool, "mixtures": [{"name": "raw", "rules": [{"text": "raw"}]}]}
    return check(Spec, {**spec, "compute": yaml.safe_load(text)}, "spec")


def refused(text: str, **environment: str) -> list[str]:
    """The lines, without what each says of the setting; empty: it is allowed."""
    try:
        Settings.from_environment({**KFP, **environment}).tenants.of("team").allowance.check(recipe(text))
    except NotAllowed as error:
        return [line.partition(";")[0] for line in str(error).splitlines()]
    return []


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ("priorityClass: system-node-critical", "priorityClass: found system-node-critical"),
        ("priorityClass: system-cluster-critical", "priorityClass: found system-cluster-critical"),
        ("priorityClass: batch", ""),
        ("tolerations: [{operator: Exists}]", "tolerations[0].key: found nothing, which is every taint"),
        ("tolerations: [{operator: Exists, effect: NoExecute}]", "tolerations[0].key: found nothing, which is ev"),
        (
            "tolerations: [{key: a}, {key: node-role.kubernetes.io/control-plane, operator: Exists}]",
            "tolerations[1].key: found node-role.kubernetes.io/control-plane",
        ),
        (
            "tolerations: [{key: node.kubernetes.io/unschedulable, operator: Exists}]",
            "tolerations[0].key: found node.kubernetes.io/unschedulable",
        ),
        ("tolerations: [{key: nvidia.com/gpu, operator: Exists}, {key: team, value: research}]", ""),
        (
            "nodeSelector: {node-role.kubernetes.io/control-plane: ''}",
            "nodeSelector: found node-role.kubernetes.io/control-plane",
        ),
        ("nodeSelector: {kubernetes.io/role: master}", "nodeSelector: found kubernetes.io/role"),
        ("nodeSelector: {cloud.google.com/gke-accelerator: nvidia-l4}", ""),
        ("accelerator: {resource: devices.kubevirt.io/kvm}", "accelerator.resource: found devices.kubevirt.io/kvm"),
        ("accelerator: {}", ""),
        ("accelerator: {resource: amd.com/gpu}", ""),
        ("accelerator: {resource: nvidia.com/mig-1g.5gb}", ""),
        ("parallelism: 1000", ""),
    ],
)
def test_the_defaults_are_safe(asked: str, says: str) -> None:
    found = refused(f"pools: [{{name: a, {asked}}}]")
    assert [line[: len("spec.compute.pools[0].") + len(says)] for line in found] == (
        [f"spec.compute.pools[0].{says}"] if says else []
    )


def test_the_pods_of_all_pools_and_the_nodes_of_all_trainings_are_counted() -> None:
    pools = "pools: [{name: a, parallelism: 600}, {name: b, parallelism: 401}]"
    assert refused(pools) == ["spec.compute.pools: parallelism: found 1,001 in all"]
    assert refused(pools, RECAPTION_ALLOW_PARALLELISM="1001") == []
    assert refused("train: {nodes: 101, parallelism: 10}") == [
        "spec.compute.train: nodes × parallelism: found 1,010 in all"
    ]


def test_every_mistake_is_a_line_that_says_what_is_allowed_and_where_that_is_set() -> None:
    text = "pools: [{name: a, priorityClass: high, nodeSelector: {disk: ssd}, parallelism: 10000}]"
    settings = {"RECAPTION_ALLOW_PRIORITY_CLASSES": " batch-*, low ", "RECAPTION_ALLOW_NODE_SELECTORS": "!disk,pool"}
    with pytest.raises(NotAllowed) as caught:
        Settings.from_environment({**KFP, **settings}).tenants.of("team").allowance.check(recipe(text))
    assert str(caught.value).splitlines() == [
        "spec.compute.pools[0].priorityClass: found high; this cluster allows batch-*, low "
        "(RECAPTION_ALLOW_PRIORITY_CLASSES of the operator)",
        "spec.compute.pools[0].nodeSelector: found disk=ssd; this cluster allows pool but disk "
        "(RECAPTION_ALLOW_NODE_SELECTORS of the operator)",
        "spec.compute.pools: parallelism: found 10,000 in all; this cluster allows 1,000 "
        "(RECAPTION_ALLOW_PARALLELISM of the operator)",
    ]


def test_what_is_set_replaces_the_default() -> None:
    everything = "tolerations: [{operator: Exists}]"
    assert refused(f"pools: [{{name: a, {everything}}}]", RECAPTION_ALLOW_TOLERATIONS="<every>") == []
    assert refused("pools: [{name: a, priorityClass: x}]", RECAPTION_ALLOW_PRIORITY_CLASSES="!*") != []


def test_the_devices_of_all_pods_and_of_all_trainings_are_counted() -> None:
    pools = "pools: [{name: a, parallelism: 3, accelerator: {count: 2}}, {name: b, parallelism: 9}]"
    assert refused(pools, RECAPTION_ALLOW_GPUS="6") == []
    assert refused(pools, RECAPTION_ALLOW_GPUS="5") == [
        "spec.compute.pools: parallelism × accelerator.count: found 6 in all"
    ]
    assert refused("{}", RECAPTION_ALLOW_GPUS="7") == [
        "spec.compute.pools: parallelism × accelerator.count: found 8 in all"
    ], "without a pool, the pods take any node with a GPU"
    cores = "pools: [{name: a, accelerator: {count: 0}}], train: {nodes: 2, gpusPerNode: 0}"
    assert refused(f"{{{cores}}}", RECAPTION_ALLOW_GPUS="1") == []
    train = "pools: [{name: a, accelerator: {count: 1}, parallelism: 1}], train: {nodes: 2, parallelism: 3}"
    assert refused(f"{{{train}}}", RECAPTION_ALLOW_GPUS="5") == [
        "spec.compute.train: nodes × parallelism × gpusPerNode: found 6 in all"
    ]


@pytest.mark.parametrize(
    ("pattern", "taken"),
    [("disk", True), ("disk=ssd", True), ("disk=s*", True), ("disk=hdd", False), ("!disk=ssd,*", False)],
)
def test_a_node_selector_is_allowed_by_its_key_or_with_its_value(pattern: str, taken: bool) -> None:
    asked = "pools: [{name: a, nodeSelector: {disk: ssd}}]"
    assert (refused(asked, RECAPTION_ALLOW_NODE_SELECTORS=pattern) == []) == taken


@pytest.mark.parametrize("number", ["0", "many", "-1"])
def test_a_parallelism_that_is_no_number(number: str) -> None:
    with pytest.raises(PermanentError, match="RECAPTION_ALLOW_PARALLELISM: found"):
        Allowance.from_environment({"RECAPTION_ALLOW_PARALLELISM": number})


def test_the_operator_refuses_the_object_and_takes_it_when_it_asks_for_less(here: Place) -> None:
    pools: list[dict[str, Any]] = [{"name": "a", "priorityClass": "system-node-critical", "parallelism": 10_000}]
    here.apply(compute={"pools": pools})
    here.look()
    assert here.reason("Accepted") == "False NotAllowed"
    assert here.phase() == "Refused"
    message = condition(here.status(), "Accepted")["message"].splitlines()
    assert [line.partition(":")[0] for line in message] == [
        "spec.compute.pools[0].priorityClass",
        "spec.compute.pools",
    ]
    assert here.runs() == []
    here.apply(compute={"pools": [{"name": "a", "parallelism": 10}]})
    here.look()
    assert len(here.runs()) == 1
    here.play()
    here.apply(compute={"pools": pools})
    here.look()
    assert here.reason("Accepted") == "False NotAllowed"
    assert here.phase() == "Running", "what runs as it was allowed goes on"


def test_a_schedule_is_refused_too() -> None:
    thing = schedule()
    thing["spec"]["template"]["spec"]["compute"] = {"pools": [{"name": "a", "parallelism": 5000}]}
    found = condition(look(thing, NOW).status, "Accepted")
    assert (found["status"], found["reason"]) == ("False", "NotAllowed")
    assert found["message"].startswith("spec.template.spec.compute.pools: parallelism: found 5,000")


def test_the_base_has_the_defaults_for_people_to_see_and_change() -> None:
    base = yaml.safe_load((MANIFESTS / "base" / "kustomization.yaml").read_text())
    given = dict(literal.split("=", 1) for literal in base["configMapGenerator"][0]["literals"])
    assert sum(name.startswith("RECAPTION_ALLOW_") for name in given) == 7
    assert Allowance.from_environment(given) == Allowance()


@pytest.mark.parametrize("path", sorted((MANIFESTS / "samples").glob("*.yaml")), ids=lambda path: path.stem)
def test_the_samples_ask_for_what_is_allowed(path: Path) -> None:
    spec = yaml.safe_load(path.read_text())["spec"]
    spec = spec.get("template", {}).get("spec", spec)
    Allowance().check(recipe(yaml.safe_dump(spec.get("compute", {})), spec["storage"]))
