"""The CRDs: made of the recipe's models, structural, and as strict as the command line as far as a schema goes."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft4Validator
from typer.testing import CliRunner

from components.base.errors import PermanentError
from components.recipe.yaml_io import dump_yaml
from pipelines.cli import app
from pipelines.operator.crd.generate import FOLDER, files, recaption_crd, schedule_crd
from pipelines.operator.crd.structural_schema import structural
from tests.pipelines.operator.corpus import (
    ADMITTED,
    BAD,
    BASE,
    GOOD,
    LOCAL,
    REFUSED,
    SCHEDULE_BASE,
    SCHEMA,
    Case,
    changed,
    said,
)

CRDS = {"Recaption": recaption_crd(), "RecaptionSchedule": schedule_crd()}
ANY = "x-kubernetes-preserve-unknown-fields"


def schema_of(kind: str) -> dict[str, Any]:
    schema: dict[str, Any] = CRDS[kind]["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    return schema


@pytest.mark.parametrize("name", files())
def test_the_files_are_what_make_manifests_writes(name: str) -> None:
    assert (FOLDER / name).read_text(encoding="utf-8") == files()[name], "stale: run `make manifests`"


@pytest.mark.parametrize("case", [*GOOD, *LOCAL], ids=str)
def test_the_command_line_takes_what_is_good(case: Case) -> None:
    assert said(case.value) == ""


@pytest.mark.parametrize("case", [*BAD, *ADMITTED], ids=str)
def test_the_command_line_says_what_is_bad(case: Case) -> None:
    lines = said(case.value).splitlines()
    assert any(line.startswith(case.says) for line in lines), lines


def test_validate_reads_schedules_too(tmp_path: Path) -> None:
    path = tmp_path / "weekly.yaml"
    path.write_text(dump_yaml(SCHEDULE_BASE))
    valid = CliRunner().invoke(app, ["validate", str(path)], catch_exceptions=False)
    assert valid.output.split() == [f"{path}:", "valid"]
    path.write_text(dump_yaml(changed(SCHEDULE_BASE, {"spec.timeZone": "Mars/X"})))
    with pytest.raises(PermanentError, match=f"^{path}: spec.timeZone: found .Mars/X.; expected an IANA name"):
        CliRunner().invoke(app, ["validate", str(path)], catch_exceptions=False)


@pytest.mark.parametrize("case", [*GOOD, *ADMITTED, *REFUSED, *LOCAL], ids=str)
def test_the_schema_takes_what_is_good(case: Case) -> None:
    assert refused_by_schema(case.value) == []


@pytest.mark.parametrize("case", [case for case in BAD if case.value["kind"] in CRDS], ids=str)
def test_the_schema_refuses_what_a_schema_can(case: Case) -> None:
    """What is left are rules between values, names that must exist, and what has no structural type."""
    assert bool(refused_by_schema(case.value)) == (case.by == SCHEMA)


@pytest.mark.parametrize("case", GOOD, ids=str)
def test_an_address_and_a_path_in_the_image_are_admitted(case: Case) -> None:
    schema = schema_of(case.value["kind"])
    assert [*refused_by_patterns(case.value["spec"], schema["properties"]["spec"], "spec")] == []


@pytest.mark.parametrize("case", LOCAL, ids=str)
def test_a_folder_is_refused_at_admission(case: Case) -> None:
    found = [*refused_by_patterns(case.value["spec"], schema_of("Recaption")["properties"]["spec"], "spec")]
    assert found
    assert all("expected" in said and "://" in said for said in found)


def refused_by_patterns(value: Any, schema: dict[str, Any], at: str) -> Iterator[str]:
    """What the API server says by those CEL rules that are one regular expression."""
    if isinstance(value, list):
        for number, item in enumerate(value):
            yield from refused_by_patterns(item, schema.get("items", {}), f"{at}[{number}]")
    if isinstance(value, dict):
        for key, item in value.items():
            yield from refused_by_patterns(item, schema.get("properties", {}).get(key, {}), f"{at}.{key}")
    if isinstance(value, str):
        for rule in schema.get("x-kubernetes-validations", ()):
            pattern = re.fullmatch(r"(!?)self\.matches\('(.*)'\)", rule["rule"])
            if pattern and bool(re.search(pattern[2], value)) == bool(pattern[1]):
                yield f"{at}: {rule['message']}"


def refused_by_schema(value: dict[str, Any]) -> list[str]:
    """As the API server's strict validation: 5.0 is 5, a null under a known key goes, an unknown key is an error."""
    schema = schema_of(value["kind"])
    ours = {key: value[key] for key in ("apiVersion", "kind", "spec") if key in value}
    return [problem.message for problem in Draft4Validator(_closed(schema)).iter_errors(_as_read(ours, schema))]


def _closed(schema: Any) -> Any:
    if isinstance(schema, list):
        return [_closed(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {key: _closed(value) for key, value in schema.items()}
    if "properties" in schema and isinstance(schema.get("type"), str) and ANY not in schema:
        closed["additionalProperties"] = False
    return closed


def _as_read(value: Any, schema: dict[str, Any]) -> Any:
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, list):
        return [_as_read(item, schema.get("items", {})) for item in value]
    if not isinstance(value, dict):
        return value
    known = {key: schema.get("properties", {}).get(key, schema.get("additionalProperties")) for key in value}
    return {key: _as_read(v, known[key] or {}) for key, v in value.items() if v is not None or known[key] is None}


@pytest.mark.parametrize("kind", CRDS)
def test_the_schema_is_structural_and_bounded(kind: str) -> None:
    assert list(unstructural(schema_of(kind), kind)) == []
    assert list(unbounded(schema_of(kind)["properties"]["spec"], "spec")) == []


def unstructural(schema: dict[str, Any], at: str, root: bool = True) -> Iterator[str]:
    """What Kubernetes' structural schemas may not have, and what its API server would refuse in ours."""
    for key in schema.keys() & {
        "$ref",
        "$defs",
        "title",
        "const",
        "anyOf",
        "oneOf",
        "allOf",
        "not",
        "patternProperties",
    }:
        yield f"{at}: {key}"
    if "type" not in schema and (root or not schema.get(ANY)):
        yield f"{at}: neither a type nor {ANY}"
    if "properties" in schema and "additionalProperties" in schema:
        yield f"{at}: properties and additionalProperties"
    if schema.get("additionalProperties") in (True, False):
        yield f"{at}: additionalProperties is no schema"
    for bound in ("exclusiveMinimum", "exclusiveMaximum"):
        if schema.get(bound, True) is not True:
            yield f"{at}: {bound} is no boolean"
    if schema.get("x-kubernetes-list-type") == "map":
        items = schema["items"]
        for key in schema["x-kubernetes-list-map-keys"]:
            if key not in items.get("required", ()) and "default" not in items["properties"][key]:
                yield f"{at}: {key} may be missing"
    for missing in set(schema.get("required", ())) - schema.get("properties", {}).keys():
        yield f"{at}: {missing} is required, and not there"
    if "default" in schema and list(Draft4Validator(schema).iter_errors(schema["default"])):
        yield f"{at}: the default is not valid"
    for where, inner in inside(schema, at):
        yield from unstructural(inner, where, root=False)


def unbounded(schema: dict[str, Any], at: str) -> Iterator[str]:
    """Values of any size, of which no rule's cost can be estimated."""
    bounds = {"string": {"maxLength", "enum"}, "array": {"maxItems"}}
    if "type" in schema and schema["type"] in bounds and not bounds[schema["type"]] & schema.keys():
        yield at
    if "additionalProperties" in schema and "maxProperties" not in schema:
        yield at
    for where, inner in inside(schema, at):
        yield from unbounded(inner, where)


def inside(schema: dict[str, Any], at: str) -> Iterator[tuple[str, dict[str, Any]]]:
    for name, inner in schema.get("properties", {}).items():
        yield f"{at}.{name}", inner
    for key in ("items", "additionalProperties"):
        if isinstance(schema.get(key), dict):
            yield f"{at}.{key}", schema[key]


@pytest.mark.parametrize(
    ("path", "change", "expected"),
    [
        ("storage", {"type": None}, f"spec.storage: neither a type nor {ANY}"),
        ("pool", {"additionalProperties": False}, "spec.pool: properties and additionalProperties"),
        (
            "columns",
            {"items": {"type": "object", "properties": {"name": {"type": "string"}}}},
            "spec.columns: name",
        ),
        ("suspend", {"default": "no"}, "spec.suspend: the default is not valid"),
        ("pool", {"required": ["tables"]}, "spec.pool: tables is required, and not there"),
        ("mixtures", {"oneOf": []}, "spec.mixtures: oneOf"),
        ("storage", {"maxLength": None}, "spec.storage"),
        ("mixtures", {"maxItems": None}, "spec.mixtures"),
    ],
)
def test_the_checks_see_what_is_not_structural(path: str, change: dict[str, Any], expected: str) -> None:
    schema = copy.deepcopy(schema_of("Recaption")["properties"]["spec"])
    node = schema["properties"][path]
    node.update(change)
    for key in [key for key, value in node.items() if value is None]:
        del node[key]
    assert any(line.startswith(expected) for line in [*unstructural(schema, "spec"), *unbounded(schema, "spec")])


def test_every_rule_has_a_message_and_stands_somewhere() -> None:
    from pipelines.operator.crd.cel_rules import CHANGES, RULES, TEMPLATE

    written = json.dumps([schema_of(kind) for kind in CRDS], ensure_ascii=False)
    for table in (RULES, CHANGES, TEMPLATE):
        for where, rules in table.items():
            for rule in rules:
                assert rule["message"], where
                assert json.dumps(rule["rule"], ensure_ascii=False) in written, where


def test_what_may_not_change_may_not_in_a_recaption_and_may_in_a_template() -> None:
    assert json.dumps(schema_of("Recaption")).count("oldSelf") == 3
    assert "oldSelf" not in json.dumps(schema_of("RecaptionSchedule"))


def test_defaults_are_the_models() -> None:
    """An object of an API server, in which they are filled in, is the same recipe."""
    from components.recipe.recipe import Recipe, Spec

    filled = fill(structural(Spec, {}), copy.deepcopy(BASE["spec"]))
    assert filled["columns"][0]["caption"]["topK"] == 50
    assert filled["compute"]["shardsPerTask"] == 8
    assert Recipe.model_validate({**BASE, "spec": filled}) == Recipe.model_validate(BASE)


def fill(schema: dict[str, Any], value: Any) -> Any:
    """With the schema's defaults, as the API server fills them in."""
    if isinstance(value, dict):
        for key, inner in schema.get("properties", {}).items():
            if key not in value and "default" in inner:
                value[key] = copy.deepcopy(inner["default"])
            if key in value:
                value[key] = fill(inner, value[key])
    if isinstance(value, list):
        return [fill(schema["items"], item) for item in value]
    return value


def test_columns_and_names_of_the_resources() -> None:
    names = {kind: crd["spec"]["names"] for kind, crd in CRDS.items()}
    assert names["Recaption"]["shortNames"] == ["rcap", "rcaps"]
    assert {name["categories"][0] for name in names.values()} == {"recaptioning"}
    columns = {
        kind: [c["name"] for c in crd["spec"]["versions"][0]["additionalPrinterColumns"] if not c.get("priority")]
        for kind, crd in CRDS.items()
    }
    assert columns["Recaption"] == ["Phase", "Stage", "Progress", "Rate", "Best", "Age"]
    assert columns["RecaptionSchedule"] == ["Schedule", "Dumps", "Suspend", "Last dump", "Behind", "Next", "Age"]
    for crd in CRDS.values():
        version = crd["spec"]["versions"][0]
        for column in version["additionalPrinterColumns"]:
            assert reaches(version["schema"]["openAPIV3Schema"], column["jsonPath"]), column
        for field in version["selectableFields"]:
            assert reaches(version["schema"]["openAPIV3Schema"], field["jsonPath"]), field


def reaches(schema: dict[str, Any], path: str) -> bool:
    """Whether a simple JSONPath leads to something that the schema has."""
    if path == ".metadata.creationTimestamp":
        return True
    for part in path.removeprefix(".").replace('[?(@.type=="', ".").replace('")]', "").split("."):
        if schema["type"] == "array":  # of conditions: the filter
            assert part in schema["items"]["properties"]["type"]["description"]
            schema = schema["items"]
        elif part in schema.get("properties", {}):
            schema = schema["properties"][part]
        else:
            return False
    return True
