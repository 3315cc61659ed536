"""The Secrets with keys of a storage, or of the model hub: whether they are there. Nothing in them is read."""

from __future__ import annotations

import os

from pipelines.doctor.finding import Context, Finding, State, broken, good, open_
from pipelines.doctor.ours import container_of, deployment_path
from pipelines.doctor.rights import exists
from pipelines.kubernetes.cluster import Object


def runs_secret(context: Context) -> Finding:
    """Look for the Secret whose keys become environment variables of the runs' pods."""
    needed = "needed only for HF_TOKEN, or where the pods' identity isn't enough for the storage"
    found = [_look_for(context, context.namespace, name, needed) for name in _secrets(context)]
    return next((finding for finding in found if finding.state is not State.GOOD), found[0])


def _secrets(context: Context) -> list[str]:
    return sorted({tenancy.secret for tenancy in context.tenancies})


def operators_secret(context: Context) -> Finding:
    """Look for the Secret that the operator's Deployment mounts."""
    deployment = context.get(deployment_path(context.operator_namespace))
    if deployment is None:
        return open_("there is no operator to read it")
    name = _mounted(deployment)
    if name is None:
        return open_("the operator's Deployment mounts no Secret", "apply your overlay of manifests/base")
    needed = "needed only where the operator's identity isn't enough for the storage; it may come at any time"
    return _look_for(context, context.operator_namespace, name, needed)


def _look_for(context: Context, namespace: str, name: str, needed: str) -> Finding:
    if exists(context, "secrets", name, namespace):
        return good(f"Secret {namespace}/{name} is there; what is in it is not read")
    if not _needs_keys(context):
        return open_(f"namespace {namespace} has no Secret {name}", needed)
    what = f"namespace {namespace} has no Secret {name}, so its pods have no keys of {context.storage}"
    return broken(what, f"kubectl create secret generic {name} -n {namespace} --from-env-file=FILE, with its AWS_…")


def _needs_keys(context: Context) -> bool:
    """Return whether this machine's environment names an S3 store other than AWS, where no pod has an identity."""
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    return bool(endpoint) and (context.storage or "").startswith("s3://")


def _mounted(deployment: Object) -> str | None:
    """Return the name of the Secret that is mounted where the operator's container is told to read one."""
    container, volumes = container_of(deployment), deployment["spec"]["template"]["spec"].get("volumes", ())
    places = [entry.get("value") for entry in container.get("env", ()) if entry["name"] == "RECAPTION_SECRET_FOLDER"]
    mounts = [mount["name"] for mount in container.get("volumeMounts", ()) if mount["mountPath"] in places]
    found = (volume["secret"]["secretName"] for volume in volumes if volume["name"] in mounts and "secret" in volume)
    return next(found, None)
