"""The commit protocol: data counts once a record names it, and of several writers of one record the first one wins.

A writer stores its data under a name of its own content, then creates `<stem>.done.json`, the record, only if it is
absent. Readers trust only what a record names, so that neither a half-written file nor a lost race ever shows.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, NamedTuple, Self, TypeVar

from components.base.errors import PermanentError
from components.storage.interface import Storage
from components.storage.small_files import parse_small_json

log = logging.getLogger(__name__)

DONE = ".done.json"
MOST = 64 << 20
"""Bytes of a record. The largest are those of a whole dump's tasks: 25,000 segments, in 0.6 MB, for each 128 MB of
candidates."""


@dataclass(frozen=True)
class DoneRecord:
    """Base class of records: dataclasses that are written as a done.json."""

    INDENT: ClassVar[int | None] = 1

    @property
    def data(self) -> Mapping[str, int]:
        """Return the files that the record names: path → bytes."""
        raise NotImplementedError

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        """Make a record of what `to_json` returned."""
        return cls(**value)

    def to_json(self) -> dict[str, Any]:
        """Return the record as a JSON value."""
        return asdict(self)


R = TypeVar("R", bound=DoneRecord)


class Written(NamedTuple):
    """A file that is in the storage."""

    file: str
    bytes: int
    sha256: str


def write_content(storage: Storage, stem: str, extension: str, data: bytes) -> Written:
    """Write data to `<stem>.<hash of the data>.<extension>`."""
    digest = hashlib.sha256(data).hexdigest()
    file = f"{stem}.{digest[:16]}.{extension}"
    storage.write(file, data)
    return Written(file, len(data), digest)


def commit(storage: Storage, path: str, record: R) -> R:
    """Create a record whose files are written; return the record that stands: this very object if this writer won.

    If another writer was faster, delete the files of this one that the other's record does not name.
    """
    while not storage.create(path, json.dumps(record.to_json(), indent=record.INDENT).encode()):
        standing = find_record(storage, path, type(record))
        if standing is not None:  # else it was withdrawn just now
            for file in record.data.keys() - standing.data.keys():
                storage.delete(file)
            return standing
    return record


def find_record(storage: Storage, path: str, kind: type[R]) -> R | None:
    """Read a record; return None if there is none.

    Raises:
        PermanentError: the file there is no such record.
    """
    try:
        found = storage.read(path, 0, MOST + 1)
    except PermanentError:
        if storage.size(path) is not None:
            raise
        return None
    try:
        return kind.from_json(parse_small_json(found, f"{storage.uri}/{path}", MOST))
    except (ValueError, TypeError, KeyError) as error:
        said = f"{type(error).__name__}: {error}"
        raise PermanentError(f"{path}: not a done.json ({said}); delete it and run again") from error


def read_record(storage: Storage, path: str, kind: type[R], absent: str) -> R:
    """Read a record that has to be there.

    Args:
        absent: the message if it is not there: which work is not done, and what to run.

    Raises:
        PermanentError: there is none, or the file there is no such record.
    """
    record = find_record(storage, path, kind)
    if record is None:
        raise PermanentError(f"{path}: {absent}")
    return record


def find_whole(storage: Storage, path: str, kind: type[R]) -> R | None:
    """Return a record whose files are all there with their sizes; withdraw a record whose files are not."""
    record = find_record(storage, path, kind) if storage.size(path) is not None else None
    for file, expected in record.data.items() if record else ():
        found = storage.size(file)
        if found != expected:
            has = "is gone" if found is None else f"has {found} bytes"
            withdraw(storage, path, record, f"{file} {has}, expected {expected} bytes")
            return None
    return record


def withdraw(storage: Storage, path: str, record: DoneRecord | None, why: str) -> None:
    """Delete a record whose files are not what it says, unless another process has withdrawn or replaced it."""
    if record is None or find_record(storage, path, type(record)) != record:
        return
    log.warning("%s: %s; withdrawn, it will be made anew", path, why)
    storage.delete(path)
