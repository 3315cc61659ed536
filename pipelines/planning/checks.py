"""What of a recipe can't work, or is not known: found before anything is planned, and said all at once."""

from __future__ import annotations

from collections.abc import Iterator

from components.base.errors import PermanentError
from components.engine.registry import provider, stage_of, stages
from components.engine.stage import Finding, Step
from components.recipe.recipe import Recipe, Spec
from pipelines.planning.columns import SCORER


def check_recipe(recipe: Recipe) -> list[str]:
    """Return what is to be said of a recipe that can work, a line each.

    Raises:
        PermanentError: it can't work; all reasons, a line each.
    """
    findings = list(dict.fromkeys(_findings(recipe.spec)))
    if problems := [finding.text for finding in findings if finding.is_problem]:
        raise PermanentError("\n".join(problems))
    return [finding.text for finding in findings]


def _findings(spec: Spec) -> Iterator[Finding]:
    yield from provider("embedding").check(spec.scorer, SCORER)
    for i, column in enumerate(spec.columns):
        yield from stage_of(column.kind).check(column.options, f"spec.columns[{i}].{column.kind}")
    for stage in stages().values():
        if issubclass(stage, Step):
            yield from stage.check(spec)
