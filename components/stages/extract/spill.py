"""A task's candidates, kept in storage until all tasks are through: sorted, and a segment per partition.

A spill is one object; a partition's segment is a range of it, which its dedup task reads alone. So a dump of 10⁹
candidates takes a thousand objects, not a thousand times a thousand.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import pyarrow as pa

from components.base.errors import PermanentError, TemporaryError
from components.stages.extract.extraction import Extraction
from components.stages.extract.pairs import SCHEMA, SPACE, bounds_of, cut, sort_once
from components.stages.extract.text_rules import uid_of
from components.storage.interface import Storage

log = logging.getLogger(__name__)

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
class TaskRecord:
    """The result of one task: its done.json. `candidates` = Σ `dropped` + Σ `lost` + the spills' rows."""

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
        name = f"{self.path}.{hashlib.sha256(content).hexdigest()[:16]}.spill"
        self.storage.write(name, content)
        self.spills.append(Spill(name, len(content), segments))

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
    """Return the task's record, if there is one and its spills are there; else withdraw it and return None."""
    path = _done(extraction, task)
    if storage.size(path) is None:
        return None
    record = read_record(storage, extraction, task)
    gone = [spill.file for spill in record.spills if storage.size(spill.file) != spill.bytes]
    if gone:
        log.warning("%s: %s is gone or has another size; withdrawn, it is made anew", path, gone[0])
        storage.delete(path)
        return None
    return record


def read_record(storage: Storage, extraction: Extraction, task: int) -> TaskRecord:
    """Read a task's record. Raises PermanentError if the task is not done."""
    path = _done(extraction, task)
    try:
        value = json.loads(storage.read(path))
        return TaskRecord(**{**value, "spills": [Spill(**spill) for spill in value["spills"]]})
    except (ValueError, TypeError, KeyError) as error:
        raise PermanentError(f"{path}: not the record of a task ({error}); delete it and run again") from error
    except PermanentError as error:
        if storage.size(path) is not None:
            raise
        raise PermanentError(f"{path}: task {task} is not done; run extract's tasks first") from error


def commit(storage: Storage, extraction: Extraction, task: int, record: TaskRecord) -> TaskRecord:
    """Create the task's record and return the one that stands: the first, if two workers did the task."""
    if storage.create(_done(extraction, task), json.dumps(asdict(record)).encode()):
        return record
    standing = read_record(storage, extraction, task)
    for file in {s.file for s in record.spills} - {s.file for s in standing.spills}:
        storage.delete(file)
    return standing


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
        storage.delete(_done(extraction, segment.task))
        raise TemporaryError(f"{segment.file} is gone or altered; run extract's task {segment.task} to make it anew")
    return pa.ipc.open_stream(pa.py_buffer(memoryview(data)[DIGEST:])).read_all()


def _encode(part: pa.Table) -> bytes:
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, SCHEMA, options=pa.ipc.IpcWriteOptions(compression="zstd")) as writer:
        writer.write_table(part)
    return _digest(sink.getvalue()) + sink.getvalue()


def _digest(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()[:DIGEST]


def _done(extraction: Extraction, task: int) -> str:
    return f"{extraction.spills(task)}.done.json"
