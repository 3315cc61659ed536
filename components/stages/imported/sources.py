"""Reads files of (uid, value) as a stream, and keeps the rows that are wanted."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from components.base.errors import PermanentError
from components.pool.uids import canonical_uid
from components.storage.interface import Entry, Storage
from components.storage.opening import open_object, open_storage
from components.storage.tables import explained, open_table

TABLES = (".parquet", ".csv")
SUBSET = ".npy"
ROWS = 1 << 18  # rows looked at together: with fewer, finding the wanted ones costs more than reading
CSV_TYPES = {"score": pa.float64(), "text": pa.string(), "flag": pa.bool_()}
NPY_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}

Found = tuple[int, list[str], Sequence[Any]]
"""Rows looked at; canonical uids and values of the wanted ones among them."""


@dataclass(frozen=True)
class ImportSource:
    """The files that the values come from."""

    address: str
    """Address of the files, the same from every working directory."""
    storage: Storage
    files: list[Entry]


def find_source(source: str) -> ImportSource:
    """Find the one file, or all tables below a folder.

    Raises:
        PermanentError: nothing is there that could be read.
    """
    if source.endswith((*TABLES, SUBSET)):
        storage, name = open_object(source)
        size = storage.size(name)
        if size is not None:
            return ImportSource(f"{storage.uri}/{name}", storage, [Entry(name, size)])
    storage = open_storage(source)
    found = [entry for entry in storage.list() if entry.path.endswith(TABLES)]
    if not found:
        raise PermanentError(f"import {source}: no .parquet, .csv or .npy there")
    return ImportSource(storage.uri, storage, found)


def check_fields(source: ImportSource, field: str) -> None:
    """Look into the first file, so that a wrong field is found before hours of work; the others when they are read.

    Raises:
        PermanentError: it isn't what its name says, or has no such field.
    """
    path = source.files[0].path
    with source.storage.open(path) as file, explained(f"import {path}"):
        _require(open_table(file, path).names, field, path)


def rows_of(storage: Storage, path: str, field: str | None, kind: str, wanted: set[str]) -> Iterator[Found]:
    """Stream one file.

    Raises:
        PermanentError: it isn't what its name says, or has no such field.
    """
    with storage.open(path) as file, explained(f"import {path}"):
        if field is None:
            yield from _subset(file, path, wanted)
            return
        table = open_table(file, path)
        _require(table.names, field, path)
        types = {"uid": pa.string(), field: CSV_TYPES[kind]}
        yield from _table(table.batches(types, ROWS), path, field, wanted)


def _table(batches: Iterable[pa.RecordBatch], path: str, field: str, wanted: set[str]) -> Iterator[Found]:
    known = pa.array(list(wanted), pa.string())
    for batch in batches:
        uids = _canonical(batch.column("uid"), path)
        rows = pc.indices_nonzero(pc.is_in(uids, value_set=known))
        yield batch.num_rows, uids.take(rows).to_pylist(), batch.column(field).take(rows).to_pylist()


def _subset(file: BinaryIO, path: str, wanted: set[str]) -> Iterator[Found]:
    """Read one of DataComp's subset files: the 128 bits of every listed uid in two halves."""
    try:
        shape, _, dtype = NPY_HEADERS[np.lib.format.read_magic(file)](file)
    except (ValueError, KeyError) as error:
        raise PermanentError(f"import {path}: not a .npy ({error})") from error
    if dtype != np.dtype("u8,u8"):
        raise PermanentError(f"import {path}: has dtype {dtype}, expected DataComp's u8,u8 (two halves of the uid)")
    if len(shape) != 1:
        raise PermanentError(f"import {path}: has shape {shape}, expected one uid a row")
    halves = np.array(sorted({int(uid[:16], 16) for uid in wanted}), np.uint64)
    rows = 0
    while rows < shape[0] and len(data := file.read(ROWS * dtype.itemsize)) >= dtype.itemsize:
        pairs = np.frombuffer(data, dtype, len(data) // dtype.itemsize)
        near = (f"{a:016x}{b:016x}" for a, b in pairs[np.isin(pairs["f0"], halves)].tolist())
        found = [uid for uid in near if uid in wanted]
        yield len(pairs), found, [True] * len(found)
        rows += len(pairs)
    if rows < shape[0]:
        raise PermanentError(f"import {path}: is cut short: {rows} of {shape[0]} uids are there; fetch it again")


def _canonical(uids: pa.Array, path: str) -> pa.Array:
    """Return uids as `canonical_uid` gives them; null stays null."""
    kind = uids.type.value_type if pa.types.is_dictionary(uids.type) else uids.type
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_integer(kind)):
        raise PermanentError(f"import {path}: uid has dtype {kind}, expected string or integer")
    texts = uids.cast(pa.string())
    if pc.all(pc.match_substring_regex(texts, r"\A[0-9a-fA-F]{32}\z")).as_py() is not False:
        return pc.ascii_lower(texts)
    return pa.array([None if uid is None else canonical_uid(uid) for uid in texts.to_pylist()], pa.string())


def _require(names: Sequence[str], field: str, path: str) -> None:
    missing = [name for name in ("uid", field) if name not in names]
    if missing:
        raise PermanentError(
            f"import {path}: no field {' or '.join(missing)}; there is {', '.join(names) or 'nothing'}"
        )
