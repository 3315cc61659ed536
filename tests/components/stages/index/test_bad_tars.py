"""Tars that are damaged, strange, or not made by a webdataset writer: nothing crashes, nothing vanishes uncounted."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
import tracemalloc
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from uuid import UUID

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from components.pool.uids import canonical_uid
from tests.pools import indexed, jpeg, sample, uid, write_shard, write_tar

BLOCK = 512
DAMAGED = "shard: truncated or corrupt tar"


def index(tmp_path: Path) -> tuple[list[dict[str, Any]], dict[str, int]]:
    """Rows and counts of shard 0 of the pool in tmp_path/pool."""
    pool, columns, spec = indexed(tmp_path / "pool", tmp_path / "out")
    return columns.read(spec, pool.shards[0]).to_pylist(), dict(columns.record(spec, pool.shards[0], "all").failures)


def shard(tmp_path: Path) -> Path:
    return tmp_path / "pool" / "00000000.tar"


def headers(path: Path) -> list[int]:
    """Offsets of the members' headers."""
    with tarfile.open(path) as tar:
        return [member.offset for member in tar]


def at_a_member(data: bytearray, places: list[int]) -> bytes:
    return bytes(data[: places[6]])


def in_a_header(data: bytearray, places: list[int]) -> bytes:
    return bytes(data[: places[6] + 100])


def garbage_for_a_header(data: bytearray, places: list[int]) -> bytes:
    data[places[6] : places[6] + BLOCK] = b"\xa5" * BLOCK
    return bytes(data)


def zeros_for_a_header(data: bytearray, places: list[int]) -> bytes:
    data[places[6] : places[6] + BLOCK] = bytes(BLOCK)
    return bytes(data)


@pytest.mark.parametrize("damage", [at_a_member, in_a_header, garbage_for_a_header, zeros_for_a_header])
def test_damage_between_samples_is_counted(tmp_path: Path, damage: Callable[[bytearray, list[int]], bytes]) -> None:
    """tarfile takes all four for a regular end."""
    path = write_shard(tmp_path / "pool", 0, 4)
    path.write_bytes(damage(bytearray(path.read_bytes()), headers(path)))
    rows, counts = index(tmp_path)
    assert [(r["uid"], r["error"]) for r in rows] == [(uid(0), None), (uid(1), None)]
    assert counts == {DAMAGED: 1}


def test_a_member_that_claims_more_than_there_is(tmp_path: Path) -> None:
    path = write_shard(tmp_path / "pool", 0, 2)
    header = tarfile.TarInfo("x.jpg")
    header.size = 3 << 30
    path.write_bytes(path.read_bytes().rstrip(b"\0").ljust(headers(path)[-1] + 2 * BLOCK, b"\0") + header.tobuf())
    rows, counts = index(tmp_path)
    assert [r["error"] for r in rows] == [None, None, "cut off by the end of the tar"]
    assert counts[DAMAGED] == 1


def test_a_text_cut_off_by_the_end(tmp_path: Path) -> None:
    write_tar(shard(tmp_path), {"a": sample(0), "b": {"jpg": jpeg(1), "txt": b"x" * 3000}})
    shard(tmp_path).write_bytes(shard(tmp_path).read_bytes()[: headers(shard(tmp_path))[-1] + BLOCK + 1000])
    rows, counts = index(tmp_path)
    assert [(r["text"], r["error"]) for r in rows] == [("photo number 0", None), (None, None)]
    assert counts[DAMAGED] == 1


def test_names_that_are_not_utf_8(tmp_path: Path) -> None:
    shard(tmp_path).parent.mkdir()
    with tarfile.open(shard(tmp_path), "w", format=tarfile.GNU_FORMAT, encoding="latin-1") as tar:
        for name, data in (("café.jpg", jpeg(0)), ("café.txt", b"a text"), ("b.jpg", jpeg(1))):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    rows, _ = index(tmp_path)
    assert [(r["text"], r["error"]) for r in rows] == [("a text", None), (None, None)]
    assert len({r["uid"] for r in rows}) == 2


@pytest.mark.parametrize(
    ("meta", "expected"),
    [
        ({"uid": uid(0), "caption": "half \ud800 a pair"}, {"text": None, "uid": uid(0)}),
        ({"uid": "\ud800", "caption": "a"}, {"text": "a"}),
        ({"uid": uid(0), "caption": ["a", "list"]}, {"text": None}),
        ({"uid": uid(0), "caption": "a", "width": True, "height": "30"}, {"width": None, "height": None}),
        ({"uid": uid(0), "caption": "a", "width": 1e300, "height": 1 << 40}, {"width": None, "height": None}),
        ({"uid": {"not": "a name"}, "caption": "a"}, {"text": "a"}),
    ],
)
def test_strange_metadata(tmp_path: Path, meta: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    write_tar(shard(tmp_path), {"a": sample(0, txt=None, json=json.dumps(meta).encode())})
    (row,), _ = index(tmp_path)
    assert row["error"] is None
    assert {name: row[name] for name in expected} == expected


@pytest.mark.parametrize("data", [b"[" * 100_000, b"\xff\xfe\x00", b"[1, 2]", b"", b"1" * 10_000, b" " * (1 << 21)])
def test_a_json_that_is_no_metadata_leaves_the_image(tmp_path: Path, data: bytes) -> None:
    write_tar(shard(tmp_path), {"a": sample(0, json=data)})
    (row,), counts = index(tmp_path)
    assert (row["text"], row["error"]) == ("photo number 0", None)
    assert counts["text: unreadable json"] == 1


def test_members_in_any_order(tmp_path: Path) -> None:
    """As plain tar writes an unsorted folder: the members of a sample are spread over the tar."""
    wholes = [(f"k{i}", sample(i)) for i in range(3)]
    spread = [(key, {kind: whole[kind]}) for kind in ("txt", "jpg", "json") for key, whole in wholes]
    write_tar(shard(tmp_path), spread)
    rows, counts = index(tmp_path)
    assert [(r["uid"], r["text"], r["error"]) for r in rows] == [(uid(i), f"photo number {i}", None) for i in range(3)]
    assert counts == {}
    data = shard(tmp_path).read_bytes()
    assert [data[r["offset"] :][: r["size"]] for r in rows] == [jpeg(i) for i in range(3)]


def test_a_key_that_comes_twice_is_a_row_of_its_own(tmp_path: Path) -> None:
    write_tar(shard(tmp_path), [("a", sample(0)), ("b", sample(1)), ("a", sample(2)), ("c", sample(3))])
    rows, counts = index(tmp_path)
    assert [(r["key"], r["text"], r["error"]) for r in rows] == [
        ("a", "photo number 0", None),
        ("b", "photo number 1", None),
        ("a", "photo number 2", "duplicate key"),
        ("c", "photo number 3", None),
    ]
    assert counts == {"sample: duplicate key": 1}


def test_two_images_of_one_sample(tmp_path: Path) -> None:
    write_tar(shard(tmp_path), [("a", {"jpg": jpeg(0), "png": jpeg(1), "txt": b"text"}), ("b", sample(1))])
    rows, counts = index(tmp_path)
    assert [r["error"] for r in rows] == [None, "duplicate key", None]
    assert counts["sample: duplicate key"] == 1


def test_samples_of_a_second_tar_appended_to_the_first(tmp_path: Path) -> None:
    """`cat a.tar b.tar`: readers stop at the first end."""
    write_tar(shard(tmp_path), {"a": sample(0)})
    other = write_tar(tmp_path / "other.tar", {"b": sample(1)})
    shard(tmp_path).write_bytes(shard(tmp_path).read_bytes() + other.read_bytes())
    rows, counts = index(tmp_path)
    assert [r["uid"] for r in rows] == [uid(0)]
    assert counts == {DAMAGED: 1}


def test_a_parquet_of_other_uids(tmp_path: Path) -> None:
    write_tar(shard(tmp_path), {f"k{i}": sample(i) for i in range(3)})
    beside = {"key": ["k0", "k1", "k2"], "uid": [uid(0), uid(7), None]}
    pq.write_table(pa.table(beside), shard(tmp_path).with_suffix(".parquet"))
    rows, counts = index(tmp_path)
    assert [r["uid"] for r in rows] == [uid(0), uid(1), uid(2)]
    assert counts == {"shard: samples whose uid in the parquet is another one": 1}


@pytest.mark.parametrize("table", [{"name": ["x"]}, {"key": [0, 1]}, {"key": [None, None], "status": [None, None]}])
def test_a_parquet_of_other_columns(tmp_path: Path, table: dict[str, list[Any]]) -> None:
    write_shard(tmp_path / "pool", 0, 2)
    pq.write_table(pa.table(table), shard(tmp_path).with_suffix(".parquet"))
    rows, counts = index(tmp_path)
    assert [r["error"] for r in rows] == [None, None]
    assert counts


def test_a_parquet_with_damaged_pages(tmp_path: Path) -> None:
    write_shard(tmp_path / "pool", 0, 2)
    path = shard(tmp_path).with_suffix(".parquet")
    pq.write_table(pa.table({"key": [f"{i:012d}" for i in range(1000)]}), path)
    data = bytearray(path.read_bytes())
    data[4:200] = b"\xee" * 196
    path.write_bytes(bytes(data))
    rows, counts = index(tmp_path)
    assert len(rows) == 2
    assert counts == {"shard: unreadable parquet": 1}


def test_a_uid_in_two_shards_is_two_samples(tmp_path: Path) -> None:
    """Across shards a uid may repeat: columns are kept by shard, and finding repeats of a billion uids is a shuffle."""
    write_shard(tmp_path / "pool", 0, 2)
    write_shard(tmp_path / "pool", 1, 2, start=1)
    pool, columns, spec = indexed(tmp_path / "pool", tmp_path / "out")
    found = [columns.read(spec, s).to_pylist() for s in pool.shards]
    assert [[(r["uid"], r["error"]) for r in rows] for rows in found] == [
        [(uid(0), None), (uid(1), None)],
        [(uid(1), None), (uid(2), None)],
    ]


@pytest.mark.parametrize("form", ["binary", "16 bytes", "dashed", "capitals"])
def test_uids_of_a_parquet_in_any_form(tmp_path: Path, form: str) -> None:
    plain = [uid(0xABC << 100 | n) for n in range(3)]
    dashed = [str(UUID(one)) for one in plain]
    forms = {"binary": [u.encode() for u in plain], "16 bytes": [bytes.fromhex(u) for u in plain], "dashed": dashed}
    write_tar(shard(tmp_path), {f"k{i}": sample(i, json=None) for i in range(3)})
    beside = {"key": ["k0", "k1", "k2"], "uid": forms.get(form, [u.upper() for u in plain])}
    pq.write_table(pa.table(beside), shard(tmp_path).with_suffix(".parquet"))
    rows, counts = index(tmp_path)
    assert [row["uid"] for row in rows] == plain
    assert counts == {}


def test_a_uid_of_zero_is_a_uid_and_other_kinds_are_counted(tmp_path: Path) -> None:
    given: list[Any] = [0, "0", 17.0, "", False, [1], None, {"a": 1}]
    samples = {f"k{i}": sample(i, json=json.dumps({"uid": one}).encode()) for i, one in enumerate(given)}
    write_tar(shard(tmp_path), samples)
    rows, counts = index(tmp_path)
    assert [row["uid"] for row in rows[:3]] == [canonical_uid(0), canonical_uid(0), canonical_uid(17)]
    assert counts == {"sample: duplicate uid": 1, "text: no uid: derived from shard and key": 5}


def test_a_parquet_with_bytes_that_are_no_utf_8(tmp_path: Path) -> None:
    write_tar(shard(tmp_path), {f"k{i}": sample(i, json=None) for i in range(2)})
    texts = {"key": [b"k0", b"k1", b"\xff"], "uid": [uid(7).encode(), b"\xff\xfe", None]}
    texts |= {"status": [b"success", b"success", b"\xff"], "error_message": [None, None, b"\xffHTTP Error 404"]}
    arrays = {n: pa.array(v, pa.binary()) for n, v in texts.items()}
    unchecked = [pa.StringArray.from_buffers(len(c), *c.buffers()[1:], c.buffers()[0]) for c in arrays.values()]
    pq.write_table(pa.table(unchecked, list(arrays)), shard(tmp_path).with_suffix(".parquet"))
    rows, counts = index(tmp_path)
    assert [row["uid"] for row in rows] == [uid(7), canonical_uid(b"\xff\xfe")]
    assert counts == {"download: HTTP Error 404: Not Found": 1}


def test_reasons_of_failed_downloads_are_a_fixed_vocabulary(tmp_path: Path) -> None:
    write_tar(shard(tmp_path), {"k": sample(0)})
    known = {
        "HTTP Error 403: Forbidden <b>": "HTTP Error 403: Forbidden", "HTTP Error 499: ": "HTTP Error 4xx",
        "<urlopen error timed out>": "timed out", "<urlopen error [SSL: CERTIFICATE_VERIFY_FAILED]>": "no valid TLS",
        "<urlopen error [Errno -2] Name or service not known>": "no such host",
        "Image decoding error": "image that can't be used",
        "Remote end closed connection without response": "connection broken", "unknown url type: data": "bad URL",
        "x" * 100_000: "other", "": "failed_to_resize",
    }  # fmt: skip
    strange = [f"\x1b[31m{number} \u202e" for number in range(3000)]
    messages = [*known, *strange]
    beside = {"key": [f"f{i}" for i in range(len(messages))], "error_message": messages}
    beside |= {"status": ["failed_to_resize"] * len(messages)}
    pq.write_table(pa.table(beside), shard(tmp_path).with_suffix(".parquet"))
    _, counts = index(tmp_path)
    expected = Counter(f"download: {reason}" for reason in [*known.values(), *["other"] * 3000])
    assert counts == {**expected, "shard: samples of the tar that the parquet lacks": 1}


def test_images_whose_names_have_a_dot_too_many_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_tar(shard(tmp_path), {f"IMG_v1.0_{i:04d}": sample(i) for i in range(10)})
    rows, counts = index(tmp_path)
    assert [(row["key"], row["error"]) for row in rows] == [("IMG_v1", "no image")]
    assert counts["shard: images not used, as their names have a dot too many"] == 10
    assert "00000000.tar: 10 images are in no sample, such as IMG_v1.0_0009.jpg: a key ends at" in caplog.text


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (gzip.compress(bytes(10240), mtime=0), "shard: gzip, no tar"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "shard: a pointer of git-lfs, no tar"),
        (b"<html>not found</html>" * 100, "shard: a page of HTML or XML, no tar"),
    ],
    ids=["gzip", "git-lfs", "html"],
)  # fmt: skip
def test_what_a_shard_is_instead_of_a_tar(tmp_path: Path, data: bytes, reason: str) -> None:
    shard(tmp_path).parent.mkdir()
    shard(tmp_path).write_bytes(data)
    rows, counts = index(tmp_path)
    assert (rows, counts) == ([], {reason: 1, "shard: no samples": 1})


def test_metadata_that_is_not_used_is_not_kept(tmp_path: Path) -> None:
    """40 samples of many small values each, which took 15 MB while they were kept."""
    meta = {"uid": "x", "caption": "a text", "more": {f"key{i}": [i] for i in range(1500)}}
    samples = {f"k{n}": sample(0, txt=None, json=json.dumps(meta | {"uid": uid(n)}).encode()) for n in range(40)}
    write_tar(shard(tmp_path), samples)
    tracemalloc.start()
    try:
        rows, _ = index(tmp_path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert [row["text"] for row in rows] == ["a text"] * 40
    assert peak < 5 << 20


@pytest.mark.parametrize("kind", ["txt", "json"])
@pytest.mark.parametrize(
    ("text", "expected", "note"),
    [
        ("\ufeffa cat", "a cat", None),
        (" \ufeff a\0 cat\n", "a cat", None),
        ("\ufeff", None, "none"),
        ("é" * 4097, None, "over 8192 bytes"),
        ("x" * 8192, "x" * 8192, None),
    ],
)
def test_a_text_is_cleaned_wherever_it_comes_from(
    tmp_path: Path, kind: str, text: str, expected: str | None, note: str | None
) -> None:
    meta = json.dumps({"uid": uid(0), "caption": text}).encode()
    members = {"txt": text.encode()} if kind == "txt" else {"txt": None, "json": meta}
    write_tar(shard(tmp_path), {"a": sample(0, **members)})
    (row,), _ = index(tmp_path)
    assert (row["text"], row["note"]) == (expected, note)
