"""The reader that fetches ahead against plain bytes, and how much it asks for and holds."""

from __future__ import annotations

import io
import random
import tarfile
import threading
import tracemalloc
from collections.abc import Callable
from functools import partial
from itertools import accumulate

import pytest

from components.base.errors import TemporaryError
from components.storage import multipart, ranged_reader
from components.storage.multipart import in_parallel, parts_of
from components.storage.ranged_reader import read_ahead

KB = 1024


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("FIRST", 4 * KB), ("CHUNK", 64 * KB), ("NEAR", 64 * KB)):
        monkeypatch.setattr(ranged_reader, name, value)


class Object:
    """Random bytes, and what was asked of them."""

    def __init__(self, size: int, enough: int = 0) -> None:
        """enough: a request is answered after a second, or once so many were at work at one time."""
        self.data, self.enough = random.Random(size).randbytes(size), enough
        self.asked: list[tuple[int, int]] = []
        self.at_work, self.most_at_work, self.lock = 0, 0, threading.Condition()

    def fetch(self, start: int, length: int) -> bytes:
        with self.lock:
            self.asked.append((start, length))
            self.at_work += 1
            self.most_at_work = max(self.most_at_work, self.at_work)
            self.lock.notify_all()
            self.lock.wait_for(lambda: self.most_at_work >= self.enough, 1.0)
        with self.lock:
            self.at_work -= 1
        return self.data[start : start + length]

    def open(self) -> io.BufferedReader:
        return read_ahead(self.fetch, len(self.data))  # type: ignore[return-value]

    @property
    def bytes_asked(self) -> int:
        return sum(length for _, length in self.asked)


@pytest.mark.parametrize("size", [0, 1, 4 * KB - 1, 4 * KB, 4 * KB + 1, 1000 * KB + 7])
@pytest.mark.parametrize("piece", [1000, 4 * KB, 200 * KB, -1])
def test_reading_through(size: int, piece: int) -> None:
    there = Object(size)
    with there.open() as file:
        found = b""
        while some := file.read(piece):
            found += some
    assert found == there.data
    assert there.bytes_asked == size  # every byte once
    assert there.most_at_work <= ranged_reader.DEPTH


@pytest.mark.parametrize("seed", range(20))
def test_any_seeks_and_reads(seed: int) -> None:
    there, rng = Object(700 * KB), random.Random(seed)
    with there.open() as file:
        plain = io.BytesIO(there.data)
        for _ in range(200):
            at = rng.choice([rng.randrange(800 * KB), plain.tell() + rng.randrange(30 * KB), max(0, plain.tell() - 9)])
            if rng.random() < 0.6:
                assert file.seek(at) == plain.seek(at)
            length = rng.choice([1, 512, 30 * KB, 150 * KB])
            assert file.read(length) == plain.read(length)
            assert file.tell() == plain.tell()


def test_reading_forward_with_skips_keeps_requests_in_flight() -> None:
    there = Object(4000 * KB, ranged_reader.DEPTH)
    with there.open() as file:
        for start in range(0, 4000 * KB, 20 * KB):
            file.seek(start)
            assert file.read(5 * KB) == there.data[start : start + 5 * KB]
    assert there.most_at_work == ranged_reader.DEPTH
    assert len(there.asked) < 80  # of at most 64 kB; one each would be 200


def test_a_few_reads_here_and_there_ask_for_little() -> None:
    there = Object(4000 * KB)
    with there.open() as file:
        for start in (3990 * KB, 100 * KB, 2000 * KB, 1000 * KB):
            file.seek(start)
            file.read(1000)
    assert there.bytes_asked <= 4 * 4 * KB


def test_a_large_read_asks_for_all_of_it_at_once() -> None:
    there = Object(4000 * KB, ranged_reader.DEPTH)
    with there.open() as file:
        file.seek(1000 * KB)
        assert file.read(256 * KB) == there.data[1000 * KB : 1256 * KB]
    assert there.most_at_work == ranged_reader.DEPTH


def test_a_tar_read_by_tarfile() -> None:
    """It steps back a byte before every header."""
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w") as tar:
        for number in range(100):
            info = tarfile.TarInfo(f"{number}")
            info.size = 3000 + number * 97
            tar.addfile(info, io.BytesIO(bytes([number]) * info.size))
    there = Object(0)
    there.data = sink.getvalue()
    with there.open() as file, tarfile.open(fileobj=file, mode="r:") as tar:
        found = {member.name: tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]
    assert found == {f"{n}": bytes([n]) * (3000 + n * 97) for n in range(100)}
    assert there.bytes_asked < 1.2 * len(there.data)


def test_memory_is_bounded() -> None:
    """200 MB through blocks of 1 MB, with a reader slower than the fetches and jumps in between."""
    size, block = 200_000 * KB, 1000 * KB
    ranged_reader.CHUNK = block  # small_blocks puts it back
    tracemalloc.start()
    try:
        with read_ahead(lambda start, length: bytes(length), size) as file:
            for number in range(150):
                file.seek((number % 50) * 4 * block)
                for _ in range(8):
                    file.read(500 * KB)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert 3 * block < peak < (2 * ranged_reader.DEPTH + 3) * block


def test_an_error_is_raised_where_its_bytes_are_wanted_and_can_be_tried_again() -> None:
    there = Object(1000 * KB)
    down = threading.Event()

    def fetch(start: int, length: int) -> bytes:
        if down.is_set() and start <= 500 * KB < start + length:
            raise TemporaryError("away")
        return there.fetch(start, length)

    with read_ahead(fetch, 1000 * KB) as file:
        down.set()
        assert file.read(300 * KB) == there.data[: 300 * KB]
        with pytest.raises(TemporaryError, match="away"):
            file.read(400 * KB)
        down.clear()
        file.seek(300 * KB)
        assert file.read() == there.data[300 * KB :]


def test_closing_does_not_wait_for_requests() -> None:
    stuck, begun, ended = threading.Event(), threading.Event(), threading.Event()

    def fetch(start: int, length: int) -> bytes:
        if start:
            begun.set()
            stuck.wait(60)
            ended.set()
        return bytes(length)

    file = read_ahead(fetch, 4000 * KB)
    file.read(4 * KB)
    reader = threading.Thread(target=lambda: file.read(1), daemon=True)  # asks for the next blocks, and waits
    reader.start()
    assert begun.wait(60)
    file.raw.close()  # type: ignore[attr-defined]
    assert not ended.is_set()
    stuck.set()
    reader.join()


@pytest.mark.parametrize("size", [1, 16 << 20, (16 << 20) + 1, 1 << 40])
def test_parts_cover_the_file(size: int) -> None:
    parts = parts_of(size)
    assert [0, *accumulate(length for _, length in parts)] == [*(start for start, _ in parts), size]
    assert len(parts) <= 10_000  # S3's and GCS's limit
    assert all(length >= 5 << 20 for _, length in parts[:-1])  # their smallest part


def test_in_parallel_keeps_the_order_and_the_bound() -> None:
    there = Object(20, multipart.DEPTH)
    works: list[Callable[[], bytes]] = [partial(there.fetch, i, 1) for i in range(20)]
    assert b"".join(in_parallel(works)) == there.data
    assert there.most_at_work == multipart.DEPTH
    assert in_parallel([]) == []


def test_in_parallel_stops_at_the_first_error() -> None:
    begun: list[int] = []
    over = threading.Event()

    def work(number: int) -> None:
        begun.append(number)
        if number == 2:
            raise TemporaryError("away")
        over.wait(60)

    before = set(threading.enumerate())
    with pytest.raises(TemporaryError, match="away"):
        in_parallel([partial(work, number) for number in range(100)])
    over.set()
    for thread in set(threading.enumerate()) - before:
        thread.join(60)
    assert len(begun) <= multipart.DEPTH + 1  # the one that failed may have begun another before it was told
