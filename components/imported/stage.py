"""import: join a column that was made elsewhere by uid; memory grows with the task, not with the source."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from components.pool.columns import ColumnSpec
from components.pool.errors import PermanentError
from components.pool.fingerprint import files_fingerprint
from components.pool.recipe import ImportedColumn
from components.pool.stage import Batch, ColumnStage, Field, Needs
from components.pool.storage import Storage, open_object, open_storage
from components.pool.uids import canonical_uid

log = logging.getLogger(__name__)

KINDS = ("parquet", "csv", "npy")
NOT_THERE = "not in the source"
ROWS = 1 << 16  # uids of a .npy looked at together


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
    batch_size = 10_000

    @classmethod
    def make_spec(cls, column: ImportedColumn, index: ColumnSpec) -> ColumnSpec:
        storage, prefix = _place(column.source)
        params = {
            "source": column.source,
            "files": files_fingerprint(storage.uri, prefix),
            "field": column.field,
            "kind": column.kind,
        }
        return ColumnSpec(cls.name, column.field or column.kind, cls.version, params, {"index": index})

    def setup(self, uids: Callable[[], Iterable[str]]) -> None:
        """Stream the source once and keep what this task's samples need.

        Raises:
            PermanentError: no file, no such field, or values that aren't of the column's kind.
        """
        wanted, params = set(uids()), self.spec.params
        self.values: dict[str, Any] = {}
        rows = repeated = 0
        for found, values in _chunks(str(params["source"]), params["field"]):
            rows += len(found)
            for uid, value in zip(found, values, strict=True):
                if uid not in wanted:
                    continue
                if uid in self.values:
                    repeated += 1
                else:
                    self.values[uid] = _checked(value, str(params["kind"]), str(params["source"]))
        log.info(
            "%s: %d rows, %d of this task's %d samples found", params["source"], rows, len(self.values), len(wanted)
        )
        if repeated:
            log.warning("%s: %d rows repeat a uid; the first one counts", params["source"], repeated)
        if len(self.values) < len(wanted) / 2:
            log.warning("%s: most samples are not in it; is it of another pool?", params["source"])

    def process(self, batch: Batch) -> Mapping[str, Sequence[Any]]:
        kind, count = str(self.spec.params["kind"]), len(batch.uids)
        columns: dict[str, list[Any]] = {name: [None] * count for name in ("score", "text", "flag")}
        if self.spec.params["field"] is None:
            return {**columns, "flag": [uid in self.values for uid in batch.uids]}
        columns[kind] = [self.values.get(uid) for uid in batch.uids]
        return {**columns, "error": [None if uid in self.values else NOT_THERE for uid in batch.uids]}


def _place(source: str) -> tuple[Storage, str]:
    """The storage that holds the source, and the prefix of its files there."""
    if source.endswith(KINDS):
        return open_object(source)
    return open_storage(source), ""


def _chunks(source: str, field: str | None) -> Iterator[tuple[list[str], Sequence[Any]]]:
    """(canonical uids, values) of all files of a source."""
    storage, prefix = _place(source)
    paths = [e.path for e in storage.list(prefix) if e.path.endswith(KINDS)]
    if not paths:
        raise PermanentError(f"import {source}: no .parquet, .csv or .npy there")
    for path in paths:
        if path.endswith("npy"):
            yield from _npy(storage, path)
        else:
            assert field is not None
            yield from _table(storage, path, field)


def _table(storage: Storage, path: str, field: str) -> Iterator[tuple[list[str], Sequence[Any]]]:
    with storage.open(path) as file:
        try:
            if path.endswith("parquet"):
                parquet = pq.ParquetFile(file)
                _require(parquet.schema_arrow.names, field, path)
                batches: Iterable[pa.RecordBatch] = parquet.iter_batches(ROWS, columns=["uid", field])
            else:
                batches = pa_csv.open_csv(
                    file, convert_options=pa_csv.ConvertOptions(column_types={"uid": pa.string()})
                )
            for batch in batches:
                _require(batch.schema.names, field, path)
                uids = [canonical_uid(str(uid)) for uid in batch.column("uid").to_pylist()]
                yield uids, batch.column(field).to_pylist()
        except pa.ArrowInvalid as error:
            raise PermanentError(f"import {path}: {' '.join(str(error).split())}") from error


def _npy(storage: Storage, path: str) -> Iterator[tuple[list[str], Sequence[Any]]]:
    with storage.open(path) as file:
        try:
            version = np.lib.format.read_magic(file)
            shape, _, dtype = np.lib.format._read_array_header(file, version)  # type: ignore[attr-defined]
        except ValueError as error:
            raise PermanentError(f"import {path}: {error}") from error
        if dtype != np.dtype("u8,u8") or len(shape) != 1:
            raise PermanentError(f"import {path}: has dtype {dtype}, expected DataComp's u8,u8 (two halves of the uid)")
        while data := file.read(ROWS * 16):
            pairs = np.frombuffer(data, dtype)
            yield [f"{a:016x}{b:016x}" for a, b in pairs.tolist()], [True] * len(pairs)


def _require(names: Sequence[str], field: str, path: str) -> None:
    missing = [name for name in ("uid", field) if name not in names]
    if missing:
        raise PermanentError(f"import {path}: no field {' or '.join(missing)}; there is {', '.join(names)}")


def _checked(value: Any, kind: str, source: str) -> Any:
    """The value as the column's kind; None stays None."""
    good = {"score": (int, float), "text": (str,), "flag": (bool, int)}[kind]
    if value is None or (isinstance(value, good) and not (kind == "score" and isinstance(value, bool))):
        return bool(value) if kind == "flag" and value is not None else value
    raise PermanentError(f"import {source}: found {value!r}, expected a {kind}; is it the right field?")
