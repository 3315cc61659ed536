"""Finds the modules that declare stages: `components/stages/<folder>/stage.py`, here and wherever Python looks."""

from __future__ import annotations

import importlib
from functools import cache
from pathlib import Path
from types import ModuleType


@cache
def stage_modules(word: str = "") -> tuple[ModuleType, ...]:
    """Import every module that declares a stage, in the order of the folders' names.

    Args:
        word: import only modules whose source has it, as nobody can declare a kind without naming `Options`: the
            operator reads kinds, and what it does not import costs it no memory.
    """
    package = importlib.import_module("components.stages")
    files = (file for place in package.__path__ for file in Path(place).glob("*/stage.py"))
    folders = sorted(file.parent.name for file in files if word in file.read_text(encoding="utf-8"))
    return tuple(importlib.import_module(f"{package.__name__}.{folder}.stage") for folder in folders)
