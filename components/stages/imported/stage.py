"""import: join a column that was made elsewhere by uid; memory grows with the task, not with the source."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any, Literal

import pydantic

from components.base.errors import PermanentError
from components.base.hashing import content_hash
from components.engine.stage import Batch, ColumnStage, Field, Needs
from components.pool.specs import ColumnSpec
from components.recipe.columns import Options, Role
from components.recipe.types import Address, Text

log = logging.getLogger(__name__)

NOT_THERE = "not in the source"


class Import(Options):
    """A column made elsewhere, joined by uid."""

    kind = "import"
    roles = ("score", "text", "flag")
    checks = (
        (
            "self.from.endsWith('.npy') != has(self.field)",
            "a .npy lists uids and has no field; a parquet or CSV needs `field`, the name of its value",
        ),
        ("!self.from.endsWith('.npy') || self.__as__ == 'flag'", "a .npy lists uids, so it must be imported as a flag"),
    )

    source: Annotated[Address, pydantic.Field(alias="from")]
    """A .parquet, .csv or (flags) DataComp subset .npy file, or a folder of them, with a `uid` field."""
    field: Text | None = None
    """Which field of a parquet or CSV holds the value. Left out for a .npy: listed uids are true."""
    as_: Annotated[Literal["score", "text", "flag"], pydantic.Field(alias="as")]
    """score: float, higher = better; text: captions; flag: true or false."""

    @property
    def roles_here(self) -> tuple[Role, ...]:
        return (self.as_,)

    @pydantic.model_validator(mode="after")
    def _field(self) -> Import:
        if self.source.endswith(".npy") != (self.field is None):
            raise ValueError(
                "a .npy lists uids and has no field; a parquet or CSV needs `field`, the name of its value"
            )
        if self.source.endswith(".npy") and self.as_ != "flag":
            raise ValueError("a .npy lists uids, so it must be imported as a flag")
        return self


class ImportStage(ColumnStage):
    """Reads parquet or CSV with a `uid` field, or DataComp's subset files (`.npy` of 128-bit uids)."""

    name = "import"
    summary = "join a column made elsewhere by uid"
    reads = ()
    writes = "score, text or flag"
    needs = Needs(memory_gib=4)
    version = 1
    fields: tuple[Field, ...] = (
        Field("score", "float32", "higher = better; null: no score, or another kind of column"),
        Field("text", "string", "null: no text, or another kind of column"),
        Field("flag", "bool", "null: unknown, or another kind of column"),
    )
    kinds = (Import,)
    batch_size = 10_000

    @classmethod
    def make_spec(cls, options: Options, where: str, inputs: Mapping[str, ColumnSpec]) -> ColumnSpec:
        """Return the column, named by the names and sizes of the source's files; a relative source becomes absolute.

        Raises:
            PermanentError: no such source, or no such field.
        """
        assert isinstance(options, Import)
        from components.stages.imported.sources import check_fields, find_source

        source = find_source(options.source)
        if options.field is not None:
            check_fields(source, options.field)
        made = super().make_spec(options.model_copy(update={"source": source.address}), where, inputs)
        content = {"from": content_hash([(e.path, e.size) for e in source.files])}
        return replace(made, params={**made.params, "content": content})

    @classmethod
    def label(cls, options: Options) -> str:
        assert isinstance(options, Import)
        return re.sub(r"[^A-Za-z0-9._-]+", "-", options.field or options.as_)

    def setup(self, uids: Callable[[], Iterable[str]]) -> None:
        """Stream the source once and keep what this task's samples need.

        Raises:
            PermanentError: no file, no such field, or values that aren't of the column's kind.
        """
        from components.stages.imported.sources import find_source, rows_of

        wanted, source, field, kind = (
            set(uids()),
            find_source(self.options.source),
            self.options.field,
            self.options.as_,
        )
        self.values: dict[str, Any] = {}
        rows = repeated = 0
        for file in source.files:
            for looked_at, found, values in rows_of(source.storage, file.path, field, kind, wanted):
                rows += looked_at
                for uid, value in zip(found, values, strict=True):
                    if uid in self.values:
                        repeated += 1
                    else:
                        self.values[uid] = _checked(value, kind, file.path)
        log.info("%s: %d rows, %d of this task's %d samples found", source.address, rows, len(self.values), len(wanted))
        if repeated:
            log.warning("%s: %d rows repeat a uid; the first one counts", source.address, repeated)
        if field is not None and len(self.values) < len(wanted) / 2:
            log.warning("%s: most samples are not in it; is it of another pool?", source.address)

    def process(self, batch: Batch) -> Mapping[str, Sequence[Any]]:
        count = len(batch.uids)
        columns: dict[str, list[Any]] = {name: [None] * count for name in ("score", "text", "flag")}
        if self.options.field is None:
            return {**columns, "flag": [uid in self.values for uid in batch.uids]}
        columns[self.options.as_] = [self.values.get(uid) for uid in batch.uids]
        return {**columns, "error": [None if uid in self.values else NOT_THERE for uid in batch.uids]}


def _checked(value: Any, kind: str, path: str) -> Any:
    """Return the value as what it is imported as; None stays None, and a text of nothing but spaces becomes None."""
    if value is None:
        return None
    if kind == "score" and isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    if kind == "text" and isinstance(value, str):
        return value if value.strip() else None
    if kind == "flag" and isinstance(value, (bool, int)):
        return bool(value)
    raise PermanentError(f"import {path}: found {value!r}, expected a {kind}; is it the right field?")
