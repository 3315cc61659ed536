"""Columns: one value per sample, a parquet part per shard, and the ledger that says which parts count.

The commit protocol: data goes under a name of its own content, then `<shard>.<part>.done.json` naming it is created
only if absent. Readers trust only what a done.json names, so a half-written or lost race never shows.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from components.pool.errors import PermanentError, TemporaryError
from components.pool.shards import Shard, common_start, content_hash
from components.pool.storage import Storage

log = logging.getLogger(__name__)

ALL = "all"  # the part of a column that every sample is asked for


@dataclass(frozen=True)
class ColumnSpec:
    """What made a column: everything its content depends on, and nothing else."""

    stage: str
    label: str
    """Readable start of the folder's name, derived from the parameters (never from a recipe's own names)."""
    version: int
    params: Mapping[str, Any]
    inputs: Mapping[str, ColumnSpec] = field(default_factory=dict)
    """By role: the columns it is computed from."""

    @cached_property
    def hash(self) -> str:
        inputs = {role: spec.hash for role, spec in self.inputs.items()}
        return content_hash([self.stage, self.version, dict(self.params), inputs])

    @property
    def folder(self) -> str:
        return f"{self.stage}.{self.label}-{self.hash}"

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "inputs": {role: spec.to_json() for role, spec in self.inputs.items()}}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> ColumnSpec:
        inputs = {role: cls.from_json(spec) for role, spec in value["inputs"].items()}
        return cls(value["stage"], value["label"], value["version"], value["params"], inputs)


@dataclass(frozen=True)
class Record:
    """A done.json."""

    file: str
    rows: int
    bytes: int
    sha256: str
    shard_bytes: int
    """Size of the tar it was made from."""
    failures: Mapping[str, int]
    """Reason → count: samples whose value is missing, and what else went wrong with the shard."""
    seconds: float
    code: str
    """Version of recaption."""


class Columns:
    """The columns of one pool. Lists a column's folder once and remembers it: make a new one to see others' work."""

    def __init__(self, storage: Storage, pool: str, shards: Sequence[Shard] | None = None) -> None:
        """`shards`: the only ones that will be asked for, so that a worker's listings don't grow with the pool."""
        self.storage = storage
        self.root = f"pools/{pool}/columns"
        self._start = common_start([shard.name for shard in shards or ()])
        self._parts: dict[str, dict[str, list[str]]] = {}
        self._records: dict[str, Record] = {}

    def parts(self, spec: ColumnSpec, shard: Shard) -> list[str]:
        """The shard's committed parts, sorted by name."""
        if not shard.name.startswith(self._start):
            raise ValueError(f"shard {shard.name}: this lists only shards that start with {self._start}")
        return self._listing(spec).get(shard.name, [])

    def record(self, spec: ColumnSpec, shard: Shard, part: str) -> Record:
        """What is known of a part.

        Raises:
            PermanentError: the part was made from another tar than the one that lies there now.
            TemporaryError: somebody has withdrawn it since it was listed.
        """
        path = self._path(spec, shard, part)
        if path not in self._records:
            found = self._stored(path)
            if found is None:
                raise TemporaryError(f"{path} was withdrawn by another reader; run again to make it anew")
            self._records[path] = found
        record = self._records[path]
        if record.shard_bytes != shard.size:
            raise PermanentError(
                f"shard {shard.tar}: has {shard.size} bytes, had {record.shard_bytes} when {spec.folder} was made; "
                "give a changed shard a new name, or delete its columns"
            )
        return record

    def records(self, spec: ColumnSpec, shard: Shard) -> Iterator[Record]:
        return (self.record(spec, shard, part) for part in self.parts(spec, shard))

    def rows(self, spec: ColumnSpec, shard: Shard) -> int:
        """How many samples the shard's parts cover, failures included."""
        if len(self.parts(spec, shard)) < 2:
            return sum(record.rows for record in self.records(spec, shard))
        return int(self.read(spec, shard, []).num_rows)

    def read(self, spec: ColumnSpec, shard: Shard, fields: Sequence[str] | None = None) -> pa.Table:
        """The shard's parts joined: `uid`, then `fields` (None: all). No row twice, whatever overlaps.

        Raises:
            TemporaryError: a part's file is gone or altered; its record has been withdrawn, so the next run of the
                column makes it anew.
        """
        tables = [self._load(spec, shard, part, fields) for part in self.parts(spec, shard)]
        if not tables:
            raise PermanentError(f"column {spec.folder} has nothing for shard {shard.name}; run its stage first")
        table = pa.concat_tables(tables)
        return table if len(tables) == 1 else _first_of_each_uid(table)

    def commit(
        self, spec: ColumnSpec, shard: Shard, part: str, table: pa.Table, failures: Mapping[str, int], seconds: float
    ) -> bool:
        """Publish a part. False when another worker's record stands; ours is then deleted."""
        from components.pool import version

        sink = io.BytesIO()
        pq.write_table(table, sink, compression="zstd")
        data = sink.getvalue()
        digest = hashlib.sha256(data).hexdigest()
        file = f"{self.root}/{spec.folder}/{shard.name}.{part}.{digest[:16]}.parquet"
        record = Record(
            file, table.num_rows, len(data), digest, shard.size, dict(sorted(failures.items())), seconds, version()
        )
        self.storage.create(f"{self.root}/{spec.folder}/column.json", json.dumps(spec.to_json(), indent=1).encode())
        self.storage.write(file, data)
        path = self._path(spec, shard, part)
        won = self.storage.create(path, json.dumps(asdict(record), indent=1).encode())
        if not won and json.loads(self.storage.read(path))["file"] != file:
            self.storage.delete(file)
        parts = self._listing(spec).setdefault(shard.name, [])
        if part not in parts:
            parts.append(part)
            parts.sort()
        return won

    def withdraw(self, spec: ColumnSpec, shard: Shard, part: str, why: str) -> None:
        """Take a part's record back because its data is not what the record says."""
        path = self._path(spec, shard, part)
        self._listing(spec)[shard.name].remove(part)
        seen = self._records.pop(path, None)
        if self._stored(path) != seen:
            return  # somebody was faster: it is withdrawn, or made anew
        log.warning("%s: %s; withdrawn, it will be made anew", path, why)
        self.storage.delete(path)

    def check_files(self, spec: ColumnSpec, shards: Sequence[Shard]) -> None:
        """Withdraw every record whose file is gone or has another size; no data is read."""
        self._listing(spec)  # records first: the file of each was there before it
        sizes = {e.path: e.size for e in self.storage.list(f"{self.root}/{spec.folder}/{self._start}")}
        for shard in shards:
            for part in list(self.parts(spec, shard)):
                record = self.record(spec, shard, part)
                if sizes.get(record.file) != record.bytes:
                    found = "is gone" if record.file not in sizes else f"has {sizes[record.file]} bytes"
                    self.withdraw(spec, shard, part, f"{record.file} {found}, expected {record.bytes} bytes")

    def _load(self, spec: ColumnSpec, shard: Shard, part: str, fields: Sequence[str] | None) -> pa.Table:
        record = self.record(spec, shard, part)
        wanted = None if fields is None else ["uid", *fields]
        try:
            data = self.storage.read(record.file)
        except PermanentError as error:
            self.withdraw(spec, shard, part, f"{record.file} can't be read ({error})")
            raise TemporaryError(f"{record.file} is gone; run again to make it anew") from error
        if hashlib.sha256(data).hexdigest() != record.sha256:
            self.withdraw(spec, shard, part, f"{record.file} has another checksum than its record")
            raise TemporaryError(f"{record.file} was altered; run again to make it anew")
        return pq.read_table(pa.BufferReader(data), columns=wanted)

    def _stored(self, path: str) -> Record | None:
        """The record that lies there now."""
        try:
            data = self.storage.read(path)
        except PermanentError:
            if self.storage.size(path) is not None:
                raise
            return None
        try:
            return Record(**json.loads(data))
        except (ValueError, TypeError) as error:
            raise PermanentError(f"{path}: not a done.json ({error}); delete it and run again") from error

    def _path(self, spec: ColumnSpec, shard: Shard, part: str) -> str:
        return f"{self.root}/{spec.folder}/{shard.name}.{part}.done.json"

    def _listing(self, spec: ColumnSpec) -> dict[str, list[str]]:
        if spec.folder not in self._parts:
            found: dict[str, list[str]] = {}
            prefix = f"{self.root}/{spec.folder}/"
            for entry in self.storage.list(prefix + self._start):
                name = entry.path.removeprefix(prefix)
                if name.endswith(".done.json"):
                    shard, _, part = name.removesuffix(".done.json").rpartition(".")
                    found.setdefault(shard, []).append(part)
            self._parts[spec.folder] = {shard: sorted(parts) for shard, parts in found.items()}
        return self._parts[spec.folder]


def align(table: pa.Table, uids: pa.Array) -> pa.Table:
    """The table's rows for `uids`, in that order; a uid it lacks gives a row of nulls."""
    own = table.column("uid").combine_chunks()
    if own.equals(uids):
        return table
    return table.take(pc.index_in(uids, value_set=own))


def _first_of_each_uid(table: pa.Table) -> pa.Table:
    first = pa.table({"uid": table.column("uid"), "row": pa.array(range(table.num_rows))})
    rows = first.group_by("uid", use_threads=False).aggregate([("row", "min")]).column("row_min")
    return table if len(rows) == table.num_rows else table.take(rows)
