"""A task's candidates, kept in storage until all tasks are through: sorted, and a segment per partition.

A spill is one object; a partition's segment is a range of it, which its dedup task reads alone. So a dump of 10⁹
candidates takes a thousand objects, not a thousand times a thousand.
"""

from __future__ import annotations

import hashlib
import io
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

import pyarrow as pa

from components.base.errors import PermanentError, TemporaryError
from components.stages.extract.extraction import Extraction
from components.stages.extract.pairs import SCHEMA, SPACE, bounds_of, cut, sort_once
from components.stages.extract.text_rules import uid_of
from components.storage import commit
from components.storage.commit import DONE, DoneRecord, write_content
from components.storage.interface import Storage

MEMORY = 128_000_000  # bytes of candidates in memory before they are spilled; sorting takes as much again, twice
CHUNK = 20_000  # candidates kept as Python's strings, which take five times an Arrow array's memory
DIGEST = 8  # bytes of SHA-256 before each segment


@dataclass(frozen=True)
class Spill:
    """One object, and its segments in the partitions' order."""

    file: str
    bytes: int
    segments: list[list[int]]
    """Bytes, rows, and bytes in memory of each."""


@dataclass(frozen=True)
class SpillSegment:
    """A partition's range of a spill."""

    task: int
    file: str
    start: int
    length: int
    rows: int
    memory: int
    """Bytes it takes in memory, as a table."""


@dataclass(frozen=True)
class TaskRecord(DoneRecord):
    """A task's done.json. What it counts adds up: `candidates` = Σ `dropped` + Σ `lost` + the spills' rows."""

    spills: list[Spill]
    files: int
    records: Mapping[str, int]
    """Pages with images, and the reasons of records without; a table's rows."""
    candidates: int
    """Number of images seen, or of a table's rows."""
    dropped: Mapping[str, int]
    """Candidates dropped by the rules, by reason."""
    lost: Mapping[str, int]
    """Candidates dropped as duplicates of others of this task, by reason."""
    undecoded: int
    """Texts kept that have U+FFFD, where a page's bytes were no characters."""
    damaged: Mapping[str, int]
    """Number of places in files, and of their bytes, that could not be read."""
    damages: list[dict[str, Any]]
    """The first damaged places: file, offset, bytes, reason."""
    seconds: float
    code: str

    INDENT: ClassVar[int | None] = None

    @property
    def data(self) -> Mapping[str, int]:
        return {spill.file: spill.bytes for spill in self.spills}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        return cls(**{**value, "spills": [Spill(**spill) for spill in value["spills"]]})


@dataclass
class Spiller:
    """Collects candidates and writes them to the storage whenever MEMORY is full; a record makes them count."""

    storage: Storage
    path: str
    partitions: int
    spills: list[Spill] = field(default_factory=list)
    lost: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self._bounds = bounds_of(0, SPACE, self.partitions)
        self._rows: tuple[list[bytes], list[str], list[str]] = ([], [], [])
        self._batches: list[pa.RecordBatch] = []
        self._size = 0

    def add(self, url: str, text: str) -> None:
        uids, urls, texts = self._rows
        uids.append(uid_of(url, text))
        urls.append(url)
        texts.append(text)
        if len(uids) >= CHUNK:
            self._pack()
            self._flush_if_full()

    def add_batch(self, batch: pa.RecordBatch) -> None:
        """Add many candidates at once, as pairs.SCHEMA, in memory of their own."""
        self._append(batch)
        self._flush_if_full()

    def flush(self) -> None:
        """Write what is in memory."""
        self._pack()
        if not self._batches:
            return
        table, lost = sort_once(pa.Table.from_batches(self._batches, SCHEMA))
        self._batches, self._size = [], 0
        self.lost.update(lost)
        sink, segments = io.BytesIO(), []
        for part in cut(table, self._bounds):
            data = _encode(part) if part.num_rows else b""
            sink.write(data)
            segments.append([len(data), part.num_rows, part.nbytes])
        content = sink.getvalue()
        written = write_content(self.storage, self.path, "spill", content)
        self.spills.append(Spill(written.file, written.bytes, segments))

    def _pack(self) -> None:
        if self._rows[0]:
            batch = pa.record_batch([pa.array(c, f.type) for c, f in zip(self._rows, SCHEMA, strict=True)], SCHEMA)
            self._append(batch)
            for column in self._rows:
                column.clear()

    def _append(self, batch: pa.RecordBatch) -> None:
        self._batches.append(batch)
        self._size += batch.nbytes

    def _flush_if_full(self) -> None:
        if self._size >= MEMORY:
            self.flush()


def find_record(storage: Storage, extraction: Extraction, task: int) -> TaskRecord | None:
    """Return the task's record if its spills are there; withdraw a record without them."""
    return commit.find_whole(storage, done_path(extraction, task), TaskRecord)


def read_record(storage: Storage, extraction: Extraction, task: int) -> TaskRecord:
    """Read the task's record.

    Raises:
        PermanentError: the task is not done.
    """
    absent = f"task {task} is not done; run extract's tasks first"
    return commit.read_record(storage, done_path(extraction, task), TaskRecord, absent)


def read_segment(storage: Storage, extraction: Extraction, segment: SpillSegment) -> pa.Table:
    """Read a segment's rows, sorted.

    Raises:
        TemporaryError: it is gone or altered; the task's record has been withdrawn, so its next run makes it anew.
    """
    try:
        data = storage.read(segment.file, segment.start, segment.length)
    except PermanentError:
        data = b""
    if len(data) != segment.length or _digest(data[DIGEST:]) != data[:DIGEST]:
        storage.delete(done_path(extraction, segment.task))
        raise TemporaryError(f"{segment.file} is gone or altered; run extract's task {segment.task} to make it anew")
    return pa.ipc.open_stream(pa.py_buffer(memoryview(data)[DIGEST:])).read_all()


def _encode(part: pa.Table) -> bytes:
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, SCHEMA, options=pa.ipc.IpcWriteOptions(compression="zstd")) as writer:
        writer.write_table(part)
    return _digest(sink.getvalue()) + sink.getvalue()


def _digest(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()[:DIGEST]


def done_path(extraction: Extraction, task: int) -> str:
    """Return the path of the task's record."""
    return f"{extraction.spills(task)}{DONE}"
