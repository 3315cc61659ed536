"""One finished shard: the tar, the parquet beside it, and the record that makes them count.

    <folder>/<shard>.<hash>.tar       .jpg .txt .json of each image that arrived, in the candidates' order
    <folder>/<shard>.<hash>.parquet   every candidate; a failure has its reason as `error_message`
    <folder>/<shard>.done.json        names both, created only if absent

The hash is of both files: two workers that saw the web differ can't mix theirs. Key = shard(8) + index(4).
"""

from __future__ import annotations

import hashlib
import io
import json
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from components.base.errors import PermanentError, TemporaryError
from components.base.hashing import content_hash
from components.base.version import version
from components.pool.shards import Shard
from components.pool.tar import TarWriter
from components.stages.download.picture import Picture
from components.stages.download.reasons import REASONS
from components.storage import commit as protocol
from components.storage.commit import DONE, DoneRecord
from components.storage.interface import Storage

LARGEST = 10_000  # candidates: an index has four digits
SCHEMA = pa.schema(
    [
        *((name, pa.string()) for name in ("uid", "url", "caption", "key", "status", "error_message")),
        ("http_status", pa.int32()),
        *((name, pa.int32()) for name in ("width", "height", "original_width", "original_height")),
        ("exif", pa.string()),
        ("sha256", pa.string()),
    ]
)
IN_JSON = ("uid", "caption", "url", "key", "status", "error_message", *SCHEMA.names[7:])


@dataclass(frozen=True)
class Candidates:
    """The candidates that one shard is made from."""

    shard: str
    """Name of the shard: 8 digits."""
    path: str
    """A parquet with uid, url and text, at most 10,000 rows."""
    redrive: bool = False
    """Whether they are failures of other shards."""


@dataclass(frozen=True)
class ShardRecord(DoneRecord):
    """The done.json of a shard."""

    shard: str
    tar: str
    """Path in the storage."""
    tar_bytes: int
    tar_sha256: str
    parquet: str
    parquet_bytes: int
    parquet_sha256: str
    candidates: int
    """Number of candidates that were tried."""
    samples: int
    failures: Mapping[str, int]
    """Failures by reason; with `samples` they account for all the candidates."""
    redrive: bool
    """Whether it retries other shards' failures: what failed again has a row in their parquets, not in this one."""
    user_agent: str
    seconds: float
    code: str

    @property
    def data(self) -> Mapping[str, int]:
        return {self.tar: self.tar_bytes, self.parquet: self.parquet_bytes}

    def to_shard(self, below: str = "") -> Shard:
        """Return the shard as the pool lists it; `below` is the pool's folder, with its slash."""
        tar, parquet = self.tar.removeprefix(below), self.parquet.removeprefix(below)
        return Shard(self.shard, tar, self.tar_bytes, parquet, content_hash([tar, self.tar_bytes]))


@dataclass
class Outcome:
    """The outcome of one candidate: a picture, or the reason why there is none."""

    reason: str | None = None
    http_status: int | None = None
    facts: dict[str, Any] = field(default_factory=dict)
    """Sizes, EXIF and checksum."""
    place: tuple[int, int] | None = None
    """Offset and size of the JPEG in the spool."""


class Spool:
    """The JPEGs of one shard in the order of arrival, on disk: they are put in order when all are there."""

    def __init__(self) -> None:
        self._file: IO[bytes] = tempfile.TemporaryFile(prefix="download-", buffering=0)  # noqa: SIM115
        self._size = 0

    def add(self, picture: Picture, http_status: int) -> Outcome:
        place = (self._size, len(picture.jpeg))
        view = memoryview(picture.jpeg)
        try:
            while view:
                view = view[self._file.write(view) :]
        except OSError as error:
            raise _disk(error) from error
        self._size += place[1]
        facts = {name: getattr(picture, name) for name in SCHEMA.names[7:]}
        return Outcome(None, http_status, facts, place)

    def read(self, place: tuple[int, int]) -> bytes:
        self._file.seek(place[0])
        return self._file.read(place[1])

    def close(self) -> None:
        self._file.close()


def commit(
    storage: Storage,
    folder: str,
    shard: str,
    candidates: pa.Table,
    outcomes: Sequence[Outcome],
    spool: Spool,
    *,
    redrive: bool,
    user_agent: str,
    seconds: float,
) -> ShardRecord:
    """Write a shard whose candidates are all settled; return the record that stands then, ours or a rival's."""
    rows = _rows(shard, candidates, outcomes)
    with tempfile.NamedTemporaryFile(prefix="download-", suffix=".tar", buffering=1 << 20) as file:
        try:
            tar = TarWriter(file)
            for row, outcome in zip(rows, outcomes, strict=True):
                if outcome.place:
                    tar.add(row["key"], _members(row, spool.read(outcome.place)))
            tar.finish()
            file.flush()
        except OSError as error:
            raise _disk(error) from error
        kept = [row for row in rows if not redrive or row["status"] == "success"]
        parquet = _parquet(kept)
        parquet_sha256 = hashlib.sha256(parquet).hexdigest()
        stem = f"{folder}/{shard}.{hashlib.sha256(f'{tar.sha256}{parquet_sha256}'.encode()).hexdigest()[:16]}"
        failures = Counter(outcome.reason for outcome in outcomes if outcome.reason)
        record = ShardRecord(
            *(shard, f"{stem}.tar", tar.size, tar.sha256, f"{stem}.parquet", len(parquet), parquet_sha256),
            candidates=len(rows),
            samples=len(rows) - failures.total(),
            failures=dict(sorted(failures.items())),
            redrive=redrive,
            user_agent=user_agent,
            seconds=round(seconds, 3),
            code=version(),
        )
        storage.upload(Path(file.name), record.tar)
    storage.write(record.parquet, parquet)
    return _publish(storage, folder, record)


def finished(storage: Storage, folder: str, shard: str) -> ShardRecord | None:
    """Return the shard's record where its files are there; withdraw a record without them."""
    return protocol.find_whole(storage, done_path(folder, shard), ShardRecord)


def read_candidates(storage: Storage, path: str) -> pa.Table:
    """Read the candidates of one shard: uid, url, text.

    Raises:
        PermanentError: they are no such table, or too many.
    """
    data = storage.read(path)
    try:
        table = pq.read_table(pa.BufferReader(data), columns=["uid", "url", "text"])
        table = table.cast(pa.schema([(name, pa.string()) for name in ("uid", "url", "text")]))
    except (pa.ArrowException, OSError) as error:
        message = " ".join(str(error).split())[:200]
        raise PermanentError(
            f"candidates {path}: expected a parquet with the texts uid, url, text: {message}"
        ) from error
    if table.column_names != ["uid", "url", "text"] or table.num_rows > LARGEST or table.column("uid").null_count:
        raise PermanentError(
            f"candidates {path}: found {table.num_rows} rows of {', '.join(table.column_names)}; expected at most "
            f"{LARGEST} of uid, url, text, each with a uid"
        )
    return table


def done_path(folder: str, shard: str) -> str:
    return f"{folder}/{shard}{DONE}"


def _rows(shard: str, candidates: pa.Table, outcomes: Sequence[Outcome]) -> list[dict[str, Any]]:
    rows = []
    for index, (row, outcome) in enumerate(zip(candidates.to_pylist(), outcomes, strict=True)):
        status = "success"
        if outcome.reason:
            status = "failed_to_resize" if REASONS[outcome.reason].resize else "failed_to_download"
        row["caption"] = row.pop("text")
        row |= {"key": f"{shard}{index:04d}", "status": status, "error_message": outcome.reason}
        rows.append(row | {"http_status": outcome.http_status} | outcome.facts)
    return rows


def _members(row: Mapping[str, Any], jpeg: bytes) -> list[tuple[str, bytes | memoryview]]:
    meta = {name: row[name] for name in IN_JSON}
    text = [] if row["caption"] is None else [("txt", row["caption"].encode("utf-8", "backslashreplace"))]
    json_bytes = json.dumps(meta, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "backslashreplace")
    return [("jpg", jpeg), *text, ("json", json_bytes)]


def _parquet(rows: list[dict[str, Any]]) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, SCHEMA), sink, compression="zstd")
    return sink.getvalue()


def _publish(storage: Storage, folder: str, record: ShardRecord) -> ShardRecord:
    """Commit the record, and delete what attempts that were killed have left of the shard; return what stands."""
    path = done_path(folder, record.shard)
    standing = protocol.commit(storage, path, record)
    if standing is record:
        for entry in list(storage.list(f"{folder}/{record.shard}.")):
            if entry.path != path and entry.path not in record.data:
                storage.delete(entry.path)
    return standing


def _disk(error: OSError) -> TemporaryError:
    return TemporaryError(f"scratch files: {error.strerror or error}; free space, or set TMPDIR")
