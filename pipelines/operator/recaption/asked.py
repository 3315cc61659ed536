"""The recipe that a Recaption is."""

from __future__ import annotations

from components.recipe.recipe import Recipe
from components.recipe.yaml_io import check
from pipelines.kubeflow.parameters import refuse_networks
from pipelines.operator.runtime.conditions import Object


def asked(thing: Object) -> Recipe:
    """Raises PermanentError: what `recaption validate` says, a line per mistake; or that a cluster refuses it."""
    whole: Object = {key: thing[key] for key in ("apiVersion", "kind", "spec") if key in thing}
    recipe = check(Recipe, {**whole, "metadata": {"name": thing["metadata"]["name"]}}, "recipe")
    refuse_networks(recipe)  # the CRD may be an older one, without that rule
    return recipe
