"""Checks of what the operator's settings give the pods of all runs: a proxy, the registry's Secrets, a cache."""

from __future__ import annotations

from collections.abc import Iterator
from urllib.parse import urlsplit

from requests.utils import should_bypass_proxies

from pipelines.doctor.finding import Context, Finding, broken, good
from pipelines.doctor.rights import exists
from pipelines.kubernetes.pod_settings import PULL_SECRETS, VOLUME

CHANGE = "in the overlay's ConfigMap recaption-settings"
ENFORCE = "pod-security.kubernetes.io/enforce"  # label of a namespace
SHARED = {"ReadWriteMany"}  # access modes by which pods of several nodes write to one volume


def pods(context: Context) -> Finding:
    """Check that pods can start with these settings, and that no proxy comes between them and the cluster."""
    assert context.api  # else there is nobody to ask, and nothing to say
    given = context.settings.pods
    if trouble := next((found for check in (_pull_secrets, _cache, _proxy) for found in check(context)), None):
        return trouble
    named = [name for name, _ in given.variables]
    if given.pull_secrets:
        named.append(f"Secrets {', '.join(given.pull_secrets)} of the registry")
    named.append(f"a cache of models in {given.volume}" if given.volume else "no common cache of models")
    return good(f"they get {', '.join(named)}")


def _pull_secrets(context: Context) -> Iterator[Finding]:
    for name in context.settings.pods.pull_secrets:
        if not exists(context, "secrets", name, context.namespace):
            what = f"{PULL_SECRETS}: namespace {context.namespace} has no Secret {name}"
            yield broken(what, f"kubectl create secret docker-registry {name} -n {context.namespace} …")


def _cache(context: Context) -> Iterator[Finding]:
    volume, where = context.settings.pods.volume, context.namespace
    if volume.startswith("/"):
        labels = (context.get(f"/api/v1/namespaces/{where}") or {}).get("metadata", {}).get("labels", {})
        if labels.get(ENFORCE) in ("baseline", "restricted"):
            what = f"{VOLUME}: namespace {where} is {labels[ENFORCE]}, which lets no pod have the nodes' {volume}"
            yield broken(what, f"name a PersistentVolumeClaim {CHANGE}, or label the namespace {ENFORCE}=privileged")
    elif volume:
        claim = context.get(f"/api/v1/namespaces/{where}/persistentvolumeclaims/{volume}")
        if claim is None:
            what = f"{VOLUME}: namespace {where} has no PersistentVolumeClaim {volume}"
            yield broken(what, f"make it, with ReadWriteMany, or change {VOLUME} {CHANGE}")
        elif not SHARED & {*(modes := claim["spec"]["accessModes"])}:
            what = f"{VOLUME}: {where}/{volume} is {', '.join(modes)}, which pods of several nodes can't share"
            yield broken(what, "make a PersistentVolumeClaim with ReadWriteMany")


def _proxy(context: Context) -> Iterator[Finding]:
    """Find what of the cluster itself the pods would ask through the proxy."""
    variables = dict(context.settings.pods.variables)
    direct = variables.get("NO_PROXY", "")
    if not {"HTTP_PROXY", "HTTPS_PROXY"} & variables.keys():
        return
    server = (context.get("/api/v1/namespaces/default/services/kubernetes") or {}).get("spec", {}).get("clusterIP")
    for url in (context.settings.endpoint, f"https://{server}" if server else ""):
        if url and not should_bypass_proxies(url, direct):
            what = (
                f"NO_PROXY: {direct or 'nothing'} leaves out {urlsplit(url).hostname}, so it is asked through the proxy"
            )
            yield broken(what, f"add it {CHANGE}")
