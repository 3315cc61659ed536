"""The commit protocol in a folder and in buckets: one record stands, and no file is left that it does not name."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from components.base.errors import PermanentError
from components.storage.commit import (
    DONE,
    DoneRecord,
    commit,
    find_record,
    find_whole,
    read_record,
    withdraw,
    write_content,
)
from components.storage.interface import Storage
from components.storage.local import LocalStorage

PATH = f"x{DONE}"


@dataclass(frozen=True)
class Part(DoneRecord):
    file: str
    bytes: int
    by: str

    @property
    def data(self) -> Mapping[str, int]:
        return {self.file: self.bytes}


def part(storage: Storage, by: str, content: bytes) -> Part:
    written = write_content(storage, "x", "bin", content)
    return Part(written.file, written.bytes, by)


def names(storage: Storage) -> list[str]:
    return [entry.path for entry in storage.list()]


def test_names_and_bytes_that_older_versions_wrote(tmp_path: Path) -> None:
    """Folders are resumed across versions: neither may change."""
    storage = LocalStorage(tmp_path)
    record = part(storage, "me", b"abc")
    assert commit(storage, PATH, record) is record
    assert names(storage) == ["x.ba7816bf8f01cfea.bin", "x.done.json"]  # sha256sum of abc
    assert storage.read(PATH) == b'{\n "file": "x.ba7816bf8f01cfea.bin",\n "bytes": 3,\n "by": "me"\n}'


def test_of_two_writers_one_record_stands_and_the_other_file_goes(bucket: Storage) -> None:
    def write(number: int) -> tuple[Part, Part]:
        record = part(bucket, f"{number}", f"{number}".encode())
        return record, commit(bucket, PATH, record)

    with ThreadPoolExecutor(6) as pool:
        made = list(pool.map(write, range(6)))
    (winner,) = [record for record, standing in made if standing is record]
    assert all(standing == winner for _, standing in made)
    assert names(bucket) == [winner.file, PATH]


def test_a_loser_keeps_the_file_that_both_wrote(tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path)
    first = commit(storage, PATH, part(storage, "first", b"same"))
    assert commit(storage, PATH, part(storage, "second", b"same")) == first
    assert storage.read(first.file) == b"same"


class Withdrawing(LocalStorage):
    """Another process takes a record back between a refused creation and the look at what stands."""

    def create(self, path: str, data: bytes) -> bool:
        created = super().create(path, data)
        if not created:
            self.delete(path)
        return created


def test_a_record_that_is_withdrawn_meanwhile_is_created(tmp_path: Path) -> None:
    storage = Withdrawing(tmp_path)
    commit(storage, PATH, part(storage, "first", b"1"))
    second = part(storage, "second", b"2")
    assert commit(storage, PATH, second) is second
    assert find_record(storage, PATH, Part) == second


@pytest.mark.parametrize(("left", "said"), [(None, "is gone"), (b"12", "has 2 bytes")])
def test_a_record_without_its_file_is_withdrawn(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, left: bytes | None, said: str
) -> None:
    storage = LocalStorage(tmp_path)
    record = commit(storage, PATH, part(storage, "me", b"123"))
    assert find_whole(storage, PATH, Part) == record
    storage.delete(record.file)
    if left is not None:
        storage.write(record.file, left)
    with caplog.at_level(logging.WARNING):
        assert find_whole(storage, PATH, Part) is None
    assert f"x.done.json: {record.file} {said}, expected 3 bytes; withdrawn" in caplog.text
    assert storage.size(PATH) is None
    assert find_whole(storage, PATH, Part) is None


def test_a_record_that_was_made_anew_is_not_withdrawn(tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path)
    old = commit(storage, PATH, part(storage, "old", b"1"))
    storage.delete(PATH)
    new = commit(storage, PATH, part(storage, "new", b"2"))
    withdraw(storage, PATH, old, "its file is gone")
    assert find_record(storage, PATH, Part) == new


def test_a_record_that_is_not_there(tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path)
    assert find_record(storage, PATH, Part) is None
    with pytest.raises(PermanentError, match=r"^x\.done\.json: x is not done; run y first$"):
        read_record(storage, PATH, Part, "x is not done; run y first")


@pytest.mark.parametrize("found", [b"{", b"[]", b"null", json.dumps({"file": "x"}).encode(), b"\xff"])
def test_a_file_that_is_no_record_is_one_clear_line(tmp_path: Path, found: bytes) -> None:
    storage = LocalStorage(tmp_path)
    storage.write(PATH, found)
    for read in (find_record, find_whole):
        with pytest.raises(PermanentError, match=r"^x\.done\.json: not a done\.json .*; delete it and run again$"):
            read(storage, PATH, Part)
