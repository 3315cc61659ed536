"""Names of samples elsewhere: uid, key, or the URL or SHA-256 of the metadata, in one form on both sides of a join."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import Any, Literal, Protocol

import pyarrow as pa
import pyarrow.compute as pc

from components.base.errors import PermanentError
from components.pool.columns import Columns
from components.pool.shards import Shard
from components.pool.sidecar import read_beside, texts_of
from components.pool.specs import ColumnSpec
from components.pool.uids import canonical_uids
from components.storage.interface import Storage
from components.storage.tables import explained

By = Literal["uid", "key", "url", "sha256"]
"""What a table is joined by: the name of its field, and of the one in the pool's metadata."""


class Samples(Protocol):
    """The samples of a task. Calling it lists their uids."""

    def __call__(self) -> Iterable[str]: ...

    def named(self, by: By) -> Iterable[tuple[str, str, str]]:
        """List shard's name, uid and what the sample is called, of every usable sample that is called something."""


class IndexedSamples:
    """The samples of some indexed shards."""

    def __init__(self, source: Storage, columns: Columns, index: ColumnSpec, shards: Iterable[Shard]) -> None:
        self._source, self._columns, self._index, self._shards = source, columns, index, list(shards)

    def __call__(self) -> Iterator[str]:
        for shard in self._shards:
            yield from self._columns.read(self._index, shard, []).column("uid").to_pylist()

    def named(self, by: By) -> Iterator[tuple[str, str, str]]:
        for shard in self._shards:
            rows = self._columns.read(self._index, shard, ["key", "json_offset", "json_size", "error"])
            rows = rows.filter(pc.is_null(rows.column("error")))
            uids = rows.column("uid").to_pylist()
            names = self._names(shard, rows.to_pylist(), by) if by != "uid" else uids
            yield from ((shard.name, uid, name) for uid, name in zip(uids, names, strict=True) if name)

    def _names(self, shard: Shard, rows: list[dict[str, Any]], by: By) -> list[str | None]:
        if by == "key":
            return [row["key"] for row in rows]
        found = self._beside(shard, {row["key"] for row in rows}, by) if shard.parquet else {}
        if any(row["key"] not in found and row["json_size"] for row in rows):
            with self._source.open(shard.tar, shard.version) as tar:
                for row in rows:
                    if row["key"] not in found and row["json_size"]:
                        tar.seek(row["json_offset"])
                        found[row["key"]] = _from_json(tar.read(row["json_size"]), by)
        return [found.get(row["key"]) for row in rows]

    def _beside(self, shard: Shard, keys: set[str], by: By) -> dict[str, str | None]:
        """Return the names by key from the parquet beside the tar, a small read; empty where it can't be read."""
        found: dict[str, str | None] = {}
        assert shard.parquet is not None
        with self._source.open(shard.parquet) as file:
            try:
                with explained(shard.parquet):
                    for batch in read_beside(file, [by]):
                        names = names_of(batch[by], by).to_pylist() if by in batch else []
                        pairs = zip(texts_of(batch["key"]), names, strict=False)
                        found |= {key: name for key, name in pairs if key in keys and name}
            except PermanentError:  # the index has counted it
                return {}
        return found


def names_of(column: pa.Array, by: By) -> pa.Array:
    """Return a table's field as text in the form that both sides of a join have; null where there is nothing.

    Raises:
        ValueError: its type can't hold such names.
    """
    if by == "uid":
        return canonical_uids(column)
    if pa.types.is_binary(column.type):
        with suppress(pa.ArrowInvalid):  # not UTF-8
            column = column.cast(pa.string())
    if by == "sha256" and pa.types.is_fixed_size_binary(column.type):
        return pa.array([None if value is None else value.hex() for value in column.to_pylist()], pa.string())
    texts = column if column.type == pa.string() else pa.array(texts_of(column), pa.string())
    return pc.ascii_lower(texts) if by == "sha256" else texts


def _from_json(data: bytes, by: By) -> str | None:
    try:
        value = json.loads(data).get(by)
    except (ValueError, AttributeError, RecursionError):
        return None
    return names_of(pa.array([value]), by)[0].as_py() if isinstance(value, str) and value else None
