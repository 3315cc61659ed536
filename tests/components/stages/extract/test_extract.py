"""From the files of a dump to deduplicated shards: the same bytes whatever the tasks, whatever was killed."""

from __future__ import annotations

import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
import tracemalloc
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from components.base.errors import PermanentError, TemporaryError
from components.stages.extract import dedup as dedup_module
from components.stages.extract import extraction, spill
from components.stages.extract.dedup import Dedup, finish
from components.stages.extract.extraction import Extraction, load_extraction, partitions_for
from components.stages.extract.spill import find_record, read_record
from components.stages.extract.task import extract_task
from components.stages.extract.text_rules import Image, Page, candidate, uid_of
from components.storage.commit import commit
from components.storage.local import LocalStorage
from tests.components.stages.extract.archives import img, warc_page, warcinfo, wat_file, wat_members, wat_page
from tests.components.storage.web_server import LOOPBACK, mirror

Pages = list[tuple[str, list[dict[str, str]]]]
NAMES = [f"crawl-data/CC-MAIN-2026-43/segments/1/wat/CC-MAIN-20261012-{n:05d}.warc.wat.gz" for n in range(5)]


def pages_of(seed: int, count: int = 12) -> Pages:
    """With images that many pages have, and some that are dropped."""
    draw = random.Random(seed)
    pages = []
    for n in range(count):
        links = [img(f"/{draw.randrange(40)}.jpg", draw.choice(["a cat", "a dog", "ein Bär", ""])) for _ in range(6)]
        links += [img("https://cdn.example/logo.png", "logo"), img("data:x", "x"), img(alt="x"), img("ftp://a/b", "x")]
        links += [img(f"https://cdn.example/{seed}-{n}-{i}.jpg", f"photo {i} of {n}") for i in range(5)]
        links.append({"path": "A@/href", "url": "/x"})
        pages.append((f"https://{draw.choice('abc')}.example/{n}", links))
    return pages


PAGES = [pages_of(seed) for seed in range(5)]


@pytest.fixture
def base(tmp_path: Path) -> str:
    return write_base(tmp_path / "base")


def write_base(folder: Path) -> str:
    for name, pages in zip(NAMES, PAGES, strict=True):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(wat_file(pages))
    return str(folder)


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    make_small(monkeypatch.setattr)


def make_small(set_to: Any) -> None:
    """Shards of few rows, and spills and passes of few bytes, so that there are several of each."""
    set_to(dedup_module, "SHARD", 25)
    set_to(spill, "CHUNK", 16)
    set_to(spill, "MEMORY", 4000)
    set_to(dedup_module, "BUDGET", 5000)


def work_on(base: str, partitions: int = 3, **more: Any) -> Extraction:
    return Extraction(**{"dump": "CC-MAIN-2026-43", "base": base, "files": tuple(NAMES), "kind": "wat",
                   "partitions": partitions, **more})  # fmt: skip


def run(storage: LocalStorage, job: Extraction, tasks: int) -> dict[str, Any]:
    storage.create(f"{job.folder}/plan.json", job.to_json())
    for task in range(tasks):
        extract_task(storage, job, task, tasks, allow_networks=LOOPBACK)
    dedup = Dedup(storage, job, tasks)
    for partition in range(job.partitions):
        dedup.run(partition)
    return finish(storage, job, tasks)


def read(storage: LocalStorage, shards: list[dict[str, Any]]) -> list[tuple[str, str, str]]:
    tables = [pq.read_table(io.BytesIO(storage.read(shard["file"]))) for shard in shards]
    assert [table.num_rows for table in tables] == [shard["rows"] for shard in shards]
    return [(row["uid"], row["url"], row["text"]) for table in tables for row in table.to_pylist()]


def expected_of(files: list[Pages]) -> tuple[list[tuple[str, str, str]], Counter[str]]:
    """By a set."""
    found, dropped = set(), Counter[str]()
    for pages in files:
        for url, links in pages:
            for link in links:
                if link["path"] == "IMG@/src":
                    kept = candidate(Page(url), Image(link.get("url"), link.get("alt")))
                    if isinstance(kept, str):
                        dropped[kept] += 1
                    else:
                        found.add((uid_of(*kept).hex(), *kept))
    return sorted(found), dropped


@pytest.mark.parametrize("tasks", [1, 2, 5, 7])
def test_against_a_set_whatever_the_number_of_tasks(tmp_path: Path, base: str, tasks: int) -> None:
    storage, job = LocalStorage(tmp_path / "storage"), work_on(base)
    result = run(storage, job, tasks)
    expected, dropped = expected_of(PAGES)
    assert read(storage, result["shards"]) == expected
    funnel = result["funnel"]
    assert funnel["dropped"] == dict(sorted(dropped.items()))
    assert funnel["candidates"] == 5 * 12 * 15
    assert funnel["lost"] == {"duplicate": funnel["candidates"] - dropped.total() - len(expected)}
    assert funnel["records"] == {"no image": 120, "other kind": 5, "with images": 60}
    assert (funnel["kept"], funnel["files"], funnel["damages"]) == (len(expected), 5, [])
    assert job.folder.startswith("candidates/CC-MAIN-2026-43-")
    calm = run(LocalStorage(tmp_path / "calm"), job, 3)
    assert calm["shards"] == result["shards"]


def test_memory_shows_in_nothing(tmp_path: Path, base: str, monkeypatch: pytest.MonkeyPatch) -> None:
    job = work_on(base)
    small = run(LocalStorage(tmp_path / "small"), job, 2)
    assert len(read_record(LocalStorage(tmp_path / "small"), job, 0).spills) > 2
    monkeypatch.setattr(spill, "MEMORY", 1 << 30)
    monkeypatch.setattr(dedup_module, "BUDGET", 1 << 30)
    large = run(LocalStorage(tmp_path / "large"), job, 2)
    assert small == large


def test_shards_are_cut_at_their_size_in_each_partition(tmp_path: Path, base: str) -> None:
    storage = LocalStorage(tmp_path / "storage")
    shards = run(storage, work_on(base, 2), 1)["shards"]
    sizes = {p: [s["rows"] for s in shards if f"/{p:06d}." in s["file"]] for p in range(2)}
    for rows in sizes.values():
        assert len(rows) > 1
        assert set(rows[:-1]) == {25}
        assert 1 <= rows[-1] <= 25


urls = st.sampled_from(
    ["/a.jpg", "/b.jpg", "https://c.example/c", "data:x", "ftp://x/y", "", "http://", "/" + "a" * 3000]
)
links = st.builds(img, st.none() | urls, st.none() | st.sampled_from(["", " ", "a", "b", "x" * 5000, "\ufffd"]))
files = st.lists(st.lists(st.tuples(st.sampled_from(["https://h.example/", "nowhere"]), st.lists(links))), max_size=4)


@given(files, st.integers(1, 5), st.integers(1, 4))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_funnel_adds_up(
    tmp_path_factory: pytest.TempPathFactory, dump: list[Pages], tasks: int, parts: int
) -> None:
    folder = tmp_path_factory.mktemp("dump")
    for n, pages in enumerate(dump):
        (folder / str(n)).write_bytes(wat_file(pages))
    storage = LocalStorage(folder / "storage")
    job = work_on(str(folder), parts, files=tuple(str(n) for n in range(len(dump))))
    funnel = run(storage, job, tasks)["funnel"]
    expected, dropped = expected_of(dump)
    assert funnel["candidates"] == sum(len(links) for pages in dump for _, links in pages)
    assert funnel["candidates"] == funnel["kept"] + sum(funnel["dropped"].values()) + sum(funnel["lost"].values())
    assert (funnel["kept"], funnel["dropped"]) == (len(expected), dict(sorted(dropped.items())))
    assert funnel["undecoded"] >= sum("\ufffd" in text for _, _, text in expected)


def test_damage_costs_only_what_is_damaged(tmp_path: Path, base: str) -> None:
    path = Path(base, NAMES[1])
    whole = path.read_bytes()
    before = len(wat_file(PAGES[1][:6])) + len(wat_members(PAGES[1][6][0], b"")[0])
    data = bytearray(whole[:-10])
    data[before + 300 : before + 320] = bytes(20)
    path.write_bytes(data)
    storage = LocalStorage(tmp_path / "storage")
    result = run(storage, work_on(base), 2)
    funnel, damages = result["funnel"], result["funnel"]["damages"]
    page = len(wat_members(PAGES[1][6][0], wat_page(*PAGES[1][6]))[1])
    assert [(d["file"], d["offset"], d["bytes"]) for d in damages[:1]] == [(NAMES[1], before, page)]
    assert [(d["file"], d["offset"] + d["bytes"]) for d in damages[1:]] == [(NAMES[1], len(data))]
    assert funnel["damaged"] == {"places": 2, "bytes": sum(damage["bytes"] for damage in damages)}
    assert funnel["records"] == {"no image": 119, "other kind": 5, "with images": 59}
    left = [PAGES[0], PAGES[1][:6] + PAGES[1][7:], *PAGES[2:]]
    assert read(storage, result["shards"]) == expected_of(left)[0]


def test_a_file_that_is_not_there_is_an_error(tmp_path: Path, base: str) -> None:
    Path(base, NAMES[3]).unlink()
    storage = LocalStorage(tmp_path / "storage")
    with pytest.raises(PermanentError, match="no such file"):
        extract_task(storage, work_on(base), 0, 1)
    assert list(storage.list(work_on(base).spills(0) + ".done")) == []


def test_over_http_through_failures(tmp_path: Path, base: str) -> None:
    served = {name: Path(base, name).read_bytes() for name in NAMES}
    with mirror(served, faults=["cut", 503, "hang up", "slow"]) as web:
        over_http = run(LocalStorage(tmp_path / "web"), work_on(web.url), 1)
    assert over_http == run(LocalStorage(tmp_path / "folder"), work_on(base), 1)


def test_warc_files(tmp_path: Path) -> None:
    body = (
        "<base href='/x/'><img src='a.gif' data-src='a.jpg' alt='ein B&auml;r'><img src=p.gif width=1 height=1 alt=p>"
    )
    pages = [warc_page(f"https://{n}.example/", body.encode()) for n in range(3)]
    (tmp_path / "0").write_bytes(warcinfo() + b"".join(pages) + warc_page("https://x/", b"%PDF", "application/pdf"))
    storage = LocalStorage(tmp_path / "storage")
    result = run(storage, work_on(str(tmp_path), 1, files=("0",), kind="warc"), 1)
    urls = {f"https://{n}.example/x/a.jpg" for n in range(3)}
    assert {(url, text) for _, url, text in read(storage, result["shards"])} == {(url, "ein Bär") for url in urls}
    assert result["funnel"]["dropped"] == {"tracking pixel": 3}
    assert result["funnel"]["records"] == {"no image": 1, "other kind": 5, "with images": 3}


def test_a_finished_task_is_not_done_again(tmp_path: Path, base: str) -> None:
    storage, job = LocalStorage(tmp_path / "storage"), work_on(base)
    seen: list[int] = []
    first = extract_task(storage, job, 0, 2, seen.append)
    again = extract_task(storage, job, 0, 2, seen.append)
    assert first == again
    assert seen == [1, 1, 2]


def test_two_workers_of_one_task(tmp_path: Path, base: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The slower one, of another version whose bytes differ, deletes its own and returns what stands."""
    storage, job = LocalStorage(tmp_path / "storage"), work_on(base)
    first = extract_task(storage, job, 0, 1)
    with monkeypatch.context() as patch:
        patch.setattr("components.stages.extract.task.find_record", lambda *_: None)
        patch.setattr(spill, "MEMORY", 1 << 30)
        assert extract_task(storage, job, 0, 1) == first
    assert {e.path for e in storage.list(f"{job.folder}/spills/")} == {
        *(s.file for s in first.spills), f"{job.spills(0)}.done.json",
    }  # fmt: skip


@pytest.mark.parametrize("how", ["gone", "altered"])
def test_a_spill_that_is_not_what_it_was_is_made_anew(tmp_path: Path, base: str, how: str) -> None:
    storage, job = LocalStorage(tmp_path / "storage"), work_on(base, 1)
    for task in range(2):
        extract_task(storage, job, task, 2)
    broken = read_record(storage, job, 1).spills[0].file
    if how == "gone":
        storage.delete(broken)
    else:
        data = bytearray(storage.read(broken))
        data[len(data) // 2] ^= 1
        storage.write(broken, bytes(data))
    with pytest.raises(TemporaryError, match="run extract's task 1 to make it anew"):
        Dedup(storage, job, 2).run(0)
    assert find_record(storage, job, 1) is None
    with pytest.raises(PermanentError, match="task 1 is not done; run extract's tasks first"):
        Dedup(storage, job, 2)
    assert run(storage, job, 2)["shards"] == run(LocalStorage(tmp_path / "calm"), job, 2)["shards"]


def test_a_missing_spill_and_a_missing_shard_are_seen(tmp_path: Path, base: str) -> None:
    storage, job = LocalStorage(tmp_path / "storage"), work_on(base, 1)
    before = run(storage, job, 1)
    storage.delete(read_record(storage, job, 0).spills[0].file)
    storage.delete(before["shards"][0]["file"])
    assert run(storage, job, 1) == before
    assert storage.size(before["shards"][0]["file"]) == before["shards"][0]["bytes"]


def test_what_was_planned_is_found_again(tmp_path: Path, base: str) -> None:
    storage, job = LocalStorage(tmp_path / "storage"), work_on(base)
    storage.create(f"{job.folder}/plan.json", job.to_json())
    assert load_extraction(storage, job.folder) == job


@pytest.mark.parametrize("partitions", [1, 255, 256, 257, 25_000])
def test_every_partition_belongs_to_one_task(partitions: int) -> None:
    job = work_on("", partitions)
    assert job.dedup_tasks <= 256
    assert [p for task in range(job.dedup_tasks) for p in job.partitions_of(task)] == list(range(partitions))


def test_a_task_keeps_of_all_segments_only_those_of_its_partitions(tmp_path: Path) -> None:
    """A dump's 25,000 spills with as many segments each don't fit into memory."""
    storage, job, each = LocalStorage(tmp_path), work_on("", 2000), 5
    spills = [spill.Spill(f"{n}", 0, [[0, 0, 0]] * job.partitions) for n in range(each)]
    nothing: dict[str, Any] = {key: {} for key in ("records", "dropped", "lost", "damaged")}
    record = spill.TaskRecord(spills, 1, candidates=0, undecoded=0, damages=[], seconds=0.0, code="", **nothing)
    for task in range(8):
        commit(storage, spill.done_path(job, task), record)
    tracemalloc.start()
    dedup = Dedup(storage, job, 8, job.partitions_of(3))
    kept, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(dedup.spills) == 8 * each
    assert kept < 8 * each * job.partitions  # bytes; the whole tables have 24 each


def test_what_is_not_finished_can_not_be_finished(tmp_path: Path, base: str) -> None:
    storage, job = LocalStorage(tmp_path / "storage"), work_on(base)
    with pytest.raises(PermanentError, match="task 0 is not done"):
        finish(storage, job, 1)
    extract_task(storage, job, 0, 1)
    with pytest.raises(PermanentError, match=r"this partition is not done; run dedup's tasks first"):
        finish(storage, job, 1)


def test_a_candidate_that_is_unaccounted_for_is_an_error(tmp_path: Path, base: str) -> None:
    storage, job = LocalStorage(tmp_path / "storage"), work_on(base, 1)
    run(storage, job, 1)
    path = f"{job.spills(0)}.done.json"
    value = json.loads(storage.read(path))
    storage.write(path, json.dumps({**value, "candidates": value["candidates"] + 1}).encode())
    with pytest.raises(PermanentError, match="901 candidates were seen but 900 are accounted for"):
        finish(storage, job, 1)


@pytest.mark.parametrize("path", ["{spills}.done.json", "{shards}.done.json"])
def test_records_that_are_none(tmp_path: Path, base: str, path: str) -> None:
    storage, job = LocalStorage(tmp_path / "storage"), work_on(base, 1)
    run(storage, job, 1)
    storage.write(path.format(spills=job.spills(0), shards=job.shards(0)), b'{"a": 1}')
    with pytest.raises(PermanentError, match=r"not a done\.json .*; delete it and run again"):
        finish(storage, job, 1)


def test_the_same_extraction_has_the_same_folder(base: str) -> None:
    job = work_on(base)
    assert job.folder == work_on("https://data.example").folder
    others = [
        work_on(base, 4),
        work_on(base, kind="warc"),
        work_on(base, files=tuple(NAMES[:4])),
        work_on(base, dump="x"),
    ]
    assert len({job.folder, *(other.folder for other in others)}) == 5


def test_partitions_fit_into_memory() -> None:
    assert [partitions_for(n) for n in (1, 4, 5, 5000)] == [1, 1, 2, 1250]
    assert extraction.BUDGET * 1250 >= 10**9 * extraction.BYTES_OF_ROW


class Killed(BaseException):
    pass


class Mortal(LocalStorage):
    """Dies at its n-th call, before it or after it."""

    def __init__(self, root: Path, calls: int, after: bool) -> None:
        super().__init__(root)
        self.calls, self.after, self.lock = calls, after, threading.Lock()

    def __getattribute__(self, name: str) -> Any:
        found = super().__getattribute__(name)
        if name not in ("write", "create", "read", "size", "delete"):
            return found

        def call(*arguments: Any) -> Any:
            with self.lock:
                self.calls -= 1
                last = self.calls == 0
            if last and not self.after:
                raise Killed
            answer = found(*arguments)
            if last:
                raise Killed
            return answer

        return call


def test_killed_at_every_call_gives_the_same_bytes(tmp_path: Path, base: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spill, "MEMORY", 8000)
    monkeypatch.setattr(dedup_module, "SHARD", 60)
    job = work_on(base, 2, files=tuple(NAMES[:2]))
    calm = LocalStorage(tmp_path / "calm")
    expected = run(calm, job, 2)
    names = {entry.path for entry in calm.list("")}
    kills = 0
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
    assert kills > 25  # one for each call of the storage


SCRIPT = """
import sys
from pathlib import Path
from components.stages.extract.dedup import Dedup
from components.base.errors import leaving_on_sigterm
from components.storage.local import LocalStorage
from tests.components.stages.extract.test_extract import make_small, run, work_on
make_small(setattr)
with leaving_on_sigterm("bye"):
    run(LocalStorage(sys.argv[2]), work_on(sys.argv[1], 20), 5)
"""


@pytest.mark.slow
def test_processes_killed_at_random_give_the_same_bytes(tmp_path: Path, base: str) -> None:
    job, root = work_on(base, 20), tmp_path / "killed"
    calm = LocalStorage(tmp_path / "calm")
    expected = run(calm, job, 5)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[4])}
    draw, kills = random.Random(0), 0
    while True:
        process = subprocess.Popen([sys.executable, "-c", SCRIPT, base, root], env=environment)
        before = len(list(root.rglob("*.json")))
        while process.poll() is None and len(list(root.rglob("*.json"))) < before + 9:
            time.sleep(0.005)
        time.sleep(draw.random() * 0.02)
        if process.poll() is None:
            process.send_signal(signal.SIGTERM if kills % 2 else signal.SIGKILL)
        code = process.wait()
        if code == 0 and kills >= 2:
            break
        if code == 0:  # it was quicker than its killer: once more, from the start
            shutil.rmtree(root)
            kills = 0
            continue
        assert code in (-signal.SIGKILL, -signal.SIGTERM, 143)
        kills += 1
    storage = LocalStorage(root)
    assert json.loads(storage.read(f"{job.folder}/candidates.json"))["shards"] == expected["shards"]
    assert {entry.path for entry in storage.list("")} == {entry.path for entry in calm.list("")}
