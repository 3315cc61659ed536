"""Tables of URLs become candidates: every row kept, dropped or lost, and one clear line for a file that is none."""

from __future__ import annotations

import csv
import errno
import gzip
import io
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import UUID

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from components.base.errors import PermanentError, TemporaryError
from components.base.unread import gathering
from components.pool.uids import canonical_uid
from components.stages.extract import dedup as dedup_module
from components.stages.extract import spill, table
from components.stages.extract.extraction import Extraction
from components.stages.extract.table import candidates_of, find_tables
from components.stages.extract.task import extract_task
from components.stages.extract.text_rules import MOST_TEXT, MOST_URL, uid_of
from components.storage.local import LocalStorage
from tests.components.stages.extract.test_extract import Killed, Mortal, read, run
from tests.components.storage.web_server import mirror

Row = tuple[str | None, str | None, str | None]
"""URL, text, uid."""


def work_on(urls: Path | str, partitions: int = 2) -> Extraction:
    return replace(find_tables(str(urls)), partitions=partitions)


def extracted(urls: Path, tasks: int = 1) -> tuple[list[tuple[str, str, str]], dict[str, Any]]:
    """The candidates and the funnel."""
    storage = LocalStorage(urls.parent / "storage")
    result = run(storage, work_on(urls), tasks)
    return read(storage, result["shards"]), result["funnel"]


def datacomp(path: Path, rows: Sequence[Row], **how: Any) -> Path:
    """With the fields of DataComp's metadata, in its order."""
    count = len(rows)
    fields = {
        "uid": pa.array([row[2] for row in rows], pa.string()),
        "url": pa.array([row[0] for row in rows], pa.string()),
        "text": pa.array([row[1] for row in rows], pa.string()),
        "original_width": pa.array([640] * count),
        "original_height": pa.array([480] * count),
        "clip_l14_similarity_score": pa.array([0.25] * count, pa.float32()),
        "face_bboxes": pa.array([[[0.1, 0.2, 0.3, 0.4]]] * count, pa.list_(pa.list_(pa.float64()))),
        "sha256": pa.array(["0" * 64] * count),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(fields), path, **how)
    return path


def csv_file(path: Path, header: Sequence[str], rows: Sequence[Sequence[str | None]], encoding: str = "utf-8") -> Path:
    text = io.StringIO(newline="")
    csv.writer(text).writerows([header, *rows])
    data = text.getvalue().encode(encoding)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def some(start: int, stop: int) -> list[Row]:
    return [(f"https://h.example/{n}.jpg", f"picture {n}", f"{n:032x}") for n in range(start, stop)]


def test_datacomps_metadata_keeps_its_uids(tmp_path: Path) -> None:
    rows: list[Row] = [
        ("https://a.example/1.jpg", "a cat", "0123456789ABCDEF0123456789abcdef"),
        ("https://a.example/2.jpg?a=1&amp;b=2#x", "  ein B&auml;r\n ", "f" * 32),
        ("/relative.jpg", "x", "e" * 32),
    ]
    found, funnel = extracted(datacomp(tmp_path / "m" / "0.parquet", rows).parent)
    assert found == sorted((str(uid).lower(), url, text) for url, text, uid in rows)
    assert funnel == {
        "files": 1, "records": {"rows of tables": 3}, "candidates": 3, "dropped": {}, "lost": {}, "kept": 3,
        "undecoded": 0, "damaged": {"places": 0, "bytes": 0}, "damages": [],
    }  # fmt: skip


def test_a_uid_that_is_none_or_another_kind(tmp_path: Path) -> None:
    url, fields = "https://a.example/1.jpg", [None, "", " ", "12", "z" * 32, "ab " * 10 + "ab"]
    rows: list[Row] = [(f"{url}?{n}", "a", uid) for n, uid in enumerate(fields)]
    found, _ = extracted(datacomp(tmp_path / "m" / "0.parquet", rows).parent)
    made = [uid_of(f"{url}?{n}", "a").hex() for n in range(3)] + [canonical_uid(str(uid)) for uid in fields[3:]]
    assert {uid: (at, text) for uid, at, text in found} == {u: (f"{url}?{n}", "a") for n, u in enumerate(made)}


def test_uids_in_other_forms_are_the_same(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Without a uid of its own, or by a U+FFFD for each of its bytes, an image would meet no published column."""
    name = "0123456789abcdef0123456789abcdef"
    for number, uids in enumerate((pa.array([UUID(name).bytes], pa.binary(16)), pa.array([str(UUID(name)).upper()]))):
        path = tmp_path / str(number) / "m" / "0.parquet"
        path.parent.mkdir(parents=True)
        pq.write_table(pa.table({"uid": uids, "url": ["https://a.example/"], "text": ["a"]}), path)
        (path.parent / "1.jsonl").write_text("{}")
        with gathering() as unread:
            assert extracted(path.parent)[0] == [(name, "https://a.example/", "a")]
        assert [(u.place, u.count, u.examples) for u in unread.values()] == [(str(path.parent), 1, ("1.jsonl",))]
    assert "1 file looks like a table and is not read: .jsonl 1" in caplog.text


def test_a_uid_that_is_a_number(tmp_path: Path) -> None:
    path = tmp_path / "m" / "0.parquet"
    path.parent.mkdir()
    pq.write_table(pa.table({"key": [1], "UID": [7], "URL": ["https://a.example/"], "TEXT": ["a"]}), path)
    assert extracted(path)[0] == [(canonical_uid("7"), "https://a.example/", "a")]


@pytest.mark.parametrize("name", ["0.csv", "0.csv.gz"])
def test_a_csv_with_a_mark_and_capitals(tmp_path: Path, name: str) -> None:
    rows = [
        ["1", "https://a.example/1.jpg", 'a "cat", or\ntwo'],
        ["x", "https://a.example/2.jpg", "NULL"],
        ["", "null", "007"],
    ]
    path = csv_file(tmp_path / "m" / name, ["Size", "URL", "Text"], rows, "utf-8-sig")
    expected = sorted((uid_of(url, text).hex(), url, text) for _, url, text in rows)
    assert extracted(path)[0] == expected


def test_captions_serve_where_there_is_no_text(tmp_path: Path) -> None:
    csv_file(tmp_path / "m" / "0.csv", ["caption", "url"], [["a", "https://a.example/"]])
    csv_file(tmp_path / "m" / "1.csv", ["caption", "url", "TEXT"], [["a", "https://b.example/", "b"]])
    assert {row[1:] for row in extracted(tmp_path / "m")[0]} == {
        ("https://a.example/", "a"),
        ("https://b.example/", "b"),
    }


def test_an_image_without_text_can_still_be_captioned(tmp_path: Path) -> None:
    rows: list[Row] = [("https://a.example/1", None, None), ("https://a.example/2", "", None)]
    found, funnel = extracted(datacomp(tmp_path / "m" / "0.parquet", rows))
    assert found == sorted((uid_of(str(url), "").hex(), url, "") for url, _, _ in rows)
    assert funnel["dropped"] == {}


def test_a_column_that_is_all_null_and_other_string_types(tmp_path: Path) -> None:
    path = tmp_path / "m" / "0.parquet"
    path.parent.mkdir()
    url = pa.array(["https://a.example/1", "https://a.example/1"]).dictionary_encode()
    pq.write_table(pa.table({"url": url, "text": pa.nulls(2), "uid": pa.array([b"a", b"b"], pa.large_binary())}), path)
    assert {row[0] for row in extracted(path)[0]} == {canonical_uid("a"), canonical_uid("b")}


def test_what_is_dropped_and_why(tmp_path: Path) -> None:
    long, wide = "https://a.example/" + "x" * (MOST_URL - 18), "é" * MOST_TEXT
    rows: list[Row] = [
        (None, "a", None), ("", "a", None), (" \t", "a" * 9000, None), (long, wide, None), (long + "x", wide, None),
        (long, wide + "x", None), (long + "x", wide + "x", None),
    ]  # fmt: skip
    found, funnel = extracted(datacomp(tmp_path / "m" / "0.parquet", rows))
    assert [row[1:] for row in found] == [(long, wide)]
    assert funnel["dropped"] == {"long text": 1, "long url": 2, "no url": 3}


def test_bytes_that_are_no_characters_are_counted(tmp_path: Path) -> None:
    """A parquet's strings are not checked by whoever writes them: here a lone surrogate, and a NUL, which is fine."""
    broken = [b"https://a.example/\xff", b"https://a.example/\x00"]
    url, text = (pa.array(v, pa.binary()) for v in (broken, [b"\xed\xa0\x80 cat", b"\x00"]))
    unchecked = [pa.StringArray.from_buffers(len(c), *c.buffers()[1:], c.buffers()[0]) for c in (url, text)]
    path = tmp_path / "m" / "0.parquet"
    path.parent.mkdir()
    pq.write_table(pa.table(unchecked, ["url", "text"]), path)
    found, funnel = extracted(path)
    expected = {("https://a.example/\ufffd", "\ufffd\ufffd\ufffd cat"), ("https://a.example/\x00", "\x00")}
    assert {row[1:] for row in found} == expected
    assert funnel["undecoded"] == 1


def test_duplicates_across_files_whatever_the_number_of_tasks(tmp_path: Path) -> None:
    folder = tmp_path / "m"
    datacomp(folder / "a" / "0.parquet", some(0, 30))
    datacomp(folder / "b.parquet", some(20, 50))
    header, rows = ["uid", "url", "text"], [(uid, url, text) for url, text, uid in some(40, 60)]
    csv_file(folder / "c.csv", header, rows)
    csv_file(folder / "d.csv.gz", header, [("0" * 32, "https://h.example/0.jpg", "another picture")])
    results = [run(LocalStorage(tmp_path / str(tasks)), work_on(folder), tasks) for tasks in (1, 2, 4, 7)]
    assert read(LocalStorage(tmp_path / "1"), results[0]["shards"])[1:] == [(u, a, t) for a, t, u in some(1, 60)]
    assert results[0]["funnel"]["lost"] == {"duplicate": 20, "uid of another pair": 1}
    assert all(result == results[0] for result in results[1:])


def test_killed_at_every_call_gives_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table, "ROWS", 8)
    monkeypatch.setattr(spill, "MEMORY", 1000)
    monkeypatch.setattr(dedup_module, "SHARD", 20)
    datacomp(tmp_path / "m" / "0.parquet", some(0, 40))
    csv_file(tmp_path / "m" / "1.csv", ["uid", "url", "text"], [(u, a, t) for a, t, u in some(30, 50)])
    job, calm = work_on(tmp_path / "m"), LocalStorage(tmp_path / "calm")
    expected = run(calm, job, 2)
    names, kills = {entry.path for entry in calm.list("")}, 0
    for number in range(1, 1000):
        root = tmp_path / str(number)
        try:
            run(Mortal(root, number, after=number % 2 == 0), job, 2)
        except Killed:
            kills += 1
        else:
            break
        storage = LocalStorage(root)
        assert run(storage, job, 2) == expected
        assert {entry.path for entry in storage.list("")} == names
    assert kills > 20


def test_over_http_through_failures(tmp_path: Path) -> None:
    datacomp(tmp_path / "m" / "0.parquet", some(0, 2000), row_group_size=300)
    csv_file(tmp_path / "m" / "1.csv.gz", ["url", "text"], [row[:2] for row in some(0, 100)])
    job = work_on(tmp_path / "m")
    served = {name: Path(job.base, name).read_bytes() for name in job.files}
    with mirror(served, faults=["cut", 503, "hang up"]) as web:
        there = Extraction("tables", web.url, job.files, "table", job.partitions, job.content)
        over_http = run(LocalStorage(tmp_path / "web"), there, 1)
    assert over_http == run(LocalStorage(tmp_path / "folder"), job, 1)
    assert over_http["funnel"]["kept"] == 2100


@pytest.mark.parametrize("kind", ["parquet", "csv"])
def test_tables_without_rows(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "m" / f"0.{kind}"
    datacomp(path, []) if kind == "parquet" else csv_file(path, ["url", "text"], [])
    found, funnel = extracted(path)
    assert (found, funnel["candidates"], funnel["kept"], funnel["records"]) == ([], 0, 0, {})


def failure(path: Path) -> str:
    """One line, which names the file; nothing counts as done."""
    storage, job = LocalStorage(path.parent.parent / "storage"), work_on(path)
    with pytest.raises(PermanentError) as error:
        extract_task(storage, job, 0, 1)
    assert list(storage.list(f"{job.spills(0)}.done")) == []
    message = str(error.value)
    assert message.startswith(f"table {path.name}: ")
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (["uid", "text"], "no field url; there is uid, text"),
        (["url", "uid", "alt"], "no field text or caption; there is url, uid, alt"),
        (["url", "URL", "text"], "several fields url; there is url, URL, text"),
        ([], "no field url; there is nothing"),
    ],
)
@pytest.mark.parametrize("kind", ["csv", "csv.gz", "parquet"])
def test_a_table_without_its_fields(tmp_path: Path, header: list[str], message: str, kind: str) -> None:
    path = tmp_path / "m" / f"0.{kind}"
    path.parent.mkdir()
    if kind == "parquet":
        pq.write_table(pa.table([["x"]] * len(header), header), path)
    else:
        csv_file(path, header, [["x"] * len(header)])
    assert failure(path) == f"table {path.name}: {message}"


@pytest.mark.parametrize("kept", [0, 4, 100, -1])
def test_a_truncated_parquet(tmp_path: Path, kept: int) -> None:
    path = datacomp(tmp_path / "m" / "0.parquet", some(0, 100))
    path.write_bytes(path.read_bytes()[:kept])
    assert "Parquet" in failure(path)


def test_a_row_group_that_can_not_be_read(tmp_path: Path) -> None:
    how = {"write_page_checksum": True, "compression": "none", "row_group_size": 100, "use_dictionary": False}
    path = datacomp(tmp_path / "m" / "0.parquet", some(0, 1000), **how)
    data = path.read_bytes()
    at = data.index(b"https://h.example/777.jpg")
    path.write_bytes(data[:at] + b"i" + data[at + 1 :])
    assert "CRC" in failure(path)


def test_a_truncated_gzip(tmp_path: Path) -> None:
    path = csv_file(tmp_path / "m" / "0.csv.gz", ["url", "text"], [row[:2] for row in some(0, 1000)])
    path.write_bytes(path.read_bytes()[:-20])
    assert "ended before the end-of-stream marker" in failure(path)


def test_files_that_are_something_else(tmp_path: Path) -> None:
    folder = tmp_path / "m"
    whole = datacomp(folder / "whole.parquet", some(0, 3)).read_bytes()
    others = {"0.csv": whole, "1.csv.gz": b"url,text\n", "2.parquet": b"url,text\na,b\n", "3.csv": b"url,text\na,b,c\n"}
    others |= {"4.csv": b"x" * 200_000, "5.parquet": whole.replace(b"text", b"te\xfct")}
    for name, data in others.items():
        (folder / name).write_bytes(data)
        failure(folder / name)


def test_a_field_of_another_type(tmp_path: Path) -> None:
    path = tmp_path / "m" / "0.parquet"
    path.parent.mkdir()
    pq.write_table(pa.table({"url": ["x"], "text": [["a", "b"]]}), path)
    assert "text has dtype list" in failure(path)


class Failing(io.BytesIO):
    """Fails from its n-th read on."""

    def __init__(self, data: bytes, reads: int, error: Exception) -> None:
        super().__init__(data)
        self.reads, self.error = reads, error

    def read(self, size: int | None = -1) -> bytes:
        self.reads -= 1
        if self.reads < 0:
            raise self.error
        return super().read(size)


@pytest.mark.parametrize("error", [TemporaryError("cannot read x: gave up"), OSError(errno.EIO, "disk")])
@pytest.mark.parametrize("name", ["0.parquet", "0.csv", "0.csv.gz"])
def test_bad_luck_is_no_bad_input(tmp_path: Path, name: str, error: Exception) -> None:
    """An error while reading comes through Arrow as it was."""
    path = tmp_path / "m" / name
    rows = some(0, 40_000)
    if name == "0.parquet":
        datacomp(path, rows, row_group_size=10_000)
    else:
        csv_file(path, ["url", "text"], [row[:2] for row in rows])
    with pytest.raises(type(error)) as raised:
        list(candidates_of(Failing(path.read_bytes(), 2, error), name))
    assert str(raised.value) == str(error)


def test_what_is_found(tmp_path: Path) -> None:
    folder = tmp_path / "m"
    for name in ("b.csv", "a/c.parquet", "a.csv.gz", "a/c.npz", "_SUCCESS"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    found = find_tables(str(folder))
    assert (found.base, found.files) == (str(folder), ("a.csv.gz", "a/c.parquet", "b.csv"))
    assert find_tables(f"{folder}/") == found
    one = find_tables(f"{folder}/b.csv")
    assert (one.base, one.files) == (str(folder), ("b.csv",))
    (folder / "b.csv").write_text("x")
    assert find_tables(str(folder)).folder != found.folder


def test_larger_tables_are_cut_into_more_partitions(tmp_path: Path) -> None:
    for size, partitions in ((0, 1), (43_000_000, 2), (430_000_000, 11)):
        with open(tmp_path / "t.csv", "wb") as file:
            file.truncate(size)
        assert find_tables(str(tmp_path)).partitions == partitions


@pytest.mark.parametrize("name", ["nothing", "nothing.csv", "m"])
def test_nothing_is_found(tmp_path: Path, name: str) -> None:
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "0.npz").touch()
    with pytest.raises(PermanentError, match=rf"{name}: no \.parquet, .*\.csv, \.csv\.gz, .* there"):
        find_tables(str(tmp_path / name))


def test_finding_needs_only_what_the_operator_has() -> None:
    code = (
        "import sys, components.stages.extract.table; print({'isal', 'msgspec', 'aiohttp', 'torch'} & set(sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout == "set()\n"


short = st.text('aé," \n\x00', max_size=4)
urls = st.none() | st.sampled_from(["", " ", "https://a.example/1", "https://a.example/2", "x" * 2084]) | short
texts = st.none() | st.sampled_from(["", "a", "b", "x" * 4097, "\ufffd"]) | short
uids = st.none() | st.sampled_from(["", "7", "A" * 32, "a" * 32, "b" * 32])
kinds = st.sampled_from(["parquet", "csv", "csv.gz"])
tables = st.lists(st.tuples(kinds, st.lists(st.tuples(urls, texts, uids))), min_size=1, max_size=3)


def expected_of(rows: Sequence[Row]) -> tuple[list[tuple[str, str, str]], Counter[str]]:
    """Row by row."""
    pairs: dict[str, tuple[str, str]] = {}
    dropped = Counter[str]()
    for url, text, uid in rows:
        url, text = url or "", text or ""
        if not url.strip():
            dropped["no url"] += 1
        elif len(url) > 2083:
            dropped["long url"] += 1
        elif len(text) > 4096:
            dropped["long text"] += 1
        else:
            name = canonical_uid(uid) if uid else uid_of(url, text).hex()
            pairs[name] = min(pairs.get(name, (url, text)), (url, text))
    return sorted((uid, *pair) for uid, pair in pairs.items()), dropped


@given(tables, st.integers(1, 4))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_row_is_kept_dropped_or_lost(
    tmp_path_factory: pytest.TempPathFactory, drawn: list[tuple[str, list[Row]]], tasks: int
) -> None:
    folder = tmp_path_factory.mktemp("tables") / "m"
    for n, (kind, rows) in enumerate(drawn):
        path = folder / f"{n}.{kind}"
        datacomp(path, rows) if kind == "parquet" else csv_file(path, ["url", "text", "uid"], rows)
    found, funnel = extracted(folder, tasks)
    rows = [row for _, some in drawn for row in some]
    expected, dropped = expected_of(rows)
    assert (found, funnel["dropped"]) == (expected, dict(sorted(dropped.items())))
    assert funnel["candidates"] == len(rows) == len(found) + dropped.total() + sum(funnel["lost"].values())
