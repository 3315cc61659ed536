"""Checks of what is recaption's own in the cluster: its kinds and its operator."""

from __future__ import annotations

from datetime import UTC, datetime

from components.base.version import version
from pipelines.doctor.finding import Context, Finding, broken, good, open_
from pipelines.doctor.installed import CRDS
from pipelines.doctor.rights import OPERATOR
from pipelines.kubernetes.cluster import LEASES, Cluster, Object
from pipelines.operator.crd.generate import recaption_crd, schedule_crd
from pipelines.operator.runtime import lease as leases
from pipelines.operator.runtime.conditions import condition, parse_time
from pipelines.operator.runtime.settings import Settings

CRD = "kubectl apply -k manifests/crd"
SKEW = 30.0  # seconds that this machine's clock may differ from the cluster's


def custom_resources(context: Context) -> Finding:
    """Check that our kinds are there, and as this recaption knows them."""
    wanted = {crd["metadata"]["name"]: crd for crd in (recaption_crd(), schedule_crd())}
    for name, crd in wanted.items():
        found = context.get(f"{CRDS}/{name}")
        if found is None:
            return broken(f"the cluster doesn't know {name}", CRD)
        established = condition(found, "Established")
        if established.get("status") != "True":
            why = condition(found, "NamesAccepted").get("message") or established.get("message") or "it is quite new"
            return broken(f"{name} is not established: {why}", f"kubectl describe crd {name}")
        if found["spec"]["versions"] != crd["spec"]["versions"]:
            return broken(f"{name} is another version's, not recaption {version()}'s", CRD)
    return good(f"{' and '.join(wanted)} are those of recaption {version()}")


def operator(context: Context) -> Finding:
    """Check that the operator's pod runs and answers its probe."""
    name, where = OPERATOR, context.operator_namespace
    found = context.get(deployment_path(where))
    if found is None:
        what = f"namespace {where} has no Deployment {name}"
        return broken(what, "kubectl apply -k manifests/overlays/local, or your own overlay of manifests/base")
    if condition(found, "Available").get("status") == "True":
        return good(f"Deployment {where}/{name} is available: {container_of(found).get('image')}")
    bad = {"ReplicaFailure": "True", "Progressing": "False", "Available": "False"}
    told = [c.get("message", kind) for kind in bad if (c := condition(found, kind)).get("status") == bad[kind]]
    why = told[0] if told else "no controller has looked at it yet"
    what = f"Deployment {where}/{name} is not available: {why}"
    remedy = f"kubectl describe -n {where} pods -l app.kubernetes.io/component=operator; kubectl logs -n {where} "
    return broken(what, f"{remedy}deployment/{name}")


def lease(context: Context) -> Finding:
    """Check that an operator acts, by this machine's clock."""
    where = f"{context.operator_namespace}/{leases.NAME}"
    logs = f"kubectl logs -n {context.operator_namespace} deployment/{OPERATOR}"
    found = context.api.within(context.operator_namespace).get(LEASES, leases.NAME)
    if found is None and context.get(deployment_path(context.operator_namespace)) is None:
        return open_("there is no operator to hold it")
    spec = (found or {}).get("spec", {})
    if not spec.get("holderIdentity") or "renewTime" not in spec:
        return broken(f"nobody holds the Lease {where}: no operator acts", logs)
    age = (datetime.now(UTC) - parse_time(spec["renewTime"])).total_seconds()
    what = f"{spec['holderIdentity']} holds the Lease {where}, renewed {max(0.0, age):.0f} s ago"
    if age > spec.get("leaseDurationSeconds", leases.DURATION) + SKEW:
        return broken(f"{what}: it no longer acts", logs)
    return good(what)


def settings(context: Context) -> Finding:
    """Check the operator's settings, which its environment gives it."""
    found = environment(context.api, context.operator_namespace)
    if found is None:
        return open_("there is no operator to ask")
    told = Settings.from_environment(found)
    watched = f"watches {', '.join(told.watched) or 'all namespaces'}"
    return good(
        f"KFP at {told.endpoint}, its pods in {told.kfp_namespace}; images {told.images}-*:{told.tag}; {watched}"
    )


def environment(cluster: Cluster, namespace: str) -> dict[str, str] | None:
    """Read the operator's environment from its Deployment and the ConfigMaps it names, not from Secrets."""
    found = cluster.ask("GET", deployment_path(namespace))
    if found is None:
        return None
    container, values = container_of(found), dict[str, str]()
    for source in container.get("envFrom", ()):
        if name := source.get("configMapRef", {}).get("name"):
            values |= (cluster.ask("GET", f"/api/v1/namespaces/{namespace}/configmaps/{name}") or {}).get("data", {})
    return values | {entry["name"]: entry["value"] for entry in container.get("env", ()) if "value" in entry}


def deployment_path(namespace: str) -> str:
    return f"/apis/apps/v1/namespaces/{namespace}/deployments/{OPERATOR}"


def container_of(deployment: Object) -> Object:
    """Return the operator's container."""
    containers: list[Object] = deployment["spec"]["template"]["spec"]["containers"]
    return containers[0]
