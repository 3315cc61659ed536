"""Discovery: every stage is found, and a bad declaration fails loudly."""

from types import ModuleType
from typing import Any

import pytest

from components.base.errors import PermanentError
from components.engine import registry as discovery
from components.engine.stage import ColumnStage, Field, Needs, Stage


def test_every_stage_is_found() -> None:
    assert set(discovery.stages()) == {
        "extract", "download", "index", "import", "filter", "faces", "embed", "score", "screen", "aesthetic", "caption",
        "mix", "analyze", "reshard", "train", "evaluate", "report",
    }  # fmt: skip


def declare(**changed: Any) -> ModuleType:
    """A module that declares one column stage with some attributes changed; None leaves one out."""
    module = ModuleType("components.fake.stage")
    attributes: dict[str, Any] = {
        "name": "fake", "summary": "s", "reads": (), "writes": "w", "needs": Needs(1), "version": 1,
        "fields": (Field("x", "float32", "m"),), "process": lambda self, batch: {},
    }  # fmt: skip
    attributes = {k: v for k, v in (attributes | changed).items() if v is not None}
    stage = type("Fake", (ColumnStage,), attributes | {"__module__": module.__name__})
    module.Fake = stage  # type: ignore[attr-defined]
    return module


def test_a_whole_declaration() -> None:
    assert discovery.declared_in(declare()).name == "fake"


@pytest.mark.parametrize("attribute", ["summary", "reads", "writes", "needs", "version", "fields"])
def test_an_incomplete_declaration(attribute: str) -> None:
    with pytest.raises(PermanentError, match=f"components.fake.stage: Fake lacks {attribute}"):
        discovery.declared_in(declare(**{attribute: None}))


def test_an_unknown_dtype() -> None:
    with pytest.raises(PermanentError, match="field x has dtype float8, allowed are"):
        discovery.declared_in(declare(fields=(Field("x", "float8", "m"),)))


def test_no_stage_in_the_module() -> None:
    with pytest.raises(PermanentError, match="declares 0 stages, expected one"):
        discovery.declared_in(ModuleType("components.fake.stage"))


def test_two_stages_of_one_name(monkeypatch: pytest.MonkeyPatch) -> None:
    fake: type[Stage] = discovery.declared_in(declare())
    monkeypatch.setattr(discovery, "declared_in", lambda module: fake)
    discovery.stages.cache_clear()
    try:
        with pytest.raises(PermanentError, match=r"stage fake is declared in components\.fake\.stage already"):
            discovery.stages()
    finally:
        discovery.stages.cache_clear()
