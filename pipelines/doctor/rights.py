"""Who must be allowed what, and whether they are: by access reviews, which change nothing."""

from __future__ import annotations

from dataclasses import dataclass

from pipelines.doctor.finding import Context, Finding, broken, good, open_
from pipelines.kubernetes.cluster import Object

REVIEWS = "/apis/authorization.k8s.io/v1"
OPERATOR = "recaption-operator"
KFP_ACCOUNTS = (
    "pipeline-runner",
    "default-editor",
)  # KFP's pods run as one of them: with one user, or in a profile
ALL = ""
"""Namespaces."""


@dataclass(frozen=True)
class RbacRule:
    """A rule as in a Role."""

    group: str
    resources: tuple[str, ...]
    verbs: tuple[str, ...]
    name: str = ""
    """Limits the rule to the object with this name."""


Rules = tuple[RbacRule, ...]

OPERATORS: Rules = (
    RbacRule("recaption.dev", ("recaptions",), ("get", "list", "watch", "create", "patch", "delete")),
    RbacRule("recaption.dev", ("recaptionschedules",), ("get", "list", "watch")),
    RbacRule("recaption.dev", ("recaptions/status", "recaptionschedules/status"), ("patch",)),
    RbacRule("recaption.dev", ("recaptionschedules/finalizers",), ("update",)),
    RbacRule("", ("events",), ("create",)),
    RbacRule("apiextensions.k8s.io", ("customresourcedefinitions",), ("list", "watch")),
    RbacRule("", ("namespaces",), ("list", "watch")),
)
"""The operator's rights where Recaptions are: manifests/base/cluster-role.yaml."""

OPERATORS_LEASE: Rules = (
    RbacRule("coordination.k8s.io", ("leases",), ("get", "patch"), OPERATOR),
    RbacRule("coordination.k8s.io", ("leases",), ("create",)),
)
"""The operator's rights in its own namespace: manifests/base/lease-role.yaml."""

OPERATORS_CLEANUP: Rules = (
    RbacRule("batch", ("jobs",), ("list", "delete")),
    RbacRule("trainer.kubeflow.org", ("trainjobs",), ("list", "delete")),
)
"""The operator's rights where the runs' pods are: manifests/pipeline/cleanup.yaml."""

LAUNCHERS: Rules = (
    RbacRule("batch", ("jobs",), ("create", "get", "list", "watch", "patch", "delete")),
    RbacRule("trainer.kubeflow.org", ("trainjobs",), ("create", "get", "list", "watch", "patch", "delete")),
    RbacRule("", ("pods",), ("get", "list")),
    RbacRule("", ("pods/log",), ("get",)),
    RbacRule("", ("events",), ("list",)),
    RbacRule("argoproj.io", ("workflows",), ("get",)),
)
"""The launcher's rights where the runs' pods are: manifests/pipeline/launcher.yaml."""

USERS: Rules = (
    RbacRule("recaption.dev", ("recaptions", "recaptionschedules"), ("create", "get", "list", "patch", "delete")),
)
"""A user's rights in their own namespace: manifests/base/{view,edit}.yaml."""


def operators_rights(context: Context) -> Finding:
    """Check the rights of the operator's service account, everywhere."""
    who, home = f"{context.operator_namespace}/{OPERATOR}", context.operator_namespace
    watched = context.settings.watched or (ALL,)
    lacks = [what for namespace in watched for what in lacking(context, who, OPERATORS, namespace)]
    lacks += lacking(context, who, OPERATORS_LEASE, home)
    ends = lacking(context, who, OPERATORS_CLEANUP, context.namespace)
    if not lacks and not ends:
        return good(f"service account {who} may do what the operator does")
    remedies = ["apply your overlay of manifests/base"] * bool(lacks) + [_pipeline(context)] * bool(ends)
    return broken(f"service account {who} may not {_some(lacks + ends)}", "; ".join(remedies))


def launchers_rights(context: Context) -> Finding:
    """Check the rights of the service account of the pipelines' nodes, where the runs' pods are."""
    name = kfp_account(context)
    if name is None:
        names = context.settings.kfp_service_account or " or ".join(KFP_ACCOUNTS)
        what = f"namespace {context.namespace} has no service account {names} for the nodes of KFP's pipelines"
        return broken(what, "name the namespace in which KFP runs its pods with --namespace, or install KFP")
    who = f"{context.namespace}/{name}"
    lacks = lacking(context, who, LAUNCHERS, context.namespace)
    if not lacks:
        return good(f"service account {who} may launch what the stages need")
    remedy = f"{_pipeline(context)}; its RoleBinding recaption-launcher must name {name}"
    return broken(f"service account {who} may not {_some(lacks)}", remedy)


def your_rights(context: Context) -> Finding:
    """Check the rights of whoever runs this, in the kubeconfig's namespace: they are no fault of the cluster."""
    where = context.api.namespace
    lacks = lacking(context, None, USERS, where)
    if not lacks:
        return good(f"you may make Recaptions in namespace {where}")
    remedy = "ask for a RoleBinding to ClusterRole edit, or kubectl config set-context --current --namespace ANOTHER"
    return open_(f"you may not {_some(lacks)}", remedy)


def accounts(context: Context) -> Finding:
    """Check for the service accounts of the launched pods."""
    names = sorted({tenancy.service_account for tenancy in context.tenancies})
    lacks = [name for name in names if not exists(context, "serviceaccounts", name, context.namespace)]
    if lacks:
        tenants = [name for name in lacks if name != "recaption"]
        remedies = [_pipeline(context)] * ("recaption" in lacks)
        remedies += [f"kubectl create serviceaccount -n {context.namespace} {name}" for name in tenants]
        return broken(f"namespace {context.namespace} has no service account {', '.join(lacks)}", "; ".join(remedies))
    return good(f"service account {context.namespace}/{', '.join(names)} is there, for the launched pods")


def kfp_account(context: Context) -> str | None:
    """Return the service account of the pipelines' nodes: the operator's setting, else the one of KFP's that exists."""
    names = [context.settings.kfp_service_account] if context.settings.kfp_service_account else KFP_ACCOUNTS
    return next((name for name in names if exists(context, "serviceaccounts", name, context.namespace)), None)


def lacking(context: Context, who: str | None, rules: Rules, namespace: str) -> list[str]:
    """List, as `verb/verb resource in namespace`, what an account (namespace/name; None: who asks) may not do."""
    found = []
    for rule in rules:
        for resource in rule.resources:
            verbs = [verb for verb in rule.verbs if not _may(context, who, verb, rule, resource, namespace)]
            if verbs:
                kind = f"{resource}.{rule.group}" if rule.group else resource
                place = f"namespace {namespace}" if namespace else "all namespaces"
                found.append(f"{'/'.join(verbs)} {kind} in {place}")
    return found


def _may(context: Context, who: str | None, verb: str, rule: RbacRule, resource: str, namespace: str) -> bool:
    plural, _, part = resource.partition("/")
    attributes = {"group": rule.group, "resource": plural, "subresource": part, "verb": verb}
    spec: Object = {"resourceAttributes": {**attributes, "namespace": namespace, "name": rule.name}}
    kind = "selfsubjectaccessreviews"
    if who:
        kind, (home, name) = "subjectaccessreviews", who.split("/")
        groups = ["system:serviceaccounts", f"system:serviceaccounts:{home}", "system:authenticated"]
        spec |= {"user": f"system:serviceaccount:{home}:{name}", "groups": groups}
    review = context.api.ask("POST", f"{REVIEWS}/{kind}", {"spec": spec}) or {}
    return bool(review.get("status", {}).get("allowed"))


def exists(context: Context, plural: str, name: str, namespace: str) -> bool:
    """Return whether there is such an object; nothing in it is read."""
    path = f"/api/v1/namespaces/{namespace}/{plural}/{name}"
    return context.api.ask("GET", path, only_metadata=True) is not None


def _pipeline(context: Context) -> str:
    return f"kubectl apply -n {context.namespace} -k manifests/pipeline"


def _some(lacks: list[str], shown: int = 4) -> str:
    more = [f"{len(lacks) - shown} more"] if len(lacks) > shown else []
    return ", ".join([*lacks[:shown], *more])
