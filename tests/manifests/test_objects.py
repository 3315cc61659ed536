"""The manifests as kubectl renders them: valid objects, pinned images, and rights that are exactly these.

After a wanted change: `python -m tests.manifests.test_objects` writes the golden file anew; read the difference.
"""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from pathlib import Path

import kubernetes_validate
import pytest
import yaml

from components.storage.secret import VARIABLE
from pipelines.operator.runtime.settings import Settings
from tests.manifests.rendering import MANIFESTS, Object, folders, kustomize, named, one, pods, render

GOLDEN = Path(__file__).parent / "golden" / "base.yaml"
RENDERED = folders("Kustomization") + folders("Component")
OVERLAYS = [f"overlays/{name}" for name in ("eks", "gke", "local", "on-premises", "openshift")]
INSTALLATIONS = ["base", *OVERLAYS]
GENERATED = ("CustomResourceDefinition",)
LARGEST_ANNOTATION = 256 * 1024  # bytes of all annotations of an object
# Kinds whose schema isn't Kubernetes' own; TrainJobs and our runtime are checked in tests/pipelines/kubernetes.
OTHERS = {
    "ClusterTrainingRuntime.trainer.kubeflow.org",
    *(f"{kind}.kueue.x-k8s.io" for kind in ("ResourceFlavor", "ClusterQueue", "LocalQueue")),
    "PrometheusRule.monitoring.coreos.com",
    "ServiceMonitor.monitoring.coreos.com",
    "PodMonitoring.monitoring.googleapis.com",
}
# The operator's rights: by resource, verbs.
EVERYWHERE = {
    "recaptions.recaption.dev": "get list watch create patch delete",
    "recaptions/status.recaption.dev": "patch",
    "recaptionschedules.recaption.dev": "get list watch",
    "recaptionschedules/status.recaption.dev": "patch",
    "recaptionschedules/finalizers.recaption.dev": "update",
    "events": "create",
    "customresourcedefinitions.apiextensions.k8s.io": "list watch",
    "namespaces": "list watch",
}
IN_ITS_OWN = {
    "leases.coordination.k8s.io/recaption-operator": "get patch",
    "leases.coordination.k8s.io": "create",
}
WHERE_KFP_RUNS = {"jobs.batch": "list delete", "trainjobs.trainer.kubeflow.org": "list delete"}


@pytest.mark.parametrize("path", sorted(MANIFESTS.rglob("*.yaml")), ids=lambda p: str(p.relative_to(MANIFESTS)))
def test_the_first_line_says_what_a_file_is_for(path: Path) -> None:
    assert path.read_text().startswith("# ")


@pytest.mark.parametrize("folder", RENDERED)
@pytest.mark.parametrize("version", ["1.33", "1.37"])
def test_objects_are_valid(folder: str, version: str) -> None:
    rendered = [o for o in render(folder) if _kind(o) not in OTHERS]
    for value in rendered:
        kubernetes_validate.validate(value, version, strict=True)
    assert rendered or folder in ("training", "overlays/coscheduling")


def test_no_kind_is_left_unchecked_in_vain() -> None:
    assert {_kind(o) for folder in RENDERED for o in render(folder)} >= OTHERS


@pytest.mark.parametrize("folder", RENDERED)
def test_no_object_comes_twice(folder: str) -> None:
    keys = Counter((_kind(o), o["metadata"].get("namespace"), o["metadata"]["name"]) for o in render(folder))
    assert set(keys.values()) == {1}


@pytest.mark.parametrize("folder", RENDERED)
def test_kubectl_apply_can_keep_what_it_applied(folder: str) -> None:
    """It does so in an annotation, and annotations have a limit."""
    assert all(len(json.dumps(o)) < LARGEST_ANNOTATION for o in render(folder))


def test_the_base_is_its_golden_file() -> None:
    assert _base() == list(yaml.safe_load_all(GOLDEN.read_text()))


def test_the_base_brings_the_custom_resources() -> None:
    kinds = {o["spec"]["names"]["kind"] for o in named(render("base"), "CustomResourceDefinition").values()}
    assert kinds == {"Recaption", "RecaptionSchedule"}


@pytest.mark.parametrize("folder", INSTALLATIONS)
def test_images_are_pinned_and_the_runs_have_the_operators(folder: str) -> None:
    (image,) = (
        c["image"] for o in render(folder) if o["kind"] == "Deployment" for _, _, s in pods(o) for c in s["containers"]
    )
    name, _, tag = image.rpartition(":")
    assert tag not in ("", "latest")
    assert "/" not in tag
    settings = Settings.from_environment(_settings(folder))
    assert f"{settings.images}-operator:{settings.tag}" == image, name


@pytest.mark.parametrize("folder", INSTALLATIONS)
def test_the_deployment_reads_the_settings_that_are_rendered(folder: str) -> None:
    """kustomize puts a hash of its content behind the name of a ConfigMap, so that a change starts a new pod."""
    deployment = one(render(folder), "Deployment", "recaption-operator")
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    (config,) = container["envFrom"]
    assert f"recaption/{config['configMapRef']['name']}" in named(render(folder), "ConfigMap")
    told = {e["name"]: e["valueFrom"]["fieldRef"]["fieldPath"] for e in container["env"] if "valueFrom" in e}
    assert told == {"POD_NAME": "metadata.name", "POD_NAMESPACE": "metadata.namespace"}


@pytest.mark.parametrize("folder", INSTALLATIONS)
def test_the_operator_reads_its_secret_from_files(folder: str) -> None:
    """A variable of its environment would stay as it was when the pod started: a Secret may come later, and change."""
    pod = one(render(folder), "Deployment", "recaption-operator")["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    (place,) = (e["value"] for e in container["env"] if e["name"] == VARIABLE)
    (volume,) = (mount["name"] for mount in container["volumeMounts"] if mount["mountPath"] == place)
    (secret,) = (v["secret"] for v in pod["volumes"] if v["name"] == volume)
    assert (secret["secretName"], secret["optional"]) == ("recaption", True)
    assert secret["defaultMode"] & 0o040, "fsGroup gives the files to the operator's group"
    assert not any("secretRef" in source for source in container["envFrom"])


def test_what_the_api_server_would_fill_into_lists_is_written() -> None:
    """Otherwise every `kubectl apply` changes an object of which nothing has changed."""
    pod = one(render("base"), "Deployment", "recaption-operator")["spec"]["template"]["spec"]
    references = [e["valueFrom"]["fieldRef"] for e in pod["containers"][0]["env"] if "valueFrom" in e]
    assert [reference["apiVersion"] for reference in references] == ["v1", "v1"]


@pytest.mark.parametrize("folder", INSTALLATIONS)
def test_no_namespace_of_others_is_taken_with_it(folder: str) -> None:
    """`kubectl delete -k` deletes every namespace that a folder has, with all that others have put there."""
    assert set(named(render(folder), "Namespace")) == {"recaption"}


@pytest.mark.parametrize("folder", INSTALLATIONS)
def test_the_operators_rights_are_exactly_these(folder: str) -> None:
    rendered = render(folder)
    assert _rights(one(rendered, "ClusterRole", "recaption-operator")) == EVERYWHERE
    assert _rights(one(rendered, "Role", "recaption-operator", "recaption")) == IN_ITS_OWN
    assert _rights(one(rendered, "Role", "recaption-operator-cleanup", "kubeflow")) == WHERE_KFP_RUNS


@pytest.mark.parametrize("folder", INSTALLATIONS)
def test_the_operator_is_bound_to_these_roles_and_nobody_else_is(folder: str) -> None:
    operator = {"kind": "ServiceAccount", "name": "recaption-operator", "namespace": "recaption"}
    bindings = named(render(folder), "ClusterRoleBinding") | named(render(folder), "RoleBinding")
    subjects = {f"{where} {o['roleRef']['name']}": o["subjects"] for where, o in bindings.items()}
    if folder == "overlays/openshift":
        runs = [{**operator, "name": name, "namespace": "kubeflow"} for name in ("recaption", "pipeline-runner")]
        assert subjects.pop("recaption/recaption-operator-nonroot system:openshift:scc:nonroot-v2") == [operator]
        assert subjects.pop("kubeflow/recaption-runs-nonroot system:openshift:scc:nonroot-v2") == runs
    assert subjects == {
        "recaption-operator recaption-operator": [operator],
        "recaption/recaption-operator recaption-operator": [operator],
        "kubeflow/recaption-operator-cleanup recaption-operator-cleanup": [operator],
        "kubeflow/recaption-launcher recaption-launcher": [{"kind": "ServiceAccount", "name": "pipeline-runner"}],
    }
    assert "recaption/recaption-operator" in named(render(folder), "ServiceAccount")


def test_users_get_the_custom_resources_with_kubernetes_own_roles() -> None:
    """The role edit has view's rights, admin has edit's: Kubernetes aggregates them so."""
    view, edit = (one(render("base"), "ClusterRole", f"recaption-{name}") for name in ("view", "edit"))
    kinds = ("recaptions.recaption.dev", "recaptionschedules.recaption.dev")
    assert _rights(view) == dict.fromkeys(kinds, "get list watch")
    assert _rights(edit) == dict.fromkeys(kinds, "create update patch delete deletecollection")
    for name, role in (("view", view), ("edit", edit)):
        for key in (
            f"rbac.authorization.k8s.io/aggregate-to-{name}",
            f"rbac.authorization.kubeflow.org/aggregate-to-kubeflow-{name}",
        ):
            assert role["metadata"]["labels"][key] == "true"


@pytest.mark.parametrize("folder", RENDERED)
def test_no_role_has_a_wildcard_or_secrets(folder: str) -> None:
    roles = (named(render(folder), "ClusterRole") | named(render(folder), "Role")).values()
    for right in (right for role in roles for resource, verbs in _rights(role).items() for right in (resource, verbs)):
        assert "*" not in right
        assert not right.startswith("secrets")


def test_the_local_overlay_needs_nothing_but_kubernetes_and_kfp() -> None:
    """So that it applies to a bare API server that has KFP's namespace: it has no kind of others."""
    rendered = render("overlays/local")
    assert not {_kind(o) for o in rendered} & OTHERS
    namespaces = {o["metadata"]["namespace"] for o in rendered if "namespace" in o["metadata"]}
    assert namespaces == {"recaption", "kubeflow"}


def test_on_gke_every_account_has_a_google_account() -> None:
    accounts = named(render("overlays/gke"), "ServiceAccount")
    assert set(accounts) == {"recaption/recaption-operator", "kubeflow/recaption"}
    for account in accounts.values():
        assert account["metadata"]["annotations"]["iam.gke.io/gcp-service-account"].startswith("recaption@")


def test_an_overlay_of_another_repository_changes_what_it_must(tmp_path: Path) -> None:
    """As docs/how-to/cluster.md shows it, with a folder in the place of the remote address."""
    page = (MANIFESTS.parent / "docs" / "how-to" / "cluster.md").read_text(encoding="utf-8")
    (text,) = re.findall(r"```yaml\n(apiVersion: kustomize[^`]*?resources:\n[^`]*?)```", page)
    (address,) = yaml.safe_load(text)["resources"]
    overlay = re.fullmatch(r"https://[a-z.]+/[^/]+/recaption//manifests/(overlays/[a-z-]+)\?ref=\S+", address)
    assert overlay, "the form that kustomize takes"
    place = os.path.relpath(MANIFESTS.resolve() / overlay[1], tmp_path.resolve())
    (tmp_path / "kustomization.yaml").write_text(text.replace(address, place))
    (tmp_path / "tenants.yaml").write_text("tenants: [{namespaces: [vision]}]\n")
    mine = kustomize(tmp_path)
    (deployment,) = named(mine, "Deployment").values()
    assert deployment["spec"]["template"]["spec"]["containers"][0]["image"] == "my.registry/team/recaption-operator:1.0"
    settings = Settings.from_environment(next(o["data"] for o in mine if o["kind"] == "ConfigMap" and o["data"]))
    assert (settings.images, settings.tag) == ("my.registry/team/recaption", "1.0")
    assert settings.tenants.listed[0].namespaces == ["vision"]


def test_prometheus_finds_the_operators_port() -> None:
    service = one(render("base"), "Service", "recaption-operator")
    template = one(render("base"), "Deployment", "recaption-operator")["spec"]["template"]
    ports = {port["name"] for port in template["spec"]["containers"][0]["ports"]}
    assert service["spec"]["selector"].items() <= template["metadata"]["labels"].items()
    assert {port["targetPort"] for port in service["spec"]["ports"]} <= ports
    monitor = one(render("components/prometheus"), "ServiceMonitor", "recaption-operator")["spec"]
    assert monitor["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
    assert {e["port"] for e in monitor["endpoints"]} == {port["name"] for port in service["spec"]["ports"]}
    google = one(render("overlays/gke"), "PodMonitoring", "recaption-operator")["spec"]
    assert google["selector"]["matchLabels"].items() <= template["metadata"]["labels"].items()
    assert {e["port"] for e in google["endpoints"]} <= ports


def _kind(value: Object) -> str:
    group, slash, _ = value["apiVersion"].partition("/")
    return f"{value['kind']}.{group}" if slash else value["kind"]


def _rights(role: Object) -> dict[str, str]:
    """Verbs by resource, as `resource.group/name`."""
    found: dict[str, str] = {}
    for rule in role["rules"]:
        for group in rule["apiGroups"]:
            for resource in rule["resources"]:
                for name in rule.get("resourceNames", [""]):
                    key = f"{resource}{'.' * bool(group)}{group}{'/' * bool(name)}{name}"
                    assert key not in found
                    found[key] = " ".join(rule["verbs"])
    return found


def _settings(folder: str) -> dict[str, str]:
    (found,) = (o["data"] for o in render(folder) if o["kind"] == "ConfigMap" and "KF_PIPELINES_ENDPOINT" in o["data"])
    return dict(found)


def _base() -> list[Object]:
    """Without what is generated from the recipe's models, and checked there."""
    return [o for o in render("base") if o["kind"] not in GENERATED]


if __name__ == "__main__":
    GOLDEN.write_text("---\n".join(yaml.safe_dump(o, sort_keys=False) for o in _base()))
