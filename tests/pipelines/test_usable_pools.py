"""A pool without a usable sample stops a run after its index, before a model is loaded, and says what it has."""

from __future__ import annotations

import gzip
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from components.base.errors import PermanentError
from components.pool.run import Run
from pipelines.execution.local import run_all, run_group
from tests.filled import planned
from tests.pools import sample, write_shard, write_tar

RAW = [{"name": "raw", "rules": [{"text": "raw"}]}]


def dots(path: Path) -> None:
    write_tar(path, {f"IMG_v1.0_{i:04d}": sample(i) for i in range(10)})


def two_parts(path: Path) -> None:
    members = {"input.jpg": sample(0)["jpg"], "outputs.txt": b"a text"}
    write_tar(path, {f"sample{i}": members for i in range(4)})


def packed(path: Path) -> None:
    write_shard(path.parent, 0, 2)
    path.write_bytes(gzip.compress(path.read_bytes()))


def pointer(path: Path) -> None:
    path.parent.mkdir(parents=True)
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12345\n")


def other(path: Path) -> None:
    write_tar(path, {f"k{i}": {"flac": b"x", "cls": b"1"} for i in range(3)})


CASES = [
    (dots, r"images not used, as their names have a dot too many 10, .* has members that end in \.0_0000\.jpg \(1\)"),
    (two_parts, r"has members that end in \.input\.jpg \(4\), \.outputs\.txt \(4\); a sample is KEY\.jpg"),
    (packed, r"gzip, no tar 1, .* is gzip; a sample is"),
    (pointer, r"is a pointer of git-lfs; a sample is"),
    (other, r"no image 3\); 00000000\.tar has members that end in \.flac \(3\), \.cls \(3\)"),
]


@pytest.mark.parametrize(("write", "message"), CASES)
def test_no_usable_sample(tmp_path: Path, write: Callable[[Path], None], message: str) -> None:
    write(tmp_path / "shards" / "00000000.tar")
    run = planned(tmp_path / "out", tmp_path / "shards", RAW)
    with pytest.raises(PermanentError) as error:
        run_all(run)
    assert re.match(r"pool pool: no usable sample in its 1 shard \(", str(error.value))
    assert re.search(message, str(error.value))
    stages = run.status()["stages"]
    assert stages["index"]["state"] == "failed"
    assert stages["index"]["error"]["kind"] == "mistake"
    assert "embed" not in stages


def indexed(tmp_path: Path) -> Run:
    run = planned(tmp_path / "out", tmp_path / "shards", RAW)
    run_group(run, "index")
    return run


def test_uids_that_several_shards_have_are_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for shard, start in enumerate((0, 3, 7)):
        write_shard(tmp_path / "shards", shard, 4, start=start)
    indexed(tmp_path)
    assert "pool pool: 1 of the 11 uids in its first 3 shards are in several of them" in caplog.text


def test_a_good_pool_is_not_talked_about(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_shard(tmp_path / "shards", 0, 2)
    write_shard(tmp_path / "shards", 1, 2)
    run = indexed(tmp_path)
    assert run.status()["stages"]["index"]["samples"] == 4
    assert [record for record in caplog.records if record.levelname == "WARNING"] == []
