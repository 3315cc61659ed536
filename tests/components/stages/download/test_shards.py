"""What lies in the storage afterwards: the layout, races, what is withdrawn, re-drives."""

from __future__ import annotations

import hashlib
import io
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from components.base.errors import PermanentError, TemporaryError
from components.engine.worker import run_task
from components.pool.columns import Columns
from components.pool.shards import pool_of
from components.recipe.sources import Download, Retry
from components.stages.download import fetch, pictures, redrive, task
from components.stages.download.reasons import REASONS
from components.stages.download.redrive import plan_redrive
from components.stages.download.shard import ShardRecord, Spool, finished, read_candidates
from components.stages.download.task import OPEN, download
from components.stages.index.stage import IndexStage
from components.storage.commit import DONE, read_record
from components.storage.local import LocalStorage
from tests.components.stages.download.conftest import LOOPBACK, USUAL, Pool, write_candidates
from tests.components.stages.download.web import Answer, Web
from tests.pools import jpeg, uid
from tests.privileges import full_disk


@pytest.fixture
def images(web: Web) -> Web:
    web.pages = {f"/{i}": Answer(jpeg(i, (40, 30)), delay=0.05 * (i == 0)) for i in range(5)}
    web.pages["/big"] = Answer(jpeg(9, (1000, 600)))
    return web


def files(folder: Path) -> dict[str, str]:
    """Name → checksum of everything that was written, of the records what doesn't depend on time."""
    found = {}
    for path in sorted((folder / "shards").iterdir()):
        data = path.read_bytes()
        if path.name.endswith(".done.json"):
            data = json.dumps({k: v for k, v in json.loads(data).items() if k != "seconds"}).encode()
        found[path.name] = hashlib.sha256(data).hexdigest()
    return found


def test_a_shard(images: Web, pool: Pool) -> None:
    (record,) = pool.download([images.url("/0"), images.url("/gone"), images.url("/big"), None])
    members = pool.members(record)
    assert list(members) == [f"00000000{i}.{kind}" for i in ("0000", "0002") for kind in ("jpg", "txt", "json")]
    assert members["000000000002.txt"] == b"text 2"
    facts = {
        "key": "000000000002",
        "status": "success",
        "error_message": None,
        "width": 512,
        "height": 307,
        "original_width": 1000,
        "original_height": 600,
        "exif": None,
        "sha256": hashlib.sha256(jpeg(9, (1000, 600))).hexdigest(),
        "uid": uid(2),
        "url": images.url("/big"),
        "caption": "text 2",
    }
    assert json.loads(members["000000000002.json"]) == facts
    rows = pool.rows(record)
    assert rows[2] == facts | {"http_status": 200}
    assert [(r["uid"], r["caption"], r["status"], r["error_message"], r["http_status"]) for r in rows] == [
        (uid(0), "text 0", "success", None, 200),
        (uid(1), "text 1", "failed_to_download", "http_404", 404),
        (uid(2), "text 2", "success", None, 200),
        (uid(3), "text 3", "failed_to_download", "bad_url", None),
    ]
    assert (record.candidates, record.samples, record.failures) == (4, 2, {"bad_url": 1, "http_404": 1})
    assert record.tar_sha256 == hashlib.sha256((pool.folder / record.tar).read_bytes()).hexdigest()
    assert record.parquet_sha256 == hashlib.sha256((pool.folder / record.parquet).read_bytes()).hexdigest()


def test_the_index_reads_it(images: Web, pool: Pool) -> None:
    records = pool.download([images.url("/0"), images.url("/gone")], [images.url("/1")], [images.url("/gone")] * 3)
    shards = pool_of("test", LocalStorage(pool.folder / "shards"), [r.to_shard("shards/") for r in records])
    columns, spec = Columns(LocalStorage(pool.folder / "out"), "test"), IndexStage.make_index()
    run_task(IndexStage(spec), shards, shards.shards, columns)
    found = [columns.read(spec, shard).to_pylist() for shard in shards.shards]
    assert [[(r["uid"], r["text"], r["error"], r["note"]) for r in rows] for rows in found] == [
        [(uid(0), "text 0", None, None)],
        [(uid(10_000), "text 10000", None, None)],
        [],
    ]
    assert [dict(columns.record(spec, shard, "all").failures) for shard in shards.shards] == [
        {"download: http_404": 1},
        {},
        {"download: http_404": 3, "shard: no samples": 1},
    ]


def test_a_text_that_is_missing_or_odd(images: Web, pool: Pool) -> None:
    texts = [None, "", "größer 画像 \0"]
    table = pa.table({"uid": [uid(i) for i in range(3)], "url": [images.url("/0")] * 3, "text": texts})
    write_candidates(pool.folder / "candidates/00000000.parquet", [])
    pq.write_table(table, pool.folder / "candidates/00000000.parquet")
    options = Download(**(USUAL | {"allow_networks": LOOPBACK}))
    (record,) = download(
        [redrive.Candidates("00000000", "candidates/00000000.parquet")], options, pool.storage, "shards"
    )
    members = pool.members(record)
    assert [members.get(f"00000000000{i}.txt") for i in range(3)] == [None, b"", "größer 画像 \0".encode()]
    assert [json.loads(members[f"00000000000{i}.json"])["caption"] for i in range(3)] == texts


def test_order_and_bytes_do_not_depend_on_who_answers_first(images: Web, pool: Pool, tmp_path: Path) -> None:
    urls = [images.url(f"/{i}") for i in range(5)] + [images.url("/gone")]
    pool.download(urls, per_host_connections=1)
    other = Pool(tmp_path / "other")
    other.download(urls, per_host_connections=6)
    assert files(other.folder) == files(pool.folder)


def test_a_finished_shard_is_not_downloaded_again(images: Web, pool: Pool) -> None:
    seen: list[tuple[int, int]] = []
    first = pool.download([images.url("/0")], progress=lambda *n: seen.append(n))
    asked = len(images.requests)
    again = pool.download([images.url("/0")], [images.url("/1"), images.url("/2")], progress=lambda *n: seen.append(n))
    assert again[0] == first[0]
    assert len(images.requests) == asked + 2
    assert [sum(column) for column in zip(*seen, strict=True)] == [3, 3]
    assert [finished(pool.storage, "shards", record.shard) for record in again] == again


def test_a_shard_whose_files_are_gone_or_cut_is_downloaded_anew(images: Web, pool: Pool) -> None:
    (record,) = pool.download([images.url("/0")])
    for name, data in ((record.tar, b"cut"), (record.parquet, None)):
        before = files(pool.folder)
        (pool.folder / name).write_bytes(data) if data else (pool.folder / name).unlink()
        pool.download([images.url("/0")])
        assert files(pool.folder) == before


def test_of_two_workers_the_first_one_s_shard_stands(images: Web, pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The web has changed between them: nothing of the loser's remains."""
    url = images.url("/0")
    rival: list[ShardRecord] = []

    class Late(LocalStorage):
        def create(self, path: str, data: bytes) -> bool:
            if not rival:
                images.pages["/0"] = Answer(jpeg(77))
                rival.extend(Pool(pool.folder).download([url]))
            return super().create(path, data)

    pool.storage = Late(pool.folder)
    assert pool.download([url]) == rival
    assert len(files(pool.folder)) == 3
    assert pool.rows(rival[0])[0]["sha256"] == hashlib.sha256(jpeg(77)).hexdigest()


def test_what_a_killed_worker_left_is_removed(images: Web, pool: Pool) -> None:
    for name in ("00000000.0123456789abcdef.tar", "00000000.0123456789abcdef.parquet", "00000001.0123.tar"):
        pool.storage.write(f"shards/{name}", b"left")
    (record,) = pool.download([images.url("/0")])
    assert sorted(files(pool.folder)) == sorted(
        [*(Path(p).name for p in (record.tar, record.parquet)), "00000000.done.json", "00000001.0123.tar"]
    )


@pytest.mark.parametrize(
    "table",
    [
        {"uid": ["a"], "url": ["http://a/"]},
        {"uid": ["a"], "url": [1], "text": [["list"]]},
        {"uid": [None], "url": ["http://a/"], "text": ["t"]},
        {"uid": ["a"] * 10_001, "url": ["http://a/"] * 10_001, "text": ["t"] * 10_001},
    ],
)
def test_what_is_no_table_of_candidates(pool: Pool, table: dict[str, list[Any]]) -> None:
    sink = io.BytesIO()
    pq.write_table(pa.table({k: pa.array(v, pa.string() if v == [None] else None) for k, v in table.items()}), sink)
    for data in (sink.getvalue(), b"no parquet"):
        pool.storage.write("c.parquet", data)
        with pytest.raises(PermanentError, match=r"^candidates c.parquet: .*expected"):
            read_candidates(pool.storage, "c.parquet")


def test_a_shard_of_no_candidates(pool: Pool) -> None:
    (record,) = pool.download([])
    assert (record.candidates, record.samples, pool.members(record)) == (0, 0, {})


def test_scratch_files_go_with_their_shard(images: Web, pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Spool] = []

    class Noted(Spool):
        def __init__(self) -> None:
            super().__init__()
            made.append(self)

    def opened() -> int:
        return sum(not spool._file.closed for spool in made)

    seen: list[int] = []
    monkeypatch.setattr(task, "Spool", Noted)
    pool.download(*([[images.url("/1")]] * 8), progress=lambda *_: seen.append(opened()))
    assert len(made) == 8
    assert 0 < max(seen) <= OPEN
    assert opened() == 0


def test_a_full_disk(images: Web, pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    with full_disk(pool.folder / "scratch", "16k") as disk:
        monkeypatch.setattr("tempfile.tempdir", str(disk))
        with pytest.raises(TemporaryError, match=r"^scratch files: .*TMPDIR"):
            pool.download([images.url("/big")] * 20)
    assert files_in(pool.folder / "shards") == []


def files_in(folder: Path) -> list[Path]:
    return list(folder.iterdir()) if folder.exists() else []


def kill_on_sight(data: bytes) -> object:
    """Stands in for the decoder: one image kills its process."""
    import os

    if data == jpeg(3, (40, 30)):
        os._exit(9)
    return pictures_made(data)


pictures_made = pictures.make_picture


def test_an_image_that_kills_its_decoder(images: Web, pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures, "make_picture", kill_on_sight)
    (record,) = pool.download([images.url(f"/{i}") for i in range(5)], per_host_connections=5)
    assert pool.reasons(record) == [None, None, None, "crashes_decoder", None]


def test_decoders_that_die_whatever_the_image(images: Web, pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures, "make_picture", kill_on_sight)
    monkeypatch.setattr(pictures, "DEADLY", 1)
    with pytest.raises(TemporaryError, match="decoding processes die"):
        pool.download([images.url("/3")] * 3)
    assert files_in(pool.folder / "shards") == []


def test_an_error_of_ours_costs_one_candidate_not_the_shard(
    images: Web, pool: Pool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    parse = fetch.parse_url

    def sometimes(text: str) -> Any:
        return {}[text] if text.endswith("/1") else parse(text)

    monkeypatch.setattr(fetch, "parse_url", sometimes)
    (record,) = pool.download([images.url(f"/{i}") for i in range(3)])
    assert pool.reasons(record) == [None, "error", None]
    assert "/1: KeyError" in caplog.text


@pytest.mark.parametrize("retry", ["transient", "all"])
def test_a_re_drive_appends_what_succeeds_now(web: Web, pool: Pool, retry: Retry) -> None:
    broken = Answer(status=503)
    web.pages = {"/good": Answer(jpeg(1)), "/down": broken, "/still": broken, "/gone": Answer(status=404)}
    urls = [web.url(path) for path in web.pages]
    first = pool.download(urls, urls)
    before = files(pool.folder)
    web.pages |= {"/down": Answer(jpeg(2)), "/gone": Answer(jpeg(3))}
    options = Download(**(USUAL | {"allow_networks": LOOPBACK}))

    def drive(number: int) -> list[ShardRecord]:
        paths = [entry.path for entry in pool.storage.list("shards/") if entry.path.endswith(DONE)]
        records = [read_record(pool.storage, path, ShardRecord, "") for path in paths]
        planned = plan_redrive(pool.storage, records, retry, number, "candidates")
        return download(planned, options, pool.storage, "shards")

    (record,) = drive(2)
    mended = {"transient": [1, 10_001], "all": [1, 3, 10_001, 10_003]}[retry]
    assert [row["uid"] for row in pool.rows(record)] == [uid(i) for i in mended]
    assert {row["status"] for row in pool.rows(record)} == {"success"}
    assert len(pool.members(record)) == 3 * len(mended)
    assert (record.redrive, record.failures) == (True, {"http_5xx": 2})
    assert record.candidates == record.samples + 2
    assert files(pool.folder).items() >= before.items()
    web.pages["/still"] = Answer(jpeg(4))
    (last,) = drive(3)
    assert [row["uid"] for row in pool.rows(last)] == [uid(2), uid(10_002)]
    assert drive(4) == []
    everything = Counter(r["uid"] for s in (*first, record, last) for r in pool.rows(s) if r["status"] == "success")
    assert set(everything.values()) == {1}


def test_a_re_drive_is_cut_into_shards(web: Web, pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redrive, "LARGEST", 4)
    finished = pool.download([web.url("/a")] * 3, [web.url("/a")] * 3, [web.url("/a")] * 3)
    planned = plan_redrive(pool.storage, finished, "all", 7, "again")
    assert [c.shard for c in planned] == ["00000007", "00000008", "00000009"]
    tables = [read_candidates(pool.storage, c.path) for c in planned]
    assert [t.num_rows for t in tables] == [4, 4, 1]
    assert pa.concat_tables(tables).column("uid").to_pylist() == [
        uid(10_000 * s + i) for s in range(3) for i in range(3)
    ]


def test_two_plans_of_one_re_drive_overwrite_nothing_of_each_other(web: Web, pool: Pool) -> None:
    """Of two processes that plan it at once, of two versions, one's plan stands: with its candidates."""
    web.pages["/b"] = Answer(status=503)
    finished = pool.download([web.url("/a"), web.url("/b")])
    (first,) = plan_redrive(pool.storage, finished, "all", 1, "again")
    (other,) = plan_redrive(pool.storage, finished, "transient", 1, "again")
    assert [read_candidates(pool.storage, c.path).num_rows for c in (first, other)] == [2, 1]
    assert plan_redrive(pool.storage, finished, "all", 1, "again") == [first]


def test_the_vocabulary() -> None:
    assert all(reason.transient for reason in REASONS.values() if reason.again)
    assert not any(reason.resize and reason.transient for reason in REASONS.values())


def test_a_network_that_is_down_is_nobodys_failure(web: Web, pool: Pool) -> None:
    """Nothing is committed where nobody is found; of a few candidates, or of a re-drive, that may be their fault."""
    web.pages["/0"] = Answer(jpeg(0))
    away = ["http://127.0.0.1:1/"]  # refused
    with pytest.raises(TemporaryError, match=r"shard 00000000: 99 of 100 requests found no server \(connect 99, dns_f"):
        pool.download([web.url("/0"), *away * 99, "ftp://host/"])
    assert list(pool.storage.list("shards/")) == []
    (many,) = pool.download([*[web.url("/0")] * 3, *away * 97])
    assert many.failures == {"connect": 97}
    (few,) = Pool(pool.folder / "few").download(away * 99)
    assert few.failures == {"connect": 99}
