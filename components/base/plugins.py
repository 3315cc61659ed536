"""Finds the modules that declare stages: `components/stages/<folder>/stage.py`, here and wherever Python looks."""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
from functools import cache
from types import ModuleType


@cache
def stage_modules() -> tuple[ModuleType, ...]:
    """Import every module that declares a stage, in the order of the folders' names."""
    package = importlib.import_module("components.stages")
    names = [f"{package.__name__}.{folder.name}.stage" for folder in pkgutil.iter_modules(package.__path__)]
    # `discover` has none: it is a part of the pipeline that no run has as a stage.
    return tuple(importlib.import_module(name) for name in names if importlib.util.find_spec(name))
