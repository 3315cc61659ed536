"""The recipe that a Recaption is."""

from __future__ import annotations

import json

from components.pool.recipe import Recipe, parse_recipe
from pipelines.operator.conditions import Object


def asked(thing: Object) -> Recipe:
    """Raises PermanentError: what `recaption validate` says about it, a line per mistake."""
    value = {
        "apiVersion": thing["apiVersion"],
        "kind": thing["kind"],
        "metadata": {"name": thing["metadata"]["name"]},
        "spec": {key: value for key, value in thing["spec"].items() if key != "suspend"},
    }
    return parse_recipe(json.dumps(value), "recipe")
