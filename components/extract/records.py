"""WARC records: the kind that has the images, its page's address, its content; and the damage between them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

from fastwarc import WarcRecord, WarcRecordType

from components.extract.members import Damage, read_members

# What becomes of a record
NO_IMAGE = "no image"
UNREADABLE = "unreadable"
OTHER_KIND = "other kind"


@dataclass(frozen=True)
class Record:
    """One page: a WAT file's metadata record, or a WARC file's response."""

    url: str
    content: bytes
    """JSON, or an HTTP response with its headers."""


def read_records(file: BinaryIO, kind: WarcRecordType) -> Iterator[Record | Damage | str]:
    """Every record of this kind; of all others a reason; and what is damaged. In the file's order."""
    for member in read_members(file):
        yield member if isinstance(member, Damage) else _parse(member, kind)


def _parse(member: bytes, kind: WarcRecordType) -> Record | str:
    try:
        record = WarcRecord.from_bytes(member)
    except OSError:  # it doesn't begin with WARC/
        return UNREADABLE
    if record.record_type != kind:
        return OTHER_KIND
    return Record(record.headers.get("WARC-Target-URI") or "", record.reader.read())
