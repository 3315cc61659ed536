"""Generated parts of the pages: fresh, and whole."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args

import pytest
from pydantic import BaseModel

from components.recipe.columns import Column, column_model
from components.recipe.recipe import Recipe
from components.recipe.types import Model
from pipelines.operator.schedule.model import RecaptionSchedule
from pipelines.pages.parts import GENERATORS, PART, ROOT, pages, with_parts
from pipelines.pages.reference import reference, table


@pytest.mark.parametrize("page", pages(), ids=lambda page: str(page.relative_to(ROOT)))
def test_a_page_is_what_make_docs_writes(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert with_parts(text) == text, "stale: run `make docs`"


def test_every_generator_has_a_page() -> None:
    found = {part["name"] for page in pages() for part in PART.finditer(page.read_text(encoding="utf-8"))}
    assert found == GENERATORS.keys()


def test_no_mark_is_misspelt() -> None:
    for page in pages():
        text = page.read_text(encoding="utf-8")
        assert len(re.findall(r"<!-- generated", text)) == len(PART.findall(text)), page


def keys_of(model: type[BaseModel], seen: set[type[BaseModel]]) -> Iterator[str]:
    """Yield the keys of a model and of all models in it, by walking the models, not their schemas."""
    if model in seen:
        return
    seen.add(model)
    for name, field in model.model_fields.items():
        if name in ("metadata", "status") and model in (Recipe, RecaptionSchedule):
            continue
        yield field.alias or name
        for inner in models_in(field.annotation):
            yield from keys_of(inner, seen)


def models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield column_model() if annotation is Column else annotation
    for inner in get_args(annotation):
        yield from models_in(inner)


def test_every_key_of_a_recipe_and_of_a_schedule_is_in_the_reference() -> None:
    text = (ROOT / "docs" / "recipe.md").read_text(encoding="utf-8")
    keys = {*keys_of(Recipe, set()), *keys_of(RecaptionSchedule, set())}
    assert len(keys) > 80
    assert [key for key in keys if f"| `{key}` |" not in text and key not in ("apiVersion", "kind", "spec")] == []


def test_a_key_has_its_type_default_limits_and_documentation() -> None:
    text = reference(Recipe, RecaptionSchedule)
    assert "| `topK` | integer ≥ 1, ≤ 1,000 | `50` | " in text
    assert "| `storage` | string | **required** | " in text
    assert "or [object](#spectrainscale-with-model) | `small` | DataComp's name of a scale" in text
    assert "It has the keys of [`spec.pool`](#specpool); these differ:" in text


def test_an_object_without_keys_is_written_as_braces() -> None:
    class Nothing(Model):
        """It is on or off."""

    class Spec(Model):
        on: Nothing | None = None
        """Whether."""

    class Switch(Model):
        kind: Literal["Switch"]
        spec: Spec

    assert "| `on` | [object](#specon) |  | Whether. |" in reference(Switch)
    assert "### `spec.on`\n\nIt is on or off.\n\nIt has no keys: `{}`.\n" in reference(Switch)


def test_every_object_has_one_section() -> None:
    headings = re.findall(r"^### .*$", reference(Recipe, RecaptionSchedule), re.MULTILINE)
    assert len(headings) == len({*headings})


def test_a_cell_is_one_line_that_markdown_leaves_alone() -> None:
    assert table(("a",), [("x|y\n<b> `<c>|`",)]).splitlines()[-1] == "| x\\|y &lt;b> `<c>\\|` |"
