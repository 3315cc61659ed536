"""The recipe that a Recaption is."""

from __future__ import annotations

from components.pool.reading import check
from components.pool.recipe import Recipe
from pipelines.operator.conditions import Object


def asked(thing: Object) -> Recipe:
    """Raises PermanentError: what `recaption validate` says about it, a line per mistake."""
    whole: Object = {key: thing[key] for key in ("apiVersion", "kind", "spec") if key in thing}
    return check(Recipe, {**whole, "metadata": {"name": thing["metadata"]["name"]}}, "recipe")
