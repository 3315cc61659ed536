"""Reads YAML as kubectl reads it, into a model; every mistake is one line."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from components.base.errors import PermanentError
from components.base.printable import printable
from components.recipe.columns import Column, column_model
from components.recipe.types import WORDS

M = TypeVar("M", bound=BaseModel)
SHOWN = 80  # characters of what was found

RESOLVED = {  # what kubectl reads otherwise than PyYAML: no dates, no 1:30 for 90, but y, 0o17 and 1e-3
    "tag:yaml.org,2002:int": (r"[-+]?(0b[01_]+|0o?[0-7_]+|0|[1-9][0-9_]*|0x[0-9a-fA-F_]+)", "-+0123456789"),
    "tag:yaml.org,2002:float": (
        r"[-+]?((\.[0-9_]+|[0-9][0-9_]*(\.[0-9_]*)?)([eE][-+]?[0-9]+)?|\.(inf|Inf|INF))|\.(nan|NaN|NAN)",
        "-+.0123456789",
    ),
    "tag:yaml.org,2002:bool": (r"(?i:yes|no|true|false|on|off|y|n)", "yYnNtTfFoO"),
}


def read_file(path: str | Path, what: str) -> str:
    """Read a text file. Raises PermanentError, whose message says `what` it should be."""
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise PermanentError(f"{what} {path}: {getattr(error, 'strerror', None) or error}") from error


def read_yaml(
    text: str, where: str, expected: str = "a mapping with apiVersion, kind, metadata and spec"
) -> dict[str, Any]:
    """Read a mapping from YAML.

    Raises:
        PermanentError: it isn't YAML, has a key twice, or is no mapping; the message begins with `where`.
    """
    try:
        value = yaml.load(text, _Loader)
    except (yaml.YAMLError, ValueError, KeyError) as error:  # the last two: `!!int x`, `!!bool x`
        raise PermanentError(f"{where}: not YAML: {' '.join(str(error).split())}") from error
    except RecursionError as error:
        raise _too_deep(where) from error
    if not isinstance(value, dict):
        raise PermanentError(f"{where}: expected {expected}")
    return value


def dump_yaml(value: object) -> str:
    """Write a JSON value as YAML that reads the same here, in kubectl and by PyYAML."""
    text: str = yaml.dump(value, Dumper=_Dumper, sort_keys=False)
    return text


def check(model: type[M], value: object, where: str) -> M:
    """Validate a value as this model, by the names of the YAML.

    Raises:
        PermanentError: one line per mistake: `where`, the path in the YAML, what was found, what is allowed.
    """
    try:
        return model.model_validate(value, by_alias=True, by_name=False)
    except ValidationError as error:
        raise PermanentError("\n".join(printable(f"{where}: {line}") for line in _lines(error, model))) from error
    except RecursionError as error:
        raise _too_deep(where) from error


def _too_deep(where: str) -> PermanentError:
    return PermanentError(f"{where}: found brackets in brackets, hundreds deep; expected some ten levels")


class _Loader(yaml.SafeLoader):
    """Refuses a key that comes twice, of which YAML readers silently keep the last. Keys are text, as in JSON."""

    yaml_implicit_resolvers = {
        first: [(tag, how) for tag, how in resolvers if tag not in (*RESOLVED, "tag:yaml.org,2002:timestamp")]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    bool_values = {**yaml.SafeLoader.bool_values, "y": True, "n": False}

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key {key.value} comes twice", key.start_mark)
            seen.add(key.value)
        found = super().construct_mapping(node, deep)
        return {key if isinstance(key, str) else json.dumps(key, default=str): v for key, v in found.items()}


class _Dumper(yaml.SafeDumper):
    """Quotes a text that either kind of reader would take for something else."""


for _tag, (_pattern, _first) in RESOLVED.items():
    for _kind in (_Loader, _Dumper):
        _kind.add_implicit_resolver(_tag, re.compile(f"^(?:{_pattern})$"), list(_first))


def _lines(error: ValidationError, root: type[BaseModel]) -> list[str]:
    lines = []
    for e in error.errors(include_url=False):
        if e["type"] == "value_error" and not e["loc"]:
            lines.extend(str(e["ctx"]["error"]).splitlines())
            continue
        where = _path(e["loc"])
        if e["type"] == "extra_forbidden":
            message = f"unknown key; {_allowed(root, e['loc'])}"
        elif e["type"] == "missing":
            message = "missing"
        else:
            message = f"found {_short(e['input'])}: {_expected(e)}"
        line = f"{where}: {message}"
        if line not in lines:
            lines.append(line)
    return lines


def _expected(error: ErrorDetails) -> str:
    """Say what was expected, without a regular expression; and that a share is no percentage."""
    given, bounds = error["input"], error.get("ctx", {})
    if error["type"] == "string_pattern_mismatch":
        return f"expected {WORDS[bounds['pattern']]}"
    message = error["msg"].removeprefix("Value error, ")
    if error["type"] == "less_than_equal" and bounds["le"] == 1 and 2 <= given <= 100:
        return f"{message}; {given:g} % is {given / 100:g}"
    if error["type"] == "choice" and isinstance(given, dict):
        allowed = re.findall(r"(\w+):", message)
        return message + next(filter(None, (meant(key, allowed) for key in given)), "")
    return message


def _path(location: tuple[int | str, ...]) -> str:
    """Write pydantic's location without the tags of union members, which are not keys of the YAML."""
    path = ""
    for part in location:
        if isinstance(part, int):
            path += f"[{part}]"
        elif not part.startswith("<"):
            path += f".{part}" if path else part
    return path or "recipe"


def _allowed(root: type[BaseModel], location: tuple[int | str, ...]) -> str:
    """List the keys that the model at this location has, and name the one that was probably meant."""
    models: list[type[BaseModel]] = [root]
    for part in location[:-1]:
        if isinstance(part, str) and part.startswith("<"):
            models = [model for model in models if model.__name__ == part.strip("<>")]
        elif isinstance(part, str):
            field = next(f for n, f in models[0].model_fields.items() if part in (n, f.alias))
            models = _models_in(field.annotation)
    keys = [f.alias or n for n, f in models[0].model_fields.items()]
    return "allowed are " + ", ".join(keys) + meant(str(location[-1]), keys)


def meant(found: str, keys: Sequence[str]) -> str:
    """Ask whether the most similar of these keys was meant; return nothing where none is similar."""
    plain = {key.lower(): key for key in keys}
    near = get_close_matches(found.lower().replace("_", ""), plain, n=1)
    return f"; did you mean {plain[near[0]]}?" if near else ""


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    """List the models inside an annotation like `list[Model] | None`."""
    if annotation is Column:
        return [column_model()]
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for inner in getattr(annotation, "__args__", ()) for model in _models_in(inner)]


def _short(value: object) -> str:
    """Write the beginning of a value as JSON; its end may be far away, or nowhere: an alias may hold itself."""
    text = ""
    for part in json.JSONEncoder(default=str, ensure_ascii=False, check_circular=False).iterencode(value):
        text += part
        if len(text) > SHOWN:
            return text[: SHOWN - 3] + "..."
    return text
