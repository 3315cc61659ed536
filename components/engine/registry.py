"""Finds the stages: every `components/stages/<folder>/stage.py` declares one."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import pkgutil
from functools import cache
from types import ModuleType

from components.base.errors import PermanentError
from components.engine.stage import DTYPES, ColumnStage, Stage, Step

ATTRIBUTES = ("name", "summary", "reads", "writes", "needs")


@cache
def stages() -> dict[str, type[Stage]]:
    """All declared stages by name.

    Raises:
        PermanentError: a declaration is missing, incomplete or a duplicate; the message says where and what.
    """
    found: dict[str, type[Stage]] = {}
    for package in pkgutil.iter_modules(importlib.import_module("components.stages").__path__):
        name = f"components.stages.{package.name}.stage"
        if importlib.util.find_spec(name) is None:  # discover: a part of the pipeline that no run has as a stage
            continue
        stage = declared_in(importlib.import_module(name))
        if stage.name in found:
            raise PermanentError(f"{name}: stage {stage.name} is declared in {found[stage.name].__module__} already")
        found[stage.name] = stage
    return found


def declared_in(module: ModuleType) -> type[Stage]:
    """The one stage that a module declares. Raises PermanentError when it is not one or not whole."""
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
    return stage


def column_stage(name: str) -> type[ColumnStage]:
    """The column stage of this name."""
    stage = stages()[name]
    if not issubclass(stage, ColumnStage):
        raise PermanentError(f"stage {name} is a step, not a column")
    return stage


def step(key: str) -> Step:
    """A step, ready to run; of one that a run has several times, the part after the colon."""
    name, _, part = key.partition(":")
    stage = stages()[name]
    if not issubclass(stage, Step):
        raise PermanentError(f"stage {name} is a column, not a step")
    return stage(part)
