"""The recipe that a Recaption asks for, and the attempt that executes it: one KFP run, written into status.kfp."""

from __future__ import annotations

from components.base.hashing import content_hash, said
from components.recipe.recipe import Recipe
from components.recipe.yaml_io import check
from pipelines.kubeflow.parameters import refuse_networks
from pipelines.operator.runtime.conditions import Object
from pipelines.operator.runtime.tenants import Tenants

RETRY = "recaption.dev/retry"  # annotation: any new value starts a failed run again


def recipe_of(thing: Object, tenants: Tenants) -> Recipe:
    """Return the recipe of a Recaption.

    Raises:
        PermanentError: what `recaption validate` says, a line per mistake; or that a cluster refuses it.
        NotAllowed: it asks for more than the operator's settings allow its namespace.
    """
    whole: Object = {key: thing[key] for key in ("apiVersion", "kind", "spec") if key in thing}
    recipe = check(Recipe, {**whole, "metadata": {"name": thing["metadata"]["name"]}}, "recipe")
    refuse_networks(recipe)  # the CRD may be an older one, without that rule
    tenants.of(thing["metadata"]["namespace"]).allowance.check(recipe.spec)
    return recipe


def retry_of(thing: Object) -> str:
    """Return the value of the annotation that asks for a failed run to be started again; empty without one."""
    return str(thing["metadata"].get("annotations", {}).get(RETRY, ""))


def is_under_way(thing: Object) -> bool:
    """Return whether an attempt was written down and still has to end or to be cleaned up."""
    status = thing.get("status", {})
    kfp = status.get("kfp", {})
    return bool(kfp) and not (status.get("cleaned") and (status.get("completionTime") or kfp.get("refused")))


def attempt_for(thing: Object, recipe: Recipe) -> Object:
    """Return the attempt that the object asks for: the one that is written down, or a new one."""
    spec, status = recipe.spec, thing["status"]
    compute = content_hash(spec.compute.without_prices())  # another price starts nothing again
    hashed = {"hash": content_hash(said(spec, "suspend", "compute")), "compute": compute}
    have: Object = status.get("kfp", {})
    if have.get("hash") == hashed["hash"]:
        failed = (status.get("phase") == "Failed" and not is_under_way(thing)) or "restartTime" in status
        other = retry_of(thing) != status.get("retried", "") or have["compute"] != hashed["compute"]
        if not (failed and other) and not have.get("refused"):  # that one KFP could not resume, or we ended it
            return have
    number = status.get("attempts", 0) + 1  # never counted back: a KFP run's name stands for one attempt
    return {**hashed, "name": _kfp_run_name(thing, hashed["hash"], number)}


def is_automatic_restart(thing: Object, attempt: Object) -> bool:
    """Return whether the operator starts the same recipe again by itself: nobody changed or asked anything."""
    status = thing["status"]
    before, same = status.get("kfp", {}), ("hash", "compute")
    return all(before.get(k) == attempt[k] for k in same) and retry_of(thing) == status.get("retried", "")


def _kfp_run_name(thing: Object, hashed: str, number: int) -> str:
    meta = thing["metadata"]
    return f"{meta['namespace']}.{meta['name']}-{meta['uid'][:8]}-{hashed}-{number}"
