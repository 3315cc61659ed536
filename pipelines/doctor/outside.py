"""KFP and the storage, asked from this machine."""

from __future__ import annotations

from dataclasses import replace
from uuid import uuid4

from components.storage.local import LocalStorage
from components.storage.opening import open_storage
from pipelines.doctor.finding import Context, Finding, broken, good, open_

CANARY, ANOTHER = b"recaption doctor: may be deleted\n", b"recaption doctor: must not be seen\n"


def kfp(context: Context) -> Finding:
    """Check that KFP answers and lets us in."""
    if context.kfp is None:
        forward = f"kubectl port-forward -n {context.settings.kfp_namespace} svc/ml-pipeline 8888"
        return open_("not checked: its endpoint isn't given", f"{forward}, and --kfp http://localhost:8888")
    from pipelines.kubeflow.client import Pipelines

    pipelines = Pipelines(context.kfp)
    if pipelines.multi_user:
        pipelines = Pipelines(replace(context.kfp, namespace=context.namespace))
    pipelines.find("recaption-doctor")  # healthz lets everybody in
    users = f"several users, asked for namespace {context.namespace}" if pipelines.multi_user else "one user"
    return good(f"{context.kfp.host} answers: version {pipelines.version}, {users}")


def storage(context: Context) -> Finding:
    """Check that a canary can be created, once, read and deleted."""
    if context.storage is None:
        return open_("not checked: none is given", "--storage with the spec.storage of your recipes")
    store, path = open_storage(context.storage), f"recaption-doctor/{uuid4().hex}"
    if not store.create(path, CANARY):
        return broken(f"{store.uri}: reports {path} as existing, which it can't be", "use another store")
    try:
        replaced = store.create(path, ANOTHER) or store.read(path) != CANARY
    finally:
        store.delete(path)
    if replaced:
        what = f"{store.uri}: creates what is there already, so that of two workers the first one's result is lost"
        return broken(what, "use a store that honours If-None-Match")
    if store.size(path) is not None:
        return broken(f"{store.uri}: {path} is still there after it was deleted", "look at the bucket's retention")
    local = "; it is a folder of this machine: pods see it only where it is mounted"
    pods = local if isinstance(store, LocalStorage) else "; pods may have other rights"
    return good(f"{store.uri}: created once, read and deleted from this machine{pods}")
