"""Which files of a folder are shards; what looks like one and isn't read is counted and named."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import pytest

from components.base.errors import PermanentError
from components.pool.shards import Pool, has_begun, list_pool
from components.recipe.sources import Pool as Source
from components.storage.local import LocalStorage
from tests.pools import indexed, write_shard


def touched(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")
    return folder


def pool(folder: Path) -> Pool:
    return list_pool("p", LocalStorage(folder))


def found(folder: Path) -> list[str]:
    return [shard.tar for shard in pool(folder).shards]


def test_capitals_and_the_parquet_beside(tmp_path: Path) -> None:
    names = ("a.tar", "a.parquet", "B.TAR", "B.PARQUET", "c.Tar", "c.parq", "d.tar")
    shards = {shard.tar: shard.parquet for shard in pool(touched(tmp_path, *names)).shards}
    assert shards == {"a.tar": "a.parquet", "B.TAR": "B.PARQUET", "c.Tar": "c.parq", "d.tar": None}
    assert [shard.name for shard in pool(tmp_path).shards] == ["B", "a", "c", "d"]


def test_hidden_files_are_no_shards(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    hidden = ("._a.tar", ".ipynb_checkpoints/a-checkpoint.tar", "x/.cache/b.tar", ".x.tar.gz")
    assert found(touched(tmp_path, "a.tar", *hidden)) == ["a.tar"]
    assert caplog.text == ""


def test_what_looks_like_a_shard_is_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    touched(tmp_path, "a.tar", "b.tar.gz", "x/c.TAR.GZ", "d.tgz", "e.tar.zst", "stats.json", "f.gz")
    assert found(tmp_path) == ["a.tar"]
    [line] = [record.getMessage() for record in caplog.records]
    assert line == (
        f"pool p in {tmp_path}: 4 files look like shards and are not read: .tar.gz 2, .tar.zst 1, .tgz 1; the first is "
        "b.tar.gz; a shard is a plain .tar, so unpack them to that"
    )


def test_nothing_but_packed_tars(tmp_path: Path) -> None:
    with pytest.raises(PermanentError, match=r"^pool p: no \.tar in .*; 1 file .*: \.tgz 1; the first is a\.tgz"):
        found(touched(tmp_path, "a.tgz"))
    assert not has_begun(Source(name="p", shards=str(tmp_path)))
    assert has_begun(Source(name="p", shards=str(touched(tmp_path, "b.TAR"))))


def test_linked_files_and_folders_are_followed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    touched(tmp_path / "elsewhere", "a.tar", "deep/b.tar")
    touched(tmp_path / "pool", "own/c.tar")
    (tmp_path / "pool" / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "pool" / "d.tar").symlink_to(tmp_path / "elsewhere" / "a.tar")
    assert found(tmp_path / "pool") == ["d.tar", "linked/a.tar", "linked/deep/b.tar", "own/c.tar"]
    assert caplog.text == ""


def test_links_in_a_circle_end(tmp_path: Path) -> None:
    """A folder is listed once: under its own name rather than a link's, whichever comes first."""
    touched(tmp_path / "pool", "own/a.tar")
    (tmp_path / "pool" / "own" / "up").symlink_to(tmp_path / "pool")
    (tmp_path / "pool" / "again").symlink_to(tmp_path / "pool" / "own")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "back").symlink_to(tmp_path / "out")
    (tmp_path / "pool" / "out").symlink_to(tmp_path / "out")
    assert found(tmp_path / "pool") == ["own/a.tar"]
    assert [entry.path for entry in LocalStorage(tmp_path / "pool").list("ow")] == ["own/a.tar"]


def test_links_to_nothing_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    touched(tmp_path, "a.tar")
    for name in ("b.tar", "folder"):
        (tmp_path / name).symlink_to(tmp_path / "gone" / name)
    with caplog.at_level(logging.WARNING):
        assert found(tmp_path) == ["a.tar"]
    assert f"{tmp_path}: 2 links lead nowhere and are left out; the first is b.tar" in caplog.text


def test_a_linked_folder_of_shards_is_indexed(tmp_path: Path) -> None:
    write_shard(tmp_path / "elsewhere", 0, 2)
    shutil.copytree(tmp_path / "elsewhere", tmp_path / "pool" / "x")
    (tmp_path / "pool" / "y").symlink_to(tmp_path / "elsewhere")
    listed, columns, index = indexed(tmp_path / "pool", tmp_path / "storage")
    assert [columns.read(index, shard).num_rows for shard in listed.shards] == [2, 2]
