"""Columns: one value per sample, a parquet part per shard, and the ledger that says which parts count.

The commit protocol: data goes under a name of its own content, then `<shard>.<key>.<part>.done.json` naming it is
created only if absent. Readers trust only what a done.json names, so a half-written or lost race never shows.

The key says of what the values are, so that no shard ever has the values of another one with its name. The index's is
the shard's state: where its files lie, their size and version. Every other column's is a hash of the content that the
index found: of uids and images, and where raw texts decide the values of these as well. So a shard that was written
anew is indexed anew, and whatever its content leaves as it was is found again: a copied or touched pool keeps its
captions and scores, one with corrected texts its captions.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Self

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from components.base.errors import PermanentError, TemporaryError
from components.pool.shards import Shard, common_start
from components.pool.specs import ColumnSpec, Content
from components.storage.commit import DONE, DoneRecord, commit, find_record, withdraw, write_content
from components.storage.interface import Storage

ALL = "all"  # the part of a column that every sample is asked for
READERS = 16  # records that are read at a time: 128,000 of a bucket, 30 ms each, take 4 minutes


@dataclass(frozen=True)
class Record(DoneRecord):
    """The done.json of a part."""

    file: str
    rows: int
    bytes: int
    sha256: str
    failures: Mapping[str, int]
    """Reason → count: samples whose value is missing, and what else went wrong with the shard."""
    seconds: float
    code: str
    """Version of recaption."""
    content: Content | None = None
    """Of a part of the index: what the shard has."""

    @property
    def unusable(self) -> int:
        """Number of samples whose value is missing."""
        return sum(n for reason, n in self.failures.items() if reason.startswith("sample: "))

    @property
    def data(self) -> Mapping[str, int]:
        return {self.file: self.bytes}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        content = value["content"]
        return cls(**{**value, "content": Content(**content) if content else None})


class Columns:
    """The columns of one pool. Lists a column's folder once and remembers it: make a new one to see others' work."""

    def __init__(
        self,
        storage: Storage,
        pool: str,
        shards: Sequence[Shard] | None = None,
        contents: Mapping[str, Content] | None = None,
    ) -> None:
        """Open the columns; nothing is read yet.

        Args:
            shards: the only ones that will be asked for, so that a worker's listings don't grow with the pool.
            contents: by shard's name, where they are known: the index's records aren't read for them.
        """
        self.storage, self._contents = storage, contents or {}
        self.root = f"pools/{pool}/columns"
        self._start = common_start([shard.name for shard in shards or ()])
        self._parts: dict[str, dict[str, list[str]]] = {}
        self._records: dict[str, Record] = {}

    def parts(self, spec: ColumnSpec, shard: Shard) -> list[str]:
        """Return the shard's committed parts, sorted by name; parts made of other content are not among them."""
        if not shard.name.startswith(self._start):
            raise ValueError(f"shard {shard.name}: this lists only shards that start with {self._start}")
        stem = self._stem(spec, shard)
        return self._listing(spec).get(stem, []) if stem else []

    def content(self, index: ColumnSpec, shard: Shard) -> Content | None:
        """Return the content of the shard; None where it isn't indexed as it lies there now."""
        known = self._contents.get(shard.name)
        if known is None and ALL in self.parts(index, shard):
            known = self.record(index, shard, ALL).content
        return known

    def changed(self, spec: ColumnSpec, shards: Sequence[Shard]) -> list[Shard]:
        """Return the shards that have a part only of what they were before."""
        seen = {stem.rpartition(".")[0] for stem in self._listing(spec)}
        return [shard for shard in shards if shard.name in seen and not self.parts(spec, shard)]

    def record(self, spec: ColumnSpec, shard: Shard, part: str) -> Record:
        """Return the record of a part.

        Raises:
            PermanentError: the shard isn't indexed as it lies there now.
            TemporaryError: somebody has withdrawn it since it was listed.
        """
        path = self._path(spec, shard, part)
        if path not in self._records:
            found = find_record(self.storage, path, Record)
            if found is None:
                raise TemporaryError(f"{path} was withdrawn by another reader; run again to make it anew")
            self._records[path] = found
        return self._records[path]

    def records(self, spec: ColumnSpec, shard: Shard) -> Iterator[Record]:
        return (self.record(spec, shard, part) for part in self.parts(spec, shard))

    def read_records(self, spec: ColumnSpec, shards: Sequence[Shard]) -> None:
        """Read these shards' records, many at a time, and remember them: one by one they take hours."""
        if not any(self.parts(spec, shard) for shard in shards):  # lists, before there are threads
            return
        with ThreadPoolExecutor(READERS) as pool:
            for _ in pool.map(lambda shard: list(self.records(spec, shard)), shards):
                pass

    def rows(self, spec: ColumnSpec, shard: Shard) -> int:
        """Return how many samples the shard's parts cover, failures included."""
        if len(self.parts(spec, shard)) < 2:
            return sum(record.rows for record in self.records(spec, shard))
        return int(self.read(spec, shard, []).num_rows)

    def usable(self, index: ColumnSpec, shard: Shard) -> int:
        """Return how many of the shard's samples can be used, as the index counts them."""
        return sum(record.rows - record.unusable for record in self.records(index, shard))

    def read(self, spec: ColumnSpec, shard: Shard, fields: Sequence[str] | None = None) -> pa.Table:
        """Return the shard's parts joined: `uid`, then `fields` (None: all). No row comes twice, whatever overlaps.

        Raises:
            TemporaryError: a part's file is gone or altered; its record has been withdrawn, so the next run of the
                column makes it anew.
        """
        wanted = None if fields is None else ["uid", *fields]
        tables = [self.read_part(spec, shard, part, wanted) for part in self.parts(spec, shard)]
        if not tables:
            raise PermanentError(f"column {spec.folder} has nothing for shard {shard.name}; run its stage first")
        table = pa.concat_tables(tables)
        return table if len(tables) == 1 else _first_of_each_uid(table)

    def commit(
        self,
        spec: ColumnSpec,
        shard: Shard,
        part: str,
        table: pa.Table,
        failures: Mapping[str, int],
        seconds: float,
        content: Content | None = None,
    ) -> bool:
        """Publish a part. False when another worker's record stands; ours is then deleted.

        Args:
            content: of a part of the index, which is its name to every other column.
        """
        from components.base.version import version

        sink = io.BytesIO()
        pq.write_table(table, sink, compression="zstd")
        path = self._path(spec, shard, part)
        self.storage.create(f"{self.root}/{spec.folder}/column.json", json.dumps(spec.to_json(), indent=1).encode())
        data = write_content(self.storage, path.removesuffix(DONE), "parquet", sink.getvalue())
        counts = dict(sorted(failures.items()))
        record = Record(data.file, table.num_rows, data.bytes, data.sha256, counts, seconds, version(), content)
        standing = commit(self.storage, path, record)
        parts = self._listing(spec).setdefault(self._known_stem(spec, shard), [])
        if part not in parts:
            parts.append(part)
            parts.sort()
        return standing is record

    def withdraw(self, spec: ColumnSpec, shard: Shard, part: str, why: str) -> None:
        """Take a part's record back because its data is not what the record says."""
        path = self._path(spec, shard, part)
        self._listing(spec)[self._known_stem(spec, shard)].remove(part)
        withdraw(self.storage, path, self._records.pop(path, None), why)

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

    def read_part(self, spec: ColumnSpec, shard: Shard, part: str, fields: Sequence[str] | None = None) -> pa.Table:
        """Return these fields of one part (None: all), in the index's order; without `uid` unless that is among them.

        Raises:
            TemporaryError: as `read` does.
        """
        record = self.record(spec, shard, part)
        try:
            data = self.storage.read(record.file)
        except PermanentError as error:
            self.withdraw(spec, shard, part, f"{record.file} can't be read ({error})")
            raise TemporaryError(f"{record.file} is gone; run again to make it anew") from error
        if hashlib.sha256(data).hexdigest() != record.sha256:
            self.withdraw(spec, shard, part, f"{record.file} has another checksum than its record")
            raise TemporaryError(f"{record.file} was altered; run again to make it anew")
        return pq.ParquetFile(pa.BufferReader(data)).read(columns=fields)

    def _path(self, spec: ColumnSpec, shard: Shard, part: str) -> str:
        return f"{self.root}/{spec.folder}/{self._known_stem(spec, shard)}.{part}{DONE}"

    def _known_stem(self, spec: ColumnSpec, shard: Shard) -> str:
        """Return the stem of the shard's files. Raises PermanentError: it isn't indexed as it lies there now."""
        stem = self._stem(spec, shard)
        if stem is None:
            raise PermanentError(f"column {spec.folder}: shard {shard.name} isn't indexed; run the index first")
        return stem

    def _stem(self, spec: ColumnSpec, shard: Shard) -> str | None:
        """Return how the names of the column's files of this shard start; None where that isn't known yet."""
        if not spec.inputs:
            return f"{shard.name}.{shard.state}"
        content = self.content(spec.inputs["index"], shard)
        if content is None:
            return None
        return f"{shard.name}.{content.samples if spec.reads_texts else content.images}"

    def _listing(self, spec: ColumnSpec) -> dict[str, list[str]]:
        if spec.folder not in self._parts:
            found: dict[str, list[str]] = {}
            prefix = f"{self.root}/{spec.folder}/"
            for entry in self.storage.list(prefix + self._start):
                name = entry.path.removeprefix(prefix)
                if name.endswith(DONE):
                    stem, _, part = name.removesuffix(DONE).rpartition(".")
                    found.setdefault(stem, []).append(part)
            self._parts[spec.folder] = {stem: sorted(parts) for stem, parts in found.items()}
        return self._parts[spec.folder]


def align(table: pa.Table, uids: pa.Array) -> pa.Table:
    """Return the table's rows for `uids`, in that order; a uid that it lacks gives a row of nulls."""
    own = table.column("uid").combine_chunks()
    if own.equals(uids):
        return table
    return table.take(pc.index_in(uids, value_set=own))


def _first_of_each_uid(table: pa.Table) -> pa.Table:
    first = pa.table({"uid": table.column("uid"), "row": pa.array(range(table.num_rows))})
    rows = first.group_by("uid", use_threads=False).aggregate([("row", "min")]).column("row_min")
    return table if len(rows) == table.num_rows else table.take(rows)
