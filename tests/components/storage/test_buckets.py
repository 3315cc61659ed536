"""gs:// and s3:// against servers that fail on purpose: nothing lost, nothing twice, nothing mixed."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import random
import tracemalloc
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from components.base.errors import PermanentError, TemporaryError
from components.engine.worker import run_task
from components.pool.columns import Columns
from components.pool.shards import list_pool
from components.stages.index.stage import IndexStage
from components.storage import multipart, ranged_reader, retry
from components.storage.interface import Storage
from components.storage.opening import open_storage
from tests.components.engine.stages import Brightness
from tests.components.storage.faulty import FAULTS, Faults
from tests.pools import write_shard

KB = 1 << 10


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of 64 kB and parts of 200 kB, so that a few MB are a large object."""
    for name, value in (("FIRST", 16), ("CHUNK", 64), ("NEAR", 64)):
        monkeypatch.setattr(ranged_reader, name, value * KB)
    for name, value in (("PART", 200), ("LARGE", 400)):
        monkeypatch.setattr(multipart, name, value * KB)


@pytest.mark.slow
def test_faults_lose_nothing_and_repeat_nothing(bucket: Storage, faults: Faults) -> None:
    faults.share = 0.05
    names = [f"{i:04d}" for i in range(200)]

    def work(name: str) -> tuple[bool, bool, bytes]:
        created = bucket.create(name, name.encode() * 100)
        again = bucket.create(name, b"another")
        bucket.write(f"w/{name}", name.encode())
        bucket.write(f"gone/{name}", name.encode())
        bucket.delete(f"gone/{name}")
        return created, again, bucket.read(name)

    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(work, names))
    assert results == [(True, False, name.encode() * 100) for name in names]
    assert [e.path for e in bucket.list()] == [*names, *(f"w/{name}" for name in names)]
    assert set(faults.done) == set(FAULTS)


@pytest.mark.usefixtures("small_pieces")
def test_faults_in_large_objects(bucket: Storage, faults: Faults, tmp_path: Path) -> None:
    """Every fault is met by uploads in parts and by reads ahead, and no byte differs."""
    faults.share = 0.05
    for number in range(5):
        data = random.Random(number).randbytes(3000 * KB + number)
        (tmp_path / "file").write_bytes(data)
        bucket.upload(tmp_path / "file", f"{number}")
        with bucket.open(f"{number}") as file:
            assert file.read(1000 * KB) == data[: 1000 * KB]
            file.seek(1100 * KB)
            assert file.read() == data[1100 * KB :]
    assert [e.path for e in bucket.list()] == [str(number) for number in range(5)]
    assert set(faults.done) == set(FAULTS)


def test_of_two_creators_of_the_same_bytes_one_wins(bucket: Storage, faults: Faults) -> None:
    """Whose answer was lost must not take another one's object for its own, though no byte differs."""
    faults.share, faults.kinds = 0.3, ("lost answer",)
    with ThreadPoolExecutor(6) as pool:
        for turn in range(2):
            won = list(pool.map(lambda _, turn=turn: bucket.create(f"{turn}", b"same"), range(6)))
            assert won.count(True) == 1
    assert faults.done["lost answer"]


@pytest.mark.parametrize("kind", ["cut short", "cut in headers", "reset", "deaf", "lost answer"])
def test_an_answer_that_breaks_off_is_no_answer(bucket: Storage, faults: Faults, kind: str) -> None:
    """Each call's first request goes wrong; urllib3 takes an answer that ends in its headers for a whole one."""
    bucket.write("x", b"12345")
    calls: tuple[tuple[Callable[[], object], object], ...] = (
        (lambda: bucket.read("x"), b"12345"),
        (lambda: bucket.open("x").read(), b"12345"),
        (lambda: bucket.size("x"), 5),
        (lambda: [e.path for e in bucket.list()], ["x"]),
        (lambda: bucket.create("x", b"2"), False),
        (lambda: bucket.create("y", b"2"), True),
        (lambda: bucket.write("z", b"2"), None),
        (lambda: bucket.delete("z"), None),
    )
    faults.share, faults.kinds = 1.0, (kind,)
    for number, (call, expected) in enumerate(calls, start=1):
        faults.most = number
        assert call() == expected
    assert faults.done[kind] == len(calls)
    assert [bucket.read(e.path) for e in bucket.list()] == [b"12345", b"2"]


@pytest.mark.usefixtures("small_pieces")
def test_a_lost_answer_to_the_last_request_of_an_upload(bucket: Storage, faults: Faults, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(os.urandom(500 * KB))
    faults.share, faults.kinds = 1.0, ("lost answer",)
    faults.only = lambda request: request.command == "POST" and "uploadId=" in request.path
    faults.most = 1
    bucket.upload(tmp_path / "file", "x")
    assert faults.done["lost answer"] == 1
    assert bucket.read("x") == (tmp_path / "file").read_bytes()


@pytest.mark.usefixtures("small_pieces")
def test_an_upload_that_fails_shows_nothing(
    bucket: Storage, faults: Faults, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retry, "DEADLINE", 1.0)
    (tmp_path / "file").write_bytes(os.urandom(900 * KB))
    bucket.write("x", b"before")
    faults.share, faults.kinds, faults.only = 1.0, ("unavailable",), lambda request: "partNumber=3" in request.path
    with pytest.raises(TemporaryError, match=r"cannot write .*/x: gave up after 1 s"):
        bucket.upload(tmp_path / "file", "x")
    assert bucket.read("x") == b"before"
    assert [e.path for e in bucket.list()] == ["x"]


@pytest.mark.usefixtures("small_pieces")
def test_an_upload_has_several_requests_in_flight(bucket: Storage, faults: Faults, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(os.urandom(3000 * KB))
    faults.latency, faults.enough = 1.0, multipart.DEPTH
    bucket.upload(tmp_path / "file", "x")
    assert faults.most_at_work == multipart.DEPTH
    assert bucket.read("x") == (tmp_path / "file").read_bytes()


@pytest.mark.usefixtures("small_pieces")
def test_a_reader_has_several_requests_in_flight_ahead_of_it(bucket: Storage, faults: Faults) -> None:
    """Read forward with skips, as the worker reads the images of a tar."""
    data = os.urandom(3000 * KB)
    bucket.write("x", data)
    before, faults.latency, faults.enough = faults.requests, 1.0, ranged_reader.DEPTH
    with bucket.open("x") as file:
        for start in range(0, len(data), 30 * KB):
            file.seek(start)
            assert file.read(20 * KB) == data[start : start + 20 * KB]
    assert faults.most_at_work == ranged_reader.DEPTH
    assert faults.requests - before < 60  # of 64 kB; one for each read would be 100


@pytest.mark.usefixtures("small_pieces")
def test_a_reader_whose_object_is_replaced(bucket: Storage) -> None:
    """It gives bytes of the old one, or an error; never a mixture."""
    old, new = b"o" * 2000 * KB, b"n" * 2000 * KB
    bucket.write("x", old)
    with bucket.open("x") as file:
        found = [file.read(300 * KB)]
        bucket.write("x", new)
        with pytest.raises(TemporaryError, match=r"cannot read .*x: it was replaced or deleted while it was read"):
            found.extend(iter(lambda: file.read(10 * KB), b""))
    assert set(b"".join(found)) == {ord("o")}
    with bucket.open("x") as file:
        assert file.read() == new
        bucket.delete("x")
        file.seek(0)
        with pytest.raises(TemporaryError, match="it was replaced or deleted while it was read"):
            file.read(2000 * KB)


def test_a_listing_of_many_objects(bucket: Storage, faults: Faults) -> None:
    names = [f"{i:05d}" for i in range(0, 2100, 2)]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda name: bucket.write(f"many/{name}", b"1"), names))
    bucket.write("nearby", b"1")
    before = faults.requests
    assert [e.path for e in bucket.list("many/")] == [f"many/{name}" for name in names]
    assert faults.requests - before == 2  # a thousand at a time


def test_giving_up_is_temporary(
    bucket: Storage, faults: Faults, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(retry, "DEADLINE", 1.0)
    for kind in ("unavailable", "busy", "reset"):
        faults.share, faults.kinds = 1.0, (kind,)
        with pytest.raises(TemporaryError, match=r"cannot write .*://bucket/root/x: gave up after 1 s: ") as told:
            bucket.write("x", b"1")
        assert "\n" not in str(told.value)
    assert "trying again" in caplog.text


def test_a_bucket_that_is_not_there(bucket: Storage) -> None:
    there = open_storage(f"{bucket.uri[:2]}://nowhere")
    for call in (lambda: there.write("x", b"1"), lambda: there.read("x"), lambda: list(there.list())):
        with pytest.raises(PermanentError, match=r"cannot \w+ ..://nowhere/x?: no such object or bucket$"):
            call()


def read_there(storage: Storage) -> bytes:
    return storage.read("x")


@pytest.mark.parametrize("method", ["spawn", "fork"])
def test_a_storage_in_another_process(bucket: Storage, method: str) -> None:
    """Connections are each process's own: one that is forked does not share its parent's."""
    bucket.write("x", b"1")
    assert pickle.loads(pickle.dumps(bucket)).read("x") == b"1"
    with multiprocessing.get_context(method).Pool(2) as pool:
        assert pool.map(read_there, [bucket] * 4) == [b"1"] * 4
    assert bucket.read("x") == b"1"


INHERITED: list[Storage] = []


def read_inherited() -> list[bytes]:
    with INHERITED[0].open("x") as file:
        return [INHERITED[0].read("x"), file.read()]


def test_a_storage_that_a_fork_inherits(bucket: Storage) -> None:
    """torch's loaders fork: the storage is not pickled, it is simply there, with its parent's client in it."""
    bucket.write("x", b"1")
    INHERITED[:] = [bucket]
    with multiprocessing.get_context("fork").Pool(1) as pool:
        assert pool.apply(read_inherited) == [b"1", b"1"]


def test_a_pool_in_a_bucket(bucket: Storage, faults: Faults, tmp_path: Path) -> None:
    for shard in range(3):
        path = write_shard(tmp_path, shard, 20)
        bucket.upload(path, f"shards/{path.name}")
    faults.share = 0.05
    source = open_storage(f"{bucket.uri}/shards")
    pool, columns = list_pool("p", source), Columns(bucket, "p")
    index = IndexStage.make_index()
    assert run_task(IndexStage(index), pool, pool.shards, columns).samples == 60
    spec = Brightness.make_spec(index)
    assert run_task(Brightness(spec), pool, pool.shards, columns, decoders=1).samples == 60
    fresh = Columns(open_storage(bucket.uri), "p")
    assert [fresh.read(spec, s).num_rows for s in pool.shards] == [20, 20, 20]


def peak_of_reading(storage: Storage) -> int:
    """Bytes, in this process."""
    ranged_reader.CHUNK = ranged_reader.NEAR = 1 << 20
    storage.read("small")
    tracemalloc.start()
    with storage.open("x") as file:
        while file.read(1 << 18):
            pass
    return tracemalloc.get_traced_memory()[1]


def test_reading_a_large_object_keeps_memory_bounded(bucket: Storage) -> None:
    """In a process of its own, because the server holds more."""
    bucket.write("small", b"1")
    bucket.write("x", bytes(40 << 20))
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        peak = pool.apply(peak_of_reading, (bucket,))
    assert (
        3 << 20 < peak < 2 * (2 * ranged_reader.DEPTH + 3) << 20
    )  # a client may hold the pieces and the whole of a block
