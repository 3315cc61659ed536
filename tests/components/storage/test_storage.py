"""One contract for every storage: a folder, a bucket of Google's and one of S3's."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from components.base.errors import PermanentError, TemporaryError
from components.storage.interface import Storage
from components.storage.local import LocalStorage
from components.storage.opening import open_storage
from tests.components.storage.gcs_server import BUCKET, gcs_server
from tests.components.storage.s3_server import s3_environment, s3_server


@pytest.fixture(params=["folder", "gs", "s3"])
def storage(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Storage]:
    if request.param == "folder":
        yield open_storage(str(tmp_path / "root"))
        return
    with gcs_server() if request.param == "gs" else s3_server() as address:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", address)
        with s3_environment(address):
            yield open_storage(f"{request.param}://{BUCKET}/some/prefix")


def test_write_read_replace(storage: Storage) -> None:
    storage.write("a/b.txt", b"first")
    storage.write("a/b.txt", b"second")
    assert storage.read("a/b.txt") == b"second"
    assert storage.size("a/b.txt") == 6


@pytest.mark.parametrize(("start", "length", "expected"), [
    (0, None, b"0123456789"), (3, 4, b"3456"), (8, 10, b"89"), (10, 5, b""), (4, 0, b""), (9, None, b"9"),
])  # fmt: skip
def test_ranges(storage: Storage, start: int, length: int | None, expected: bytes) -> None:
    storage.write("x", b"0123456789")
    assert storage.read("x", start, length) == expected


def test_an_empty_object(storage: Storage) -> None:
    storage.write("empty", b"")
    assert storage.read("empty") == b""
    assert storage.size("empty") == 0
    with storage.open("empty") as file:
        assert file.read() == b""


def test_open_reads_forward_and_seeks(storage: Storage) -> None:
    data = os.urandom(100_000)
    storage.write("x", data)
    with storage.open("x") as file:
        assert file.read(10) == data[:10]
        file.seek(50_000)
        assert file.read(100) == data[50_000:50_100]
        file.seek(0, os.SEEK_END)
        assert file.tell() == len(data)


def test_create_only_once(storage: Storage) -> None:
    assert storage.create("c", b"mine")
    assert not storage.create("c", b"yours")
    assert storage.read("c") == b"mine"


def test_one_creator_wins(storage: Storage) -> None:
    won: list[int] = []
    start = threading.Barrier(8)

    def race(number: int) -> None:
        start.wait()
        if storage.create("c", f"{number}".encode()):
            won.append(number)

    threads = [threading.Thread(target=race, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert storage.read("c") == f"{won[0]}".encode()


def test_upload(storage: Storage, tmp_path: Path) -> None:
    data = os.urandom(3_000_000)
    (tmp_path / "file").write_bytes(data)
    storage.upload(tmp_path / "file", "big")
    assert storage.read("big") == data


def test_list_is_sorted_and_by_prefix(storage: Storage) -> None:
    for path in ("b/2", "b/10", "a", "bc", "b/1/x"):
        storage.write(path, path.encode())
    assert [(e.path, e.size) for e in storage.list("b")] == [("b/1/x", 5), ("b/10", 4), ("b/2", 3), ("bc", 2)]
    assert [e.path for e in storage.list()] == ["a", "b/1/x", "b/10", "b/2", "bc"]
    assert list(storage.list("none/")) == []


def test_delete(storage: Storage) -> None:
    storage.write("x", b"1")
    storage.delete("x")
    storage.delete("x")
    assert storage.size("x") is None


def test_what_is_not_there(storage: Storage) -> None:
    for read in (storage.read, storage.open):
        with pytest.raises(PermanentError, match=r"cannot read .*nothing: no such"):
            read("nothing")


def test_an_unknown_scheme() -> None:
    with pytest.raises(PermanentError, match="scheme ftp:// is not supported"):
        open_storage("ftp://host/x")


WRITER = """
import sys
from components.storage.local import LocalStorage
storage = LocalStorage(sys.argv[1])
print("ready", flush=True)
for number in range(1000):
    storage.write(f"{number}", bytes(8_000_000))
"""


def test_a_killed_writer_leaves_whole_objects_or_none(tmp_path: Path) -> None:
    for turn in range(5):
        writer = subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
        assert writer.stdout is not None
        writer.stdout.readline()
        time.sleep(0.03 + 0.023 * turn)
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        writer.stdout.close()
        assert all(entry.size == 8_000_000 for entry in LocalStorage(tmp_path).list())


class Interrupted(BaseException):
    """What a signal's handler raises, wherever the main thread is."""


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # a file closed by its destructor
def test_a_signal_at_any_moment_leaves_no_hidden_file(tmp_path: Path) -> None:
    interrupted: list[int] = []

    def interrupt(*_: object) -> None:
        interrupted.append(turn)
        raise Interrupted

    storage, rng = LocalStorage(tmp_path), random.Random(0)
    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        for turn in range(1_000):
            with suppress(Interrupted):
                signal.setitimer(signal.ITIMER_REAL, rng.uniform(1e-6, 2e-3))
                storage.write("a", b"1")
                storage.create(f"b{turn}", b"1")
                time.sleep(1)
    finally:
        signal.signal(signal.SIGALRM, before)
    assert interrupted == list(range(1_000))
    assert {entry.name.rstrip("0123456789") for entry in tmp_path.iterdir()} <= {"a", "b"}


def test_a_full_disk(tmp_path: Path) -> None:
    if os.getuid() != 0:
        pytest.skip("mounting a small tmpfs needs root")
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(tmp_path)], check=False)
    if mounted.returncode:
        pytest.skip("this container may not mount")
    try:
        storage = LocalStorage(tmp_path)
        storage.write("small", bytes(700_000))
        for write in (storage.write, storage.create):
            with pytest.raises(TemporaryError, match=r"cannot write .*large: the disk is full: free space"):
                write("large", bytes(800_000))
        assert [e.path for e in storage.list()] == ["small"]
        storage.delete("small")
        storage.write("large", bytes(800_000))
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


@pytest.mark.parametrize(
    ("folder", "says"),
    [
        ("/proc", "no (permission|file can be made there; choose another storage)"),  # the first, where no root asks
        ("/dev/null", "a part of the path is a file and no folder"),
    ],
)
def test_what_is_no_place_for_files_is_said_to_be_none(folder: str, says: str) -> None:
    with pytest.raises(PermanentError, match=rf"cannot write {folder}/recaption/x: .*{says}"):
        LocalStorage(folder).write("recaption/x", b"")


def test_a_folder_in_place_of_a_file_is_no_bad_luck(tmp_path: Path) -> None:
    (tmp_path / "0.tar").mkdir()
    with pytest.raises(PermanentError, match=r"cannot read .*0\.tar: it is a folder and no file"):
        LocalStorage(tmp_path).read("0.tar")


def test_a_folder_without_permission(tmp_path: Path) -> None:
    if os.getuid() != 0:
        pytest.skip("dropping root needs root")
    folder = tmp_path / "closed"
    folder.mkdir(mode=0o755)
    for parent in (tmp_path, *tmp_path.parents):
        if parent.stat().st_uid == 0 and str(parent).startswith("/tmp/"):
            parent.chmod(0o755)
    code = (
        "import os, sys; from components.storage.local import LocalStorage; os.setuid(65534)\n"
        "try: LocalStorage(sys.argv[1]).write('x', b'1')\n"
        "except Exception as error: print(type(error).__name__, error)"
    )
    result = subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True, check=True)
    assert result.stdout.startswith("PermanentError cannot write")
    assert "no permission: let this user read and write there" in result.stdout
    assert result.stdout.count("\n") == 1


@pytest.mark.parametrize("uri", ["gs:/bucket/pool", "s3:bucket", "gs:/"])
def test_an_address_with_too_few_slashes_is_no_folder(uri: str) -> None:
    with pytest.raises(PermanentError, match=r"storage .*: expected (gs|s3)://bucket/path"):
        open_storage(uri)


NAMES = ("", "/{outside}", "a//b", "./a", "a/./b", "../outside", "a/../../outside", "a/", "a\\b", "a\0b")


@pytest.mark.parametrize("name", NAMES)
def test_a_name_that_leaves_the_folder_is_refused(tmp_path: Path, name: str) -> None:
    """Whoever made it: a listing of a bucket, a record, a manifest."""
    storage, outside = LocalStorage(tmp_path / "root"), tmp_path / "outside"
    outside.write_bytes(b"untouched")
    (tmp_path / "root/a").mkdir(parents=True)
    name = name.format(outside=outside).replace("//", "/") if "{" in name else name
    calls: list[Callable[[], object]] = [
        lambda: storage.write(name, b"x"), lambda: storage.create(name, b"x"), lambda: storage.upload(outside, name),
        lambda: storage.read(name), lambda: storage.open(name), lambda: storage.size(name),
        lambda: storage.delete(name),
    ]  # fmt: skip
    for call in calls:
        with pytest.raises(PermanentError) as caught:
            call()
        assert repr(name) in str(caught.value)
        assert "\n" not in str(caught.value)
    assert outside.read_bytes() == b"untouched"
    assert not [path for path in (tmp_path / "root").rglob("*") if path.is_file()]


def test_a_listing_stays_in_the_folder_and_takes_any_name(tmp_path: Path) -> None:
    (tmp_path / "root/a").mkdir(parents=True)
    for name in ("outside", "root/a/b\\c", "root/a/b"):
        (tmp_path / name).touch()
    storage = LocalStorage(tmp_path / "root")
    assert [entry.path for entry in storage.list("a/b")] == ["a/b", "a/b\\c"]
    with pytest.raises(PermanentError, match=r"the name '\.\.' has"):
        list(storage.list("../o"))
