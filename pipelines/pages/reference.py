"""Writes the reference of a recipe's keys from the models' JSON schemas: a section an object, a row a key."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from typing import Any

from pydantic import BaseModel, TypeAdapter

from components.recipe import types

Schema = dict[str, Any]
NAME = TypeAdapter(types.Name).json_schema()["pattern"]
LIMITS = (("minimum", "≥ {}"), ("exclusiveMinimum", "> {}"), ("maximum", "≤ {}"), ("exclusiveMaximum", "< {}"))
HUGE = 2**31 - 1  # a limit that says nothing to a person
CODE = re.compile(r"(`[^`]*`)")
SKIPPED = ("metadata", "status")  # Kubernetes' own


def reference(*models: type[BaseModel]) -> str:
    """Return the sections of these kinds of objects, one after the other; what they share is written once."""
    pages = _Pages()
    for number, model in enumerate(models):
        schema = model.model_json_schema(by_alias=True)
        pages.definitions = schema.get("$defs", {})
        kind = schema["properties"]["kind"]["const"]
        pages.lines += [f"## {kind}", ""]
        pages.prefix = f"{kind}: " if number else ""
        for key, value in schema["properties"].items():
            if key not in SKIPPED:
                pages.add_objects(value, key)
    return "\n".join(pages.lines)


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table. A cell is one line, in which `|` and, outside of code, `<` are escaped."""
    lines = [head, ["---"] * len(head), *([_cell(cell) for cell in row] for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _cell(text: str) -> str:
    parts = CODE.split(" ".join(text.split()).replace("|", "\\|"))
    return "".join(part if part.startswith("`") else part.replace("<", "&lt;") for part in parts)


def slug(heading: str) -> str:
    """Return the anchor that GitHub and MkDocs give a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


class _Pages:
    """Sections in the order in which their objects are met."""

    def __init__(self) -> None:
        self.definitions: dict[str, Schema] = {}
        self.prefix = ""
        """What every heading starts with, so that two kinds of objects have no anchor in common."""
        self.lines: list[str] = []
        self._written: dict[str, str] = {}  # definition → heading of its section
        self._keys: dict[
            tuple[str, frozenset[str]], tuple[str, Schema]
        ] = {}  # last key and keys → heading, keys' schemas

    def add_objects(self, schema: Schema, path: str) -> None:
        """Write a section for every object that a value of this schema may hold."""
        members = _members(schema)
        objects = [m for m in members if "$ref" in m]
        for member in objects:
            others = [self.definitions[_name(other)] for other in objects if other != member]
            self._add_object(_name(member), path, None if len(members) == 1 else others)
        for member in members:
            if "items" in member:
                self.add_objects(member["items"], f"{path}[]")

    def _add_object(self, name: str, path: str, others: list[Schema] | None) -> None:
        """Write an object's section, once; `others` are the other objects that may stand there, None: nothing may."""
        if name in self._written:
            return
        schema = self.definitions[name]
        properties: dict[str, Schema] = schema["properties"]
        heading = f"{self.prefix}`{path}`" + ("" if others is None else f" with `{_telling(schema, others)}`")
        self._written[name] = heading
        head = [f"### {heading}", "", " ".join(schema.get("description", "").split()), ""]
        like = (path.rpartition(".")[2], frozenset(properties))  # a template's pool has the keys of a recipe's pool
        if like in self._keys:
            base, known = self._keys[like]
            properties = {key: value for key, value in properties.items() if value != known[key]}
            head += [f"It has the keys of [{base}](#{slug(base)}); these differ:", ""]
        else:
            self._keys[like] = (heading, properties)
        required = schema.get("required", ())
        at = len(self.lines)
        for key, value in properties.items():
            self.add_objects(value, f"{path}.{key}")
        rows = [
            (f"`{key}`", self._type(value, f"{path}.{key}"), _default(key, value, required), self._meaning(value))
            for key, value in properties.items()
        ]
        body = table(("key", "type", "default", "meaning"), rows).splitlines() if rows else ["It has no keys: `{}`."]
        self.lines[at:at] = [*(line for line in head if line or head), *body, ""]

    def _meaning(self, value: Schema) -> str:
        """Return a key's documentation; the object's own where the key has none."""
        if text := value.get("description"):
            return str(text)
        named = [self.definitions[_name(m)].get("description", "") for m in _members(value) if "$ref" in m]
        return str(named[0]) if named else ""

    def _type(self, value: Schema, path: str) -> str:
        return " or ".join(dict.fromkeys(self._one_type(member, path) for member in _members(value)))

    def _one_type(self, value: Schema, path: str) -> str:
        if "$ref" in value:
            heading = self._written[_name(value)]
            return f"[object](#{slug(heading)})"
        if "const" in value or "enum" in value:
            return " or ".join(f"`{choice}`" for choice in value.get("enum", [value.get("const")]))
        kind = value.get("type")
        if kind == "array":
            return f"list of {_count(value, 'Items')}{_plural(self._type(value['items'], path))}"
        if kind == "object":
            return f"map of {_count(value, 'Properties')}strings to strings"
        if kind in ("integer", "number"):
            limits = [text.format(f"{value[key]:,}") for key, text in LIMITS if abs(value.get(key, HUGE)) < HUGE]
            return " ".join([kind, ", ".join(limits)]).strip()
        if value.get("pattern") == NAME:
            return "name"
        if "pattern" in value:
            return f"string like `{value['pattern']}`"
        return str(kind or "anything")


def _members(value: Schema) -> list[Schema]:
    """Return the alternatives of a value, without null: a null is a key left out."""
    for union in ("anyOf", "oneOf"):
        if union in value:
            return [found for member in value[union] for found in _members(member)]
    return [] if value.get("type") == "null" else [value]


def _name(value: Schema) -> str:
    return str(value["$ref"].rpartition("/")[2])


def _telling(schema: Schema, others: Sequence[Schema]) -> str:
    """Return the key that tells this member of a union from the others: its first required one that they lack."""
    required: list[str] = schema.get("required") or list(schema["properties"])
    own = [key for key in required if not any(key in other["properties"] for other in others)]
    return (own or required)[0]


def _plural(text: str) -> str:
    return re.sub(r"\b(object\b(?=\])|(?:name|string|integer|number)\b)", r"\1s", text)


def _count(value: Schema, what: str) -> str:
    least, most = value.get(f"min{what}"), value.get(f"max{what}")
    if least and most:
        return f"{least} to {most:,} "
    return f"at most {most:,} " if most else f"at least {least:,} " if least else ""


def _default(key: str, value: Schema, required: Sequence[str]) -> str:
    if key in required:
        return "**required**"
    default = value.get("default")
    if default is None or isinstance(default, dict) or default == []:
        return ""
    return f"`{default if isinstance(default, str) else json.dumps(default)}`"
