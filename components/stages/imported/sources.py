"""Reads files of (what a sample is called, value) as a stream, and keeps the rows that are wanted."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from components.base.errors import PermanentError
from components.pool.identities import By, names_of
from components.pool.unread import LIKE_TABLES, say_unread
from components.recipe.sources import is_table
from components.storage.interface import Entry, Storage
from components.storage.opening import open_object, open_storage
from components.storage.tables import explained, open_table

log = logging.getLogger(__name__)

SUBSET = ".npy"
ROWS = 1 << 18  # rows looked at together: with fewer, finding the wanted ones costs more than reading
CSV_TYPES = {"score": pa.float64(), "text": pa.binary(), "flag": pa.bool_()}
TEXTS = (pa.string(), pa.large_string(), pa.string_view(), pa.binary_view())
NPY_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}

Found = tuple[int, list[str], Sequence[Any]]
"""Rows looked at; names and values of the wanted ones among them."""


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
    if is_table(source.rpartition("/")[2]) or source.endswith(SUBSET):
        storage, name = open_object(source)
        size = storage.size(name)
        if size is not None:
            return ImportSource(f"{storage.uri}/{name}", storage, [Entry(name, size)])
    storage = open_storage(source)
    entries = list(storage.list())
    found = [entry for entry in entries if is_table(entry.path)]
    paths = [entry.path for entry in entries]
    unread = say_unread(storage.uri, paths, LIKE_TABLES, "table", "make them .parquet or .csv")
    if not found:
        raise PermanentError(f"import {source}: no .parquet, .csv or .npy there{unread and '; '}{unread}")
    if unread:
        log.warning("import %s: %s", source, unread)
    return ImportSource(storage.uri, storage, found)


def check_fields(source: ImportSource, field: str, by: By) -> None:
    """Look into the first file, so that a wrong field is found before hours of work; the others when they are read.

    Raises:
        PermanentError: it isn't what its name says, or has no such fields.
    """
    path = source.files[0].path
    with source.storage.open(path) as file, explained(f"import {path}"):
        _fields(open_table(file, path).names, field, by)


def rows_of(storage: Storage, path: str, field: str | None, kind: str, by: By, wanted: set[str]) -> Iterator[Found]:
    """Stream one file.

    Args:
        wanted: what the samples are called that are asked for, in the form of `names_of`.

    Raises:
        PermanentError: it isn't what its name says, or has no such fields.
    """
    with storage.open(path) as file, explained(f"import {path}"):
        if field is None:
            yield from _subset(file, path, wanted)
            return
        table = open_table(file, path)
        joined, field = _fields(table.names, field, by)
        known = pa.array(list(wanted), pa.string())
        for batch in table.batches({joined: pa.binary(), field: CSV_TYPES[kind]}, ROWS):
            names = names_of(batch.column(joined), by)
            rows = pc.indices_nonzero(pc.is_in(names, value_set=known))
            yield batch.num_rows, names.take(rows).to_pylist(), _values(batch.column(field), rows)


def _values(column: pa.Array, rows: pa.Array) -> list[Any]:
    """Return some of a column's values, of whatever Arrow type, as Python's; equal ones of a dictionary are shared.

    Texts are bytes, as nobody has checked that they are UTF-8.
    """
    if isinstance(column, pa.ExtensionArray):
        column = column.storage
    if pa.types.is_dictionary(column.type):
        indices = column.indices.take(rows)
        used = pc.unique(indices).drop_null()
        values = dict(zip(used.to_pylist(), _values(column.dictionary, used), strict=True))
        return [values.get(index) for index in indices.to_pylist()]
    if column.type in TEXTS:
        column = column.cast(pa.large_binary())
    return list(column.take(rows).to_pylist())


def _subset(file: BinaryIO, path: str, wanted: set[str]) -> Iterator[Found]:
    """Read one of DataComp's subset files: the 128 bits of every listed uid in two halves."""
    try:
        shape, _, dtype = NPY_HEADERS[np.lib.format.read_magic(file)](file)
    except (ValueError, KeyError) as error:
        raise PermanentError(f"import {path}: not a .npy ({error})") from error
    if dtype != np.dtype("u8,u8"):
        raise PermanentError(f"import {path}: has dtype {dtype}, expected DataComp's u8,u8 (two halves of the uid)")
    if len(shape) != 1 or shape[0] < 0:
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
    if rows > shape[0] or file.read(1):
        raise PermanentError(f"import {path}: goes on after the {shape[0]} uids of its header; fetch it again")


def _fields(names: Sequence[str], field: str, by: By) -> tuple[str, str]:
    """Return the names of the fields to join by, in whatever case it is there, and of the value.

    Raises:
        ValueError: one is missing, or there are several to join by.
    """
    joined = [by] if by in names else [name for name in names if name.lower() == by]
    if len(joined) > 1:
        raise ValueError(f"several fields {by}: {', '.join(joined)}; rename all but one")
    missing = [name for name, there in ((by, joined), (field, field in names)) if not there]
    if missing:
        raise ValueError(f"no field {' or '.join(missing)}; there is {', '.join(names) or 'nothing'}")
    return joined[0], field
