"""Candidates from tables of URLs: DataComp's metadata, or any parquet or CSV with a URL and a text."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from components.base.errors import PermanentError
from components.base.hashing import content_hash
from components.pool.uids import canonical_uids
from components.pool.unread import LIKE_TABLES, say_unread
from components.recipe.sources import TABLES, is_table
from components.stages.extract.extraction import Extraction, partitions_of_tables
from components.stages.extract.pairs import SCHEMA
from components.stages.extract.text_rules import LONG_TEXT, LONG_URL, MOST_TEXT, MOST_URL, NO_URL, uid_of
from components.storage.interface import Entry
from components.storage.opening import open_object, open_storage
from components.storage.tables import explained, open_table

log = logging.getLogger(__name__)

ROWS = 1 << 14  # rows looked at together: few, as a text may be long; with fewer the calls begin to cost
URL, TEXT, UID = ("url",), ("text", "caption"), ("uid",)  # names of the fields, in any case; the first that is there


@dataclass(frozen=True)
class TableRows:
    """Rows of a table that were looked at together."""

    rows: int
    kept: pa.RecordBatch
    """The rows that are candidates, as pairs.SCHEMA."""
    dropped: Counter[str]
    """Number of other rows, by reason."""


def find_tables(urls: str) -> Extraction:
    """Return the extraction of the one file, or of all tables below a folder.

    Raises:
        PermanentError: there is none.
    """
    if is_table(urls.rpartition("/")[2]):
        storage, name = open_object(urls)
        size = storage.size(name)
        if size is not None:
            return _found(storage.uri, [Entry(name, size)])
    storage = open_storage(urls)
    entries = list(storage.list())
    found = [entry for entry in entries if is_table(entry.path)]
    paths = [entry.path for entry in entries]
    unread = say_unread(storage.uri, paths, LIKE_TABLES, "table", "make them .parquet or .csv")
    if not found:
        there = f"no {', '.join(TABLES[:-1])} or {TABLES[-1]} there"
        raise PermanentError(f"{urls}: {there}{unread and '; '}{unread}")
    if unread:
        log.warning("%s: %s", urls, unread)
    return _found(storage.uri, found)


def candidates_of(file: BinaryIO, path: str) -> Iterator[TableRows]:
    """Stream one file. URL and text stay as they are, as a published uid refers to them; a text may be missing.

    Raises:
        PermanentError: it isn't what its name says, or lacks a field.
    """
    with explained(f"table {path}"):
        table = open_table(file, path)
        url, text = (_field(table.names, names, path) for names in (URL, TEXT))
        uid = _field(table.names, UID, path) if _fields(table.names, UID) else None
        fields = [name for name in (url, text, uid) if name is not None]
        for batch in table.batches(dict.fromkeys(fields, pa.binary()), ROWS):
            urls, texts = (_strings(batch.column(name), name, path) for name in (url, text))
            yield _decided(urls, texts, canonical_uids(batch.column(uid)) if uid else None)


def _found(base: str, entries: Sequence[Entry]) -> Extraction:
    content = content_hash([base, [(entry.path, entry.size) for entry in entries]])
    partitions = partitions_of_tables(sum(entry.size for entry in entries))
    return Extraction("tables", base, tuple(entry.path for entry in entries), "table", partitions, content)


def _fields(names: Sequence[str], wanted: Sequence[str]) -> list[str]:
    """Return the names equal to the first of `wanted` that occurs, in any case."""
    by_name = ([name for name in names if name.strip().lower() == one] for one in wanted)
    return next(filter(None, by_name), [])


def _field(names: Sequence[str], wanted: Sequence[str], path: str) -> str:
    found = _fields(names, wanted)
    if len(found) == 1:
        return found[0]
    there = f"; there is {', '.join(names) or 'nothing'}"
    raise PermanentError(f"table {path}: {'several fields' if found else 'no field'} {' or '.join(wanted)}{there}")


def _strings(column: pa.Array, name: str, path: str) -> pa.Array:
    """Convert a column to valid UTF-8, which a parquet doesn't promise; U+FFFD stands for what is not."""
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    kind = column.type
    if pa.types.is_null(kind):
        return column.cast(pa.string())
    if kind not in (pa.string(), pa.large_string(), pa.string_view(), pa.binary(), pa.large_binary(), pa.binary_view()):
        raise PermanentError(f"table {path}: {name} has dtype {kind}, expected string")
    data = column.cast(pa.binary())
    try:
        return data.cast(pa.string())
    except pa.ArrowInvalid:
        return pa.array([None if v is None else v.decode("utf-8", "replace") for v in data.to_pylist()], pa.string())


def _decided(urls: pa.Array, texts: pa.Array, uids: pa.Array | None = None) -> TableRows:
    """Decide on each row: it is kept, or has a reason, the first that holds."""
    urls, texts = (pc.fill_null(column, "") for column in (urls, texts))
    left, dropped = np.ones(len(urls), bool), Counter[str]()
    for reason, holds in (
        (NO_URL, _blank(urls)),
        (LONG_URL, pc.greater(pc.utf8_length(urls), MOST_URL)),
        (LONG_TEXT, pc.greater(pc.utf8_length(texts), MOST_TEXT)),
    ):
        drop = left & holds.to_numpy(zero_copy_only=False)
        dropped[reason] = int(drop.sum())
        left &= ~drop
    mask = pa.array(left)
    urls, texts, given = (column if column is None else column.filter(mask) for column in (urls, texts, uids))
    kept = pa.record_batch([_uids(given, urls, texts), urls, texts], SCHEMA)
    return TableRows(len(left), kept, +dropped)


def _blank(column: pa.Array) -> pa.Array:
    return pc.or_(pc.equal(column, ""), pc.utf8_is_space(column))


def _uids(given: pa.Array | None, urls: pa.Array, texts: pa.Array) -> pa.Array:
    """Return 16 bytes per row: the canonical uid it has, or, where it has none, that of its text and URL."""
    if given is None:
        return pa.array(map(uid_of, urls.to_pylist(), texts.to_pylist()), pa.binary(16))
    if not given.null_count:
        digits = pc.binary_join(pa.ListArray.from_arrays([0, len(given)], given), "")[0].as_py()
        data = pa.py_buffer(bytes.fromhex(digits))
        return pa.FixedSizeBinaryArray.from_buffers(pa.binary(16), len(given), [None, data])
    rows = zip(given.to_pylist(), urls.to_pylist(), texts.to_pylist(), strict=True)
    return pa.array([bytes.fromhex(uid) if uid else uid_of(url, text) for uid, url, text in rows], pa.binary(16))
