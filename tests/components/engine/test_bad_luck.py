"""Bad luck below the worker loop: full disks, closed folders, records that vanish while somebody looks."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest

from components.base.errors import PermanentError, TemporaryError
from components.engine.worker import run_task
from components.pool.columns import Columns
from components.stages.index.stage import IndexStage
from components.storage.interface import Entry
from components.storage.local import LocalStorage
from tests.components.engine.stages import Brightness
from tests.pools import indexed, open_pool, write_shard
from tests.privileges import full_disk, open_to_all, without_root

FULL = "the disk is full: free space, then run the same command again"


def test_a_full_disk_and_small_objects(tmp_path: Path) -> None:
    """A small write waits in a buffer, so that only closing the file says that the disk is full."""
    with full_disk(tmp_path / "disk") as disk:
        storage = LocalStorage(disk)
        storage.write("large", bytes(disk_space(disk)))
        for write in (storage.write, storage.create):
            with pytest.raises(TemporaryError, match=rf"cannot write .*a/small: {FULL}"):
                write("a/small", b"x" * 100)
        assert [e.path for e in storage.list()] == ["large"]
        assert not list(disk.rglob(".tmp-*"))
        storage.delete("large")
        assert storage.create("a/small", b"x" * 100)


def disk_space(disk: Path) -> int:
    found = os.statvfs(disk)
    return found.f_bavail * found.f_bsize


def test_a_full_disk_loses_nothing(tmp_path: Path) -> None:
    """A worker stops with a reason; after making room it goes on, and the columns are those of a quiet run."""
    for shard in range(4):
        write_shard(tmp_path / "pool", shard, 30)
    _, calm, _ = indexed(tmp_path / "pool", tmp_path / "calm")
    with full_disk(tmp_path / "disk") as disk:
        ballast = disk / "ballast"
        ballast.write_bytes(bytes(disk_space(disk) - 6 * 4096))
        pool, columns, index = (
            open_pool(tmp_path / "pool"),
            Columns(LocalStorage(disk), "test"),
            IndexStage.make_index(),
        )
        with pytest.raises(TemporaryError, match=FULL):
            run_task(IndexStage(index), pool, pool.shards, columns)
        done = [s for s in pool.shards if Columns(LocalStorage(disk), "test").parts(index, s)]
        assert len(done) < 4
        ballast.unlink()
        fresh = Columns(LocalStorage(disk), "test")
        assert run_task(IndexStage(index), pool, pool.shards, fresh).shards == 4 - len(done)
        assert [fresh.record(index, s, "all").sha256 for s in pool.shards] == [
            calm.record(index, s, "all").sha256 for s in pool.shards
        ]
        assert not list(disk.rglob(".tmp-*"))


CALLS = ("write('a/x', b'1')", "create('a/y', b'1')", "delete('a/x')", "read('a/x')", "open('a/x')", "size('a/x')",
         "list()", "list('a/')")  # fmt: skip
CLOSED = """
storage = LocalStorage({folder!r})
for call in {calls!r}:
    try:
        found = eval("storage." + call)
        list(found) if call.startswith("list") else found
        print("went through:", call)
    except PermanentError as error:
        print(error)
"""


@pytest.mark.parametrize(("mode", "calls"), [(0o000, CALLS), (0o600, CALLS), (0o555, CALLS[:3])])
def test_a_folder_that_is_closed(tmp_path: Path, mode: int, calls: tuple[str, ...]) -> None:
    folder = tmp_path / "closed"
    LocalStorage(folder).write("a/x", b"1")
    open_to_all(folder / "a")
    (folder / "a").chmod(mode)
    try:
        imports = (
            "from components.storage.local import LocalStorage\nfrom components.base.errors import PermanentError\n"
            "import random, tempfile"
        )
        lines = without_root(imports, CLOSED.format(folder=str(folder), calls=calls)).splitlines()
        assert len(lines) == len(calls)
        for line in lines:
            assert line.endswith("no permission: let this user read and write there"), lines
    finally:
        (folder / "a").chmod(0o755)


class Rival(LocalStorage):
    """Another worker commits a shard right after this one has listed the column's files."""

    def __init__(self, root: Path, pool: Path) -> None:
        super().__init__(root)
        self.pool, self.busy = pool, False

    def list(self, prefix: str = "") -> Iterator[Entry]:
        found = list(super().list(prefix))
        if "brightness" in prefix and not self.busy:
            self.busy = True
            pool, columns, index = indexed(self.pool, self.root)
            run_task(Brightness(Brightness.make_spec(index)), pool, pool.shards, columns, decoders=0)
        yield from found


def test_a_record_that_appears_while_files_are_checked_stands(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_shard(tmp_path / "pool", 0, 5)
    pool, _, index = indexed(tmp_path / "pool", tmp_path / "out")
    spec = Brightness.make_spec(index)
    Columns(Rival(tmp_path / "out", tmp_path / "pool"), "test").check_files(spec, pool.shards)
    assert "withdrawn" not in caplog.text
    assert Columns(LocalStorage(tmp_path / "out"), "test").read(spec, pool.shards[0]).num_rows == 5


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b'{"file": 1}', b"\xff"])
def test_a_record_that_is_none_is_said(tmp_path: Path, data: bytes) -> None:
    write_shard(tmp_path / "pool", 0, 2)
    pool, columns, index = indexed(tmp_path / "pool", tmp_path / "out")
    path = next((tmp_path / "out").rglob("*.done.json"))
    path.write_bytes(data)
    with pytest.raises(PermanentError, match=r"done\.json: not a done\.json .*; delete it and run again"):
        indexed(tmp_path / "pool", tmp_path / "out")
    path.unlink()
    assert indexed(tmp_path / "pool", tmp_path / "out")[1].read(index, pool.shards[0]) == columns.read(
        index, pool.shards[0]
    )


def test_a_tar_that_vanishes_between_two_stages(tmp_path: Path) -> None:
    path = write_shard(tmp_path / "pool", 0, 2)
    pool, columns, index = indexed(tmp_path / "pool", tmp_path / "out")
    path.unlink()
    with pytest.raises(PermanentError, match=r"cannot read .*00000000.tar: no such file"):
        run_task(Brightness(Brightness.make_spec(index)), pool, pool.shards, columns, decoders=0)
    assert isinstance(columns.read(index, pool.shards[0]), pa.Table)


def test_a_record_that_another_reader_withdrew_is_bad_luck(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Two readers meet one altered file: the slower one is retried, and leaves alone what was made anew meanwhile."""
    write_shard(tmp_path / "pool", 0, 3)
    pool, columns, index = indexed(tmp_path / "pool", tmp_path / "out")
    (shard,) = pool.shards
    early, late, later = (Columns(columns.storage, "test") for _ in range(3))
    assert [c.parts(index, shard) for c in (late, later)] == [["all"], ["all"]]
    later.record(index, shard, "all")
    victim = tmp_path / "out" / columns.record(index, shard, "all").file
    good = victim.read_bytes()
    victim.write_bytes(good[:-1] + b"!")
    with pytest.raises(TemporaryError, match="was altered"):
        early.read(index, shard)
    with pytest.raises(TemporaryError, match="was withdrawn"):
        late.read(index, shard)

    class Rival(LocalStorage):
        """Gives the altered bytes, and makes the column anew before its reader can act on them."""

        def read(self, path: str, start: int = 0, length: int | None = None) -> bytes:
            data = super().read(path, start, length)
            if path.endswith(".parquet"):
                victim.unlink()
                indexed(tmp_path / "pool", tmp_path / "out")
            return data

    later.storage = Rival(tmp_path / "out")
    with pytest.raises(TemporaryError, match="was altered"):
        later.read(index, shard)
    assert victim.read_bytes() == good
    assert Columns(columns.storage, "test").read(index, shard).num_rows == 3
