"""The index of good and bad tars: every sample is a row, every oddity a count with its reason."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.pools import indexed, jpeg, sample, uid, write_shard, write_tar


def index(tmp_path: Path) -> tuple[list[dict[str, Any]], dict[str, int]]:
    """Rows and counts of shard 0 of the pool in tmp_path/pool."""
    pool, columns, spec = indexed(tmp_path / "pool", tmp_path / "out")
    return columns.read(spec, pool.shards[0]).to_pylist(), dict(columns.record(spec, pool.shards[0], "all").failures)


def shard(tmp_path: Path) -> Path:
    return tmp_path / "pool" / "00000000.tar"


def test_a_good_shard(tmp_path: Path) -> None:
    path = write_shard(tmp_path / "pool", 0, 3)
    rows, counts = index(tmp_path)
    assert counts == {}
    assert [r["uid"] for r in rows] == [uid(0), uid(1), uid(2)]
    assert [r["text"] for r in rows] == ["photo number 0", "photo number 1", "photo number 2"]
    data = path.read_bytes()
    for number, row in enumerate(rows):
        assert data[row["offset"] :][: row["size"]] == jpeg(number)
        assert json.loads(data[row["json_offset"] :][: row["json_size"]])["uid"] == uid(number)
        assert (row["width"], row["height"], row["error"], row["note"]) == (40, 30, None, None)


@pytest.mark.parametrize(
    ("members", "text", "count"),
    [
        ({"txt": None, "json": json.dumps({"uid": uid(0)}).encode()}, None, "text: none"),
        ({"txt": b"  \n"}, None, "text: none"),
        ({"txt": b"\xff\xfe caf\xe9"}, None, "text: not UTF-8"),
        ({"txt": b"x" * 100_000}, None, "text: over 8192 bytes"),
        ({"txt": None}, "photo number 0", None),
        ({"json": b"{broken"}, "photo number 0", "text: unreadable json"),
    ],
)
def test_a_bad_text_leaves_the_image(tmp_path: Path, members: Any, text: str | None, count: str | None) -> None:
    write_tar(shard(tmp_path), {"a": sample(0, **members)})
    rows, counts = index(tmp_path)
    assert [(r["text"], r["error"]) for r in rows] == [(text, None)]
    assert (count in counts) if count else counts == {}


def test_a_missing_json_derives_the_uid(tmp_path: Path) -> None:
    write_tar(shard(tmp_path), {"a": sample(0, json=None), "b": sample(1, json=None)})
    rows, counts = index(tmp_path)
    assert counts == {"text: no json: uid derived": 2}
    assert len({r["uid"] for r in rows}) == 2
    assert all(len(r["uid"]) == 32 and r["error"] is None for r in rows)


def test_errors_are_rows(tmp_path: Path) -> None:
    pairs = [("a", sample(0)), ("b", sample(1, jpg=None)), ("a", sample(2)), ("c", sample(0))]
    write_tar(shard(tmp_path), pairs)
    rows, _ = index(tmp_path)
    assert [r["error"] for r in rows] == [None, "no image", "duplicate key", "duplicate uid"]


def test_a_truncated_tar_keeps_what_is_whole(tmp_path: Path) -> None:
    path = write_shard(tmp_path / "pool", 0, 4)
    whole, _ = index(tmp_path)
    path.write_bytes(path.read_bytes()[: whole[3]["offset"] + 100])
    (tmp_path / "out").rename(tmp_path / "old")
    rows, counts = index(tmp_path)
    assert [r["error"] for r in rows] == [None, None, None, "cut off by the end of the tar"]
    assert counts["shard: truncated or corrupt tar"] == 1
    assert counts["sample: cut off by the end of the tar"] == 1


@pytest.mark.parametrize("data", [b"", b"this is no tar at all" * 100, bytes(10_240)])
def test_a_shard_without_samples(tmp_path: Path, data: bytes) -> None:
    shard(tmp_path).parent.mkdir()
    shard(tmp_path).write_bytes(data)
    rows, counts = index(tmp_path)
    assert rows == []
    assert counts["shard: no samples"] == 1


def test_the_parquet_beside(tmp_path: Path) -> None:
    write_tar(shard(tmp_path), {"k0": sample(0), "k1": sample(1, json=None), "k3": sample(3)})
    rows = [
        {"key": "k0", "uid": uid(0), "status": "success", "error_message": None},
        {"key": "k1", "uid": uid(1), "status": "success", "error_message": None},
        {"key": "k2", "uid": uid(2), "status": "success", "error_message": None},
        {"key": "k9", "uid": uid(9), "status": "failed_to_download", "error_message": "HTTP Error 404: Not Found"},
    ]
    pq.write_table(pa.Table.from_pylist(rows), shard(tmp_path).with_suffix(".parquet"))
    found, counts = index(tmp_path)
    assert found[1]["uid"] == uid(1)
    assert counts == {
        "download: HTTP Error 404: Not Found": 1,
        "shard: rows of the parquet that the tar lacks": 1,
        "shard: samples of the tar that the parquet lacks": 1,
    }


def test_a_parquet_that_is_none(tmp_path: Path) -> None:
    path = write_shard(tmp_path / "pool", 0, 1)
    path.with_suffix(".parquet").write_bytes(b"PAR1 not really")
    rows, counts = index(tmp_path)
    assert len(rows) == 1
    assert counts == {"shard: unreadable parquet": 1}
