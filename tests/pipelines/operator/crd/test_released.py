"""The custom resources admit whatever an earlier version's admitted: stored objects outlive an upgrade.

`python -m tests.pipelines.operator.crd.test_released` writes the schemas of this version, until it is released.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from components.base.version import version
from pipelines.operator.crd.generate import recaption_crd, schedule_crd

RELEASED = Path(__file__).parent / "released"
LOWER, UPPER = ("minimum", "minLength", "minItems", "minProperties"), ("maximum", "maxLength", "maxItems")
EQUAL = ("type", "pattern", "format", "exclusiveMinimum", "exclusiveMaximum", "x-kubernetes-int-or-string", "default")
Schema = dict[str, Any]


def schemas() -> dict[str, Schema]:
    """Of both kinds, without what decides nothing."""
    crds = (recaption_crd(), schedule_crd())
    return {
        crd["spec"]["names"]["kind"]: {
            found["name"]: bare(found["schema"]["openAPIV3Schema"]) for found in crd["spec"]["versions"]
        }
        for crd in crds
    }


def bare(value: Any) -> Any:
    if isinstance(value, dict):
        said = {k: v for k, v in value.items() if k != "description" or isinstance(v, dict)}
        return {k: bare(v) for k, v in said.items()}
    return [bare(v) for v in value] if isinstance(value, list) else value


def narrowed(old: Schema, new: Schema, path: str = "") -> Iterator[str]:
    """Yield where an object that the old schema admits might be refused, lose a field or change its meaning."""
    yield from (f"{path}: {key} is required now" for key in set(new.get("required", ())) - set(old.get("required", ())))
    yield from (f"{path}: another {key}" for key in EQUAL if old.get(key) != new.get(key))
    yield from (f"{path}: a higher {key}" for key in LOWER if new.get(key, 0) > old.get(key, 0))
    yield from (f"{path}: a lower {key}" for key in UPPER if new.get(key, 1e99) < old.get(key, 1e99))
    if "enum" in new and not set(old.get("enum", (None,))) <= set(new["enum"]):
        yield f"{path}: enum lacks a value"
    rules = {rule["rule"] for rule in old.get("x-kubernetes-validations", ())}
    for rule in new.get("x-kubernetes-validations", ()):
        if rule["rule"] not in rules:
            yield f"{path}: a further rule, {rule['rule']}"
    for name, part in old.get("properties", {}).items():
        if name not in new.get("properties", {}):
            yield f"{path}.{name}: is gone"
        else:
            yield from narrowed(part, new["properties"][name], f"{path}.{name}")
    for key in ("items", "additionalProperties"):
        if isinstance(old.get(key), dict):
            yield from narrowed(old[key], new.get(key, {}), f"{path}.{key}")


@pytest.mark.parametrize("path", sorted(RELEASED.glob("*.json")), ids=lambda path: path.stem)
def test_what_was_admitted_is_admitted(path: Path) -> None:
    now = schemas()
    for kind, versions in json.loads(path.read_text(encoding="utf-8")).items():
        for name, old in versions.items():
            assert name in now[kind], f"{kind} {name} is no longer served, but may be stored"
            assert list(narrowed(old, now[kind][name])) == []


def test_a_version_is_released() -> None:
    assert list(RELEASED.glob("*.json"))


OLD = {"type": "object", "required": ["a"], "properties": {"a": {"type": "integer", "maximum": 9}, "b": {"enum": [1]}}}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"properties": {**OLD["properties"], "c": {"type": "string"}}}, []),  # type: ignore[dict-item]
        ({"properties": {"a": {"type": "integer"}, "b": {"enum": [1, 2]}}, "required": []}, []),
        ({"required": ["a", "b"]}, [": b is required now"]),
        (
            {"properties": {"a": {"type": "integer", "maximum": 8}, "b": {"enum": [2]}}},
            [".a: a lower maximum", ".b: enum lacks a value"],
        ),
        (
            {"properties": {"a": {"type": "number", "maximum": 9, "minimum": 1}}},
            [".a: another type", ".a: a higher minimum", ".b: is gone"],
        ),
        ({"x-kubernetes-validations": [{"rule": "self.a > 1"}]}, [": a further rule, self.a > 1"]),
    ],
)
def test_it_finds_what_is_narrower(change: Schema, says: list[str]) -> None:
    assert list(narrowed(OLD, {**OLD, **change})) == says


if __name__ == "__main__":
    (RELEASED / f"{version()}.json").write_text(json.dumps(schemas(), indent=1) + "\n", encoding="utf-8")
