"""The parquet that DataComp and img2dataset write beside a tar: it also lists the downloads that failed."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from http import HTTPStatus
from typing import BinaryIO

import pyarrow as pa

from components.storage.tables import open_table

ROWS = 1 << 14  # rows looked at together
SUCCESS = "success"
OTHER = "other"
_PHRASES = {status.value: status.phrase for status in HTTPStatus}
_HTTP = re.compile(r"http\D{0,20}([1-5])(\d\d)\b")
_REASONS = tuple(
    (re.compile(pattern), reason)
    for pattern, reason in (
        (r"timed? ?out", "timed out"),
        (r"name or service|getaddrinfo|nodename|name resolution|no address|no host|dns", "no such host"),
        (r"refused", "connection refused"),
        (r"unreachable|no route", "network unreachable"),
        (r"ssl|tls|certificate", "no valid TLS"),
        (r"reset|aborted|broken pipe|closed connection|disconnected|incomplete|bad status line", "connection broken"),
        (r"robots|noai|noindex|opt(ed)? ?out|disallow", "opted out"),
        (r"decod|identify|resiz|truncated|image", "image that can't be used"),
        (r"url type|(invalid|bad|malformed) url|no host given", "bad URL"),
    )
)


def read_beside(file: BinaryIO, fields: Sequence[str]) -> Iterator[dict[str, pa.Array]]:
    """Yield some rows at a time, as `key` and those of the other fields that are there.

    Call this, and read the rows, inside `explained`.

    Raises:
        ValueError: the file has no field `key`.
    """
    table = open_table(file, ".parquet")
    if "key" not in table.names:
        raise ValueError("has no field key")
    names = ["key", *(name for name in fields if name in table.names)]
    for batch in table.batches(dict.fromkeys(names, pa.string()), ROWS):
        yield {name: batch.column(name) for name in names}


def texts_of(column: pa.Array) -> list[str | None]:
    """Return the values as text, whatever their type; U+FFFD stands for bytes that are no UTF-8."""
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if column.type in (pa.string(), pa.large_string(), pa.string_view()):
        column = column.cast(pa.binary())  # nobody has checked that it is UTF-8
    values = column.to_pylist()
    return [v.decode("utf-8", "replace") if isinstance(v, bytes) else None if v is None else str(v) for v in values]


def reason_of(message: str) -> str:
    """Return why a download failed, in words of a fixed vocabulary, from what another tool wrote about it."""
    said = message[:1000].lower()
    if found := _HTTP.search(said):
        status = int(found[1] + found[2])
        return f"HTTP Error {status}: {_PHRASES[status]}" if status in _PHRASES else f"HTTP Error {found[1]}xx"
    return next((reason for pattern, reason in _REASONS if pattern.search(said)), OTHER)
