"""Finds the stages: every `components/stages/<folder>/stage.py` declares one."""

from __future__ import annotations

import inspect
from functools import cache
from types import ModuleType
from typing import Any

from components.base.errors import PermanentError
from components.base.plugins import stage_modules
from components.engine.stage import DTYPES, ColumnStage, Stage, Step
from components.recipe.columns import kinds_in

ATTRIBUTES = ("name", "summary", "reads", "writes", "needs")


@cache
def stages() -> dict[str, type[Stage]]:
    """Return all declared stages by name.

    Raises:
        PermanentError: a declaration is missing, incomplete or a duplicate; the message says where and what.
    """
    found: dict[str, type[Stage]] = {}
    for module in stage_modules():
        stage = declared_in(module)
        if stage.name in found:
            raise PermanentError(
                f"{module.__name__}: stage {stage.name} is declared in {found[stage.name].__module__} already"
            )
        found[stage.name] = stage
    return found


def declared_in(module: ModuleType) -> type[Stage]:
    """Return the one stage that a module declares. Raises PermanentError when it declares not one, or a part of one."""
    own = [
        value
        for _, value in inspect.getmembers(module, inspect.isclass)
        if issubclass(value, (ColumnStage, Step))
        and value.__module__ == module.__name__
        and not value.__abstractmethods__
    ]
    if len(own) != 1:
        raise PermanentError(f"{module.__name__}: declares {len(own)} stages, expected one ColumnStage or Step")
    stage: type[Stage] = own[0]
    wanted = (*ATTRIBUTES, "fields", "version") if issubclass(stage, ColumnStage) else ATTRIBUTES
    missing = [a for a in wanted if not hasattr(stage, a)]
    if missing:
        raise PermanentError(f"{module.__name__}: {stage.__name__} lacks {', '.join(missing)}")
    for field in getattr(stage, "fields", ()):
        if field.dtype not in DTYPES and field.dtype != "float16[D]":
            raise PermanentError(
                f"{module.__name__}: field {field.name} has dtype {field.dtype}, allowed are "
                f"{', '.join(DTYPES)} and float16[D]"
            )
    if issubclass(stage, ColumnStage) and (left_out := {*kinds_in(vars(module))} - {*stage.kinds}):
        raise PermanentError(
            f"{module.__name__}: {', '.join(sorted(kind.__name__ for kind in left_out))} is not among "
            f"{stage.__name__}.kinds"
        )
    return stage


def stage_of(kind: str) -> type[ColumnStage]:
    """Return the column stage that computes columns of this kind."""
    return next(found for found in column_stages() if kind in (options.kind for options in found.kinds))


def provider(role: str) -> Any:
    """Return the column stage whose column comes with every recipe and is read by others in this role."""
    return next(found for found in column_stages() if found.provides == role)


def column_stages() -> list[type[ColumnStage]]:
    """Return all column stages."""
    return [stage for stage in stages().values() if issubclass(stage, ColumnStage)]


def column_stage(name: str) -> type[ColumnStage]:
    """Return the column stage of this name."""
    stage = stages()[name]
    if not issubclass(stage, ColumnStage):
        raise PermanentError(f"stage {name} is a step, not a column")
    return stage


def step(key: str) -> Step:
    """Return a step, ready to run; `key` is its name and, where a run has it several times, a colon and which one."""
    name, _, part = key.partition(":")
    stage = stages()[name]
    if not issubclass(stage, Step):
        raise PermanentError(f"stage {name} is a column, not a step")
    return stage(part)
