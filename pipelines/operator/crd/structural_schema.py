"""Convert a pydantic model into the structural schema of a CustomResourceDefinition.

A union of objects becomes one object with the keys of all. A union of an object with something else has no structural
type: such a value is admitted as it is, checked only by the constraints that hold for each of its shapes. The rest is
checked by the CRD's CEL rules and by the operator.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

Schema = dict[str, Any]
Rules = Mapping[str, list[Schema]]

KEPT = (
    *("type", "description", "enum", "pattern", "minLength", "maxLength", "minimum", "maximum", "minItems", "maxItems"),
    *("minProperties", "maxProperties", "required"),
)


def structural(model: type[BaseModel], rules: Rules) -> Schema:
    """Return the schema of a model, with the names that the YAML has.

    Args:
        rules: x-kubernetes-validations by the name of a model (of a union of models: joined by |), or by that and a
            key: `Captioner.name`.
    """
    schema = model.model_json_schema(by_alias=True)
    return _Translation(schema.get("$defs", {}), rules).node(schema)


class _Translation:
    def __init__(self, defs: Mapping[str, Schema], rules: Rules) -> None:
        self.defs, self.rules = defs, rules

    def node(self, given: Schema) -> Schema:
        """Convert a schema of any type."""
        schema = self.resolved(given)
        members = [self.resolved(m) for m in schema.pop("anyOf", schema.pop("oneOf", ()))]
        if len(members) == 1:
            schema = {**members[0], **schema}
        elif members:
            return self.described(self.union(members), schema)
        made = {key: schema[key] for key in KEPT if key in schema}
        if "const" in schema:
            made["enum"] = [schema["const"]]
        for bound in ("minimum", "maximum"):
            exclusive = f"exclusive{bound.capitalize()}"
            if exclusive in schema:
                made |= {bound: schema[exclusive], exclusive: True}
        if made["type"] == "integer":
            made["format"] = "int64"
        if made["type"] == "array":
            made |= self.array(schema["items"])
        if made["type"] == "object":
            made |= self.object(schema)
        return self.described(made, schema)

    def resolved(self, schema: Schema) -> Schema:
        """Return a schema without references, and without the null that every optional key may have."""
        if "$ref" in schema:
            named = self.defs[schema["$ref"].rpartition("/")[2]]
            schema = {**named, **{k: v for k, v in schema.items() if k != "$ref"}, "title": named["title"]}
        for key in ("anyOf", "oneOf"):
            members = [m for m in schema.get(key, ()) if m.get("type") != "null"]
            if len(members) == 1:
                rest = {k: v for k, v in schema.items() if k != key}
                return self.resolved({**members[0], **rest})
            if members:
                schema = {**schema, key: members}
        return schema

    def described(self, made: Schema, schema: Schema) -> Schema:
        """Add the description and the default."""
        if "description" in schema:
            made["description"] = " ".join(schema["description"].split())
        default = schema.get("default")
        if made.get("type") == "object":
            if default is not None and any("default" in p for p in made.get("properties", {}).values()):
                made["default"] = {}  # its keys have defaults of their own
        elif default not in (None, []):
            made["default"] = default
        return made

    def array(self, items: Schema) -> Schema:
        """Return what a list adds: a list whose items have a required name is a map by name."""
        made: Schema = {"items": self.node(items)}
        if "name" in made["items"].get("required", ()):
            made |= {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]}
        return made

    def object(self, schema: Schema) -> Schema:
        """Return what an object adds: its properties, or the schema of its values."""
        if "properties" not in schema:
            [(pattern, values)] = schema["patternProperties"].items()
            return {"additionalProperties": self.node(values), "x-kubernetes-validations": [key_rule(pattern)]}
        model = schema["title"]
        made: Schema = {"properties": {key: self.node(value) for key, value in schema["properties"].items()}}
        for key, value in made["properties"].items():
            _add_rules(value, self.rules.get(f"{model}.{key}"))
        _add_rules(made, self.rules.get(model))
        return made

    def union(self, members: list[Schema]) -> Schema:
        """Convert a union: of objects only into one object, else into a value of any type with common constraints."""
        objects = [m for m in members if m["type"] == "object"]
        made: Schema = self.merged(objects) if objects else {}
        if len(objects) == len(members):
            return {"type": "object", **made}
        for member in members:
            if member["type"] == "string":
                made |= _text(member)
            if member["type"] == "array":
                made |= {k: v for k, v in self.node(member).items() if k != "type"}
        return {**made, "x-kubernetes-preserve-unknown-fields": True}

    def merged(self, objects: list[Schema]) -> Schema:
        """Merge objects into one with all keys, without defaults: a default would turn one member into another."""
        properties: Schema = {}
        for member in map(self.node, objects):
            properties |= {key: _without_default(value) for key, value in member["properties"].items()}
        made: Schema = {"properties": properties}
        required = set.intersection(*(set(o.get("required", ())) for o in objects))
        if required:
            made["required"] = [key for key in properties if key in required]
        _add_rules(made, self.rules.get("|".join(o["title"] for o in objects)))
        return made


def key_rule(pattern: str) -> Schema:
    """Return the rule that checks a map's keys, which a schema can't."""
    return {"rule": f"self.all(key, key.matches('{pattern}'))", "message": f"keys should match '{pattern}'"}


def _add_rules(schema: Schema, rules: list[Schema] | None) -> None:
    if rules:
        schema["x-kubernetes-validations"] = [*schema.get("x-kubernetes-validations", ()), *rules]


def _text(schema: Schema) -> Schema:
    """Return constraints that hold only if the value is a string; an enum would refuse values of other types."""
    names = schema.get("enum", [schema["const"]] if "const" in schema else None)
    if names is None:
        return {key: schema[key] for key in ("pattern", "maxLength")}
    return {"pattern": f"^({'|'.join(names)})$", "maxLength": max(map(len, names))}


def _without_default(schema: Schema) -> Schema:
    """Return a schema without its default."""
    return {key: value for key, value in schema.items() if key != "default"}
