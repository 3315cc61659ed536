"""Finds the modules that declare stages: `components/stages/<folder>/stage.py`, here and wherever Python looks."""

from __future__ import annotations

import importlib
from functools import cache
from pathlib import Path
from types import ModuleType


@cache
def stage_modules() -> tuple[ModuleType, ...]:
    """Import every module that declares a stage, in the order of the folders' names."""
    package = importlib.import_module("components.stages")
    folders = sorted(file.parent.name for place in package.__path__ for file in Path(place).glob("*/stage.py"))
    return tuple(importlib.import_module(f"{package.__name__}.{folder}.stage") for folder in folders)
