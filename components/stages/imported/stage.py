"""import: join a column that was made elsewhere; memory grows with the task, not with the source."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from decimal import Decimal
from typing import TYPE_CHECKING, Annotated, Any, Literal

import pydantic

from components.base.errors import PermanentError
from components.base.hashing import content_hash
from components.base.printable import printable
from components.engine.stage import Batch, ColumnStage, Field, Needs
from components.pool.specs import ColumnSpec
from components.pool.texts import EMPTY, clean_text
from components.recipe.columns import Options, Role
from components.recipe.types import Address, Text

if TYPE_CHECKING:  # which brings pyarrow
    from components.pool.identities import Samples

log = logging.getLogger(__name__)

NOT_THERE = "not in the source"


class Import(Options):
    """A column made elsewhere, joined by uid, key, URL or SHA-256."""

    kind = "import"
    roles = ("score", "text", "flag")
    checks = (
        (
            "self.from.endsWith('.npy') != has(self.field)",
            "a .npy lists uids and has no field; a parquet or CSV needs `field`, the name of its value",
        ),
        ("!self.from.endsWith('.npy') || self.__as__ == 'flag'", "a .npy lists uids, so it must be imported as a flag"),
        ("!self.from.endsWith('.npy') || self.by == 'uid'", "a .npy lists uids, so it can be joined by uid only"),
    )

    source: Annotated[Address, pydantic.Field(alias="from")]
    """A .parquet, .csv, .tsv or (flags) DataComp subset .npy file, or a folder of tables, with the field of `by`."""
    field: Text | None = None
    """Which field of a parquet or CSV holds the value. Left out for a .npy: listed uids are true."""
    as_: Annotated[Literal["score", "text", "flag"], pydantic.Field(alias="as")]
    """score: float, higher = better; text: captions; flag: true or false."""
    by: Literal["uid", "key", "url", "sha256"] = "uid"
    """By which field rows and samples are joined: the sample's uid, its key (its name in the tar), or the url or sha256
    of its metadata. Samples with one URL get the same value. Of rows that repeat a value of it the first counts."""

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
        if self.source.endswith(".npy") and self.by != "uid":
            raise ValueError("a .npy lists uids, so it can be joined by uid only")
        return self


class ImportStage(ColumnStage):
    """Reads parquet, CSV or TSV with a field to join by, or DataComp's subset files (`.npy` of 128-bit uids)."""

    name = "import"
    summary = "join a column made elsewhere by uid, key, URL or SHA-256"
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
            check_fields(source, options.field, options.by)
        made = super().make_spec(options.model_copy(update={"source": source.address}), where, inputs)
        content = {"from": content_hash([(e.path, e.size) for e in source.files])}
        return replace(made, params={**made.params, "content": content})

    @classmethod
    def label(cls, options: Options) -> str:
        assert isinstance(options, Import)
        return re.sub(r"[^A-Za-z0-9._-]+", "-", options.field or options.as_)

    def setup(self, uids: Samples) -> None:
        """Stream the source once and keep what this task's samples need.

        Raises:
            PermanentError: no file, no such field, or values that aren't of the column's kind.
        """
        from components.stages.imported.sources import find_source, rows_of

        options = self.options
        by, field, kind = options.by, options.field, options.as_
        self.names = {} if by == "uid" else {(shard, uid): name for shard, uid, name in uids.named(by)}
        wanted = set(uids()) if by == "uid" else set(self.names.values())
        source = find_source(options.source)
        self.values: dict[str, Any] = {}
        self.reasons: dict[str, str] = {}
        rows = repeated = 0
        for file in source.files:
            for looked_at, found, values in rows_of(source.storage, file.path, field, kind, by, wanted):
                rows += looked_at
                for name, value in zip(found, values, strict=True):
                    if name in self.values:
                        repeated += 1
                    else:
                        self._keep(name, value, file.path)
        log.info("%s: %d rows, %d of this task's %d samples found", source.address, rows, len(self.values), len(wanted))
        if repeated:
            log.warning("%s: %d rows repeat a %s; the first one counts", source.address, repeated, by)
        if field is not None and len(self.values) < len(wanted) / 2:
            log.warning("%s: most samples are not in it; is it of another pool?", source.address)

    def _keep(self, name: str, value: Any, path: str) -> None:
        """Keep a value, as what it is imported as; of a text that can't be used the reason."""
        if self.options.as_ == "text" and isinstance(value, str | bytes):
            self.values[name], why_not = clean_text(value)
            if why_not and why_not != EMPTY:
                self.reasons[name] = f"text {why_not}"
        else:
            self.values[name] = _checked(value, self.options.as_, path)

    def process(self, batch: Batch) -> Mapping[str, Sequence[Any]]:
        count = len(batch.uids)
        columns: dict[str, list[Any]] = {name: [None] * count for name in ("score", "text", "flag")}
        if self.options.field is None:
            return {**columns, "flag": [uid in self.values for uid in batch.uids]}
        names = batch.uids
        if self.options.by != "uid":
            names = [self.names.get((batch.shard.name, uid), "") for uid in batch.uids]
        columns[self.options.as_] = [self.values.get(name) for name in names]
        return {**columns, "error": [self._reason(name) for name in names]}

    def _reason(self, name: str) -> str | None:
        """Return why a sample has no value; None where it has one, or the source says that it has none."""
        if not name:
            return f"no {self.options.by} in the pool"
        return self.reasons.get(name) if name in self.values else NOT_THERE


def _checked(value: Any, kind: str, path: str) -> Any:
    """Return a score or flag as such; None stays None.

    Raises:
        PermanentError: it is something else.
    """
    if value is None:
        return None
    if kind == "score" and isinstance(value, (int, float, Decimal)) and not isinstance(value, bool):
        return float(value)
    if kind == "flag" and isinstance(value, (bool, int)):
        return bool(value)
    shown = printable(repr(value.decode("utf-8", "replace") if isinstance(value, bytes) else value), 200)
    raise PermanentError(f"import {path}: found {shown}, expected a {kind}; is it the right field?")
