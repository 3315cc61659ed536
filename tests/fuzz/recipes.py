"""Recipes: any YAML is a recipe, or lines that say what is wrong."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

from components.base.errors import PermanentError
from components.recipe.recipe import parse_recipe
from components.recipe.yaml_io import dump_yaml, read_yaml
from tests.fuzz.damage import damaged, text, value
from tests.fuzz.limits import check_lines

SAMPLES = Path(__file__).parents[2] / "manifests" / "samples"


def recipe(chance: Random, _folder: Path) -> None:
    """Change values, keys or bytes of a sample recipe."""
    whole = json.loads(chance.choice(_samples()))
    for _ in range(chance.randint(1, 3)):
        _change(chance, whole)
    written = json.dumps(whole) if chance.random() < 0.5 else dump_yaml(whole)
    if chance.random() < 0.3:
        written = damaged(chance, written.encode("utf-8", "replace")).decode("utf-8", "replace")
    if chance.random() < 0.03:
        written += "\nmore: " + chance.choice(("[" * 3000, "{a: " * 3000, "&a [*a]", "!!python/object:os.system x"))
    try:
        parse_recipe(written)
    except PermanentError as error:
        check_lines(error)


KINDS = {"recipe": recipe}


@cache
def _samples() -> list[str]:
    found = [read_yaml(path.read_text().split("\n---")[0], path.name) for path in sorted(SAMPLES.glob("*.yaml"))]
    return [json.dumps(one) for one in found]


def _change(chance: Random, node: Any) -> None:
    """Change one value or key, somewhere below."""
    keys = list(node) if isinstance(node, dict) else list(range(len(node)))
    if not keys:
        return
    key = chance.choice(keys)
    if isinstance(node[key], (dict, list)) and chance.random() < 0.8:
        _change(chance, node[key])
    elif isinstance(node, dict) and chance.random() < 0.3:
        node[text(chance, long=False) if chance.random() < 0.5 else key[:-1]] = node.pop(key)
    else:
        node[key] = value(chance)
