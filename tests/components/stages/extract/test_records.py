"""WARC records: what FastWARC reads of the same bytes, and that nothing stops the reading."""

from __future__ import annotations

import io

import pytest
from fastwarc import ArchiveIterator, WarcRecordType
from hypothesis import given
from hypothesis import strategies as st

from components.stages.extract.records import OTHER_KIND, UNREADABLE, WarcRecord, parse, read_records
from tests.components.stages.extract.archives import img, record, warc_page, warcinfo, wat_file

URL = "https://site.example/ä"


def test_the_records_are_those_that_fastwarc_reads() -> None:
    pages = [(f"https://{n}.example/", [img(f"/{n}.jpg", "é")]) for n in range(3)]
    wat, warc = wat_file(pages), warcinfo() + warc_page(URL, b"<p>")
    for data, kind, same in ((wat, b"metadata", WarcRecordType.metadata), (warc, b"response", WarcRecordType.response)):
        theirs: list[WarcRecord | str] = [
            WarcRecord(str(r.headers.get("WARC-Target-URI")), r.reader.read()) if r.record_type == same else OTHER_KIND
            for r in ArchiveIterator(io.BytesIO(data), parse_http=False)
        ]
        assert list(read_records(io.BytesIO(data), kind)) == theirs
        assert sum(isinstance(r, WarcRecord) for r in theirs) in (1, 9)


def test_a_record() -> None:
    assert parse(record("metadata", b"{}", URL), b"metadata") == WarcRecord(URL, b"{}")
    assert parse(record("request", b"{}", URL), b"metadata") == OTHER_KIND
    longer = record("metadata", b"a\r\n\r\nb", URL) + b"more"
    assert parse(longer, b"metadata") == WarcRecord(URL, b"a\r\n\r\nb")
    assert parse(b"WARC/1.1\r\nwarc-type:metadata\r\nCONTENT-LENGTH: 1 \r\n\r\nx", b"metadata") == WarcRecord("", b"x")


@pytest.mark.parametrize("length", [b"", b"x", b"-1", b"3", b"1" * 5000, b"99999999999999999999", b"0x1", b"1_0"])
def test_a_length_that_is_none(length: bytes) -> None:
    data = b"WARC/1.0\r\nWARC-Type: metadata\r\nContent-Length: " + length + b"\r\n\r\nab"
    assert parse(data, b"metadata") == UNREADABLE


@given(st.binary() | st.lists(st.sampled_from([b"WARC/1.0", b"\r\n", b":", b"WARC-Type: metadata", b"Content-Length: 1",
                                               b"\xff", b" ", b"WARC-Target-URI: \xff"])).map(b"".join))  # fmt: skip
def test_any_bytes_are_a_record_or_none(data: bytes) -> None:
    found = parse(data, b"metadata")
    assert found in (UNREADABLE, OTHER_KIND) or isinstance(found, WarcRecord)
