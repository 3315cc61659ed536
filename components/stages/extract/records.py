"""WARC records: the kind that has the images, its page's address, its content; and the damage between them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

from components.stages.extract.members import Damage, read_members

# What becomes of a record
NO_IMAGE = "no image"
UNREADABLE = "unreadable"
OTHER_KIND = "other kind"


@dataclass(frozen=True)
class WarcRecord:
    """A record of one page: a WAT file's metadata record, or a WARC file's response."""

    url: str
    content: bytes
    """JSON, or an HTTP response with its headers."""


def read_records(file: BinaryIO, kind: bytes) -> Iterator[WarcRecord | Damage | str]:
    """Yield, in the file's order, each record of this WARC-Type, the damage, and for any other record the reason."""
    for member in read_members(file):
        yield member if isinstance(member, Damage) else parse(member, kind)


def parse(member: bytes, kind: bytes) -> WarcRecord | str:
    """Parse a WARC 1.0 record (ISO 28500): a version, fields that nobody folds, an empty line, Content-Length bytes.

    By hand, since FastWARC's parser panics (past `except Exception`) on some lengths that are no number of bytes.
    """
    head, _, content = member.partition(b"\r\n\r\n")
    version, *lines = head.split(b"\r\n")
    fields = {name.strip().lower(): value.strip() for name, _, value in (line.partition(b":") for line in lines)}
    length = fields.get(b"content-length", b"")
    if not version.startswith(b"WARC/") or not length.isdigit():
        return UNREADABLE
    if fields.get(b"warc-type") != kind:
        return OTHER_KIND
    if len(length) > 18 or int(length) > len(content):
        return UNREADABLE
    return WarcRecord(fields.get(b"warc-target-uri", b"").decode("utf-8", "replace"), content[: int(length)])
