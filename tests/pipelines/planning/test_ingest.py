"""From a dump of Common Crawl, or from tables of URLs, to a report, over a small web on loopback."""

from __future__ import annotations

import json
import logging
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from components.base.errors import PermanentError
from components.engine.registry import step
from components.pool.run import Run, load_run
from components.recipe.recipe import parse_recipe
from components.stages.extract import dedup
from components.stages.extract.extraction import load_extraction
from pipelines.execution.local import run_all, run_group
from pipelines.planning.graph_nodes import ingest_of
from pipelines.planning.plan import plan_run
from tests.components.stages.download.web import Answer
from tests.components.storage.faulty import Faults
from tests.components.storage.gcs_server import BUCKET, gcs_server
from tests.components.storage.web_server import mirror
from tests.pipelines.crawl import DUMP, IMAGES, Crawl, answer, crawl
from tests.pipelines.execution.test_local import _data, recipe_text, run
from tests.pools import jpeg, uid

LOOPBACK = ["127.0.0.0/8"]
QUICK = {"retries": 0, "perHostRate": 1000.0, "perHostConnections": 16, "allowNetworks": LOOPBACK}
RAW = [{"name": "raw", "rules": [{"text": "raw", "where": [{"score": "raw", "atLeast": -1}]}]}]
PAGES = IMAGES // 5
GONE = {3: "http_404", 4: "http_5xx", 5: "not_image"}  # by the last digit


@pytest.fixture
def web() -> Iterator[Crawl]:
    with crawl() as found:
        yield found


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    with gcs_server(Faults()) as address:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", address)
        yield f"gs://{BUCKET}/root"


def recipe(storage: Path, source: dict[str, Any], download: dict[str, Any] | None = None, **spec: Any) -> str:
    how = {**QUICK, **(download or {})}
    given = {"pool": {"name": "crawl", **source}, "download": how, "columns": [], **spec}
    return recipe_text(storage, storage, RAW, **given)


def planned(text: str) -> Run:
    found = plan_run(parse_recipe(text))
    found.save()
    return found


def downloaded(text: str) -> Run:
    """A run whose pool is there, and no column yet."""
    found = planned(text)
    run_group(found, "ingest")
    return load_run(f"{found.storage.uri}/{found.folder}")


def manifest(run: Run) -> dict[str, Any]:
    """What is kept of a pool, but for where it is."""
    found: dict[str, Any] = json.loads(run.storage.read(run.pool.manifest_path))
    return {**found, "source": ""}


def rows(run: Run) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for shard in run.pool.shards:
        found += pq.read_table(Path(run.pool.source.uri) / str(shard.parquet)).to_pylist()
    return found


@pytest.mark.slow
def test_a_dump_runs_through_to_a_report_and_every_candidate_is_accounted_for(
    tmp_path: Path, web: Crawl, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(dedup, "SHARD", 25)
    caplog.set_level(logging.INFO)
    done = run(recipe(tmp_path, web.source()))
    found = manifest(done)
    extraction, (first,) = found["extraction"], found["rounds"]
    assert extraction["candidates"] == 10 * PAGES
    assert extraction["dropped"] == {"data uri": PAGES, "no text": PAGES, "other scheme": PAGES}
    assert extraction["lost"] == {"duplicate": PAGES}
    assert extraction["kept"] == first["candidates"] == IMAGES + PAGES
    assert first["failures"] == {"private_address": PAGES} | dict.fromkeys(GONE.values(), IMAGES // 10)
    assert first["samples"] == IMAGES * 7 // 10

    assert [len(rows(done)), len(done.pool.shards)] == [72, 3]
    for row in rows(done):
        number = re.search(r"/(\d+)\.jpg", row["url"])
        expected = GONE.get(int(number[1]) % 10) if number else "private_address"
        assert row["error_message"] == expected
        assert row["caption"] == (f"photo number {number[1]}" if number else row["caption"])
    assert not any("latest/meta-data" in path for path in web.web.paths())

    assert [message for message in caplog.messages if "left out" in message] == [
        "extract:dedup: 72 samples; 48 left out: data uri 12, duplicate 12, no text 12, other scheme 12",
        "download: 42 samples; 30 left out: private_address 12, http_404 6, http_5xx 6, not_image 6",
    ]
    assert any(m.startswith("download: 3 of 3 shards, 72 candidates, ") for m in caplog.messages)

    stages = done.status()["stages"]
    assert list(stages)[:4] == [*ingest_of(done), "index"]
    assert {stage["state"] for stage in stages.values()} == {"done"}
    assert stages["download"]["failures"] == first["failures"]
    assert stages["extract:dedup"]["samples"] == 72
    assert done.storage.size(f"{done.folder}/report.html")
    assert done.columns.rows(done.index, done.pool.shards[0]) > 0
    assert not list(tmp_path.rglob("*.spill"))  # nobody needs them any more

    asked = len(web.mirror.requests), len(web.web.requests)
    again = run(recipe(tmp_path, web.source()))
    assert again.name == done.name
    assert len(web.web.requests) == asked[1]  # nothing is fetched again
    assert {path for path, _ in web.mirror.requests[asked[0] :]} == {
        "/collinfo.json", f"/crawl-data/{DUMP}/wat.paths.gz"
    }  # fmt: skip


MOMENTS = (
    "candidates/*/plan.json",
    "candidates/*/spills/*.spill",
    "candidates/*/shards/*.parquet",
    "candidates/*/candidates.json",
    "pools/*/shards/*.tar",
    "pools/*/shards/*.done.json",
    "pools/*/manifests/*.json",
    "pools/*/columns/embed*/*.parquet",
)


@pytest.mark.slow
def test_killed_anywhere_and_run_again_gives_the_same_pool(tmp_path: Path, web: Crawl) -> None:
    calm = run(recipe(tmp_path / "calm", web.source()))
    path = tmp_path / "recipe.yaml"
    path.write_text(recipe(tmp_path / "stormy", web.source()))
    command = [sys.executable, "-m", "pipelines.cli", "run", str(path)]
    for moment in MOMENTS:
        child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
        while child.poll() is None and not list((tmp_path / "stormy").glob(moment)):
            time.sleep(0.002)
        assert child.poll() is None, f"{moment}: done before it could be killed"
        child.kill()
        child.wait()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    (folder,) = (tmp_path / "stormy/runs").iterdir()
    stormy = load_run(str(folder))
    assert _data(tmp_path / "stormy") == _data(tmp_path / "calm")
    assert manifest(stormy) == manifest(calm)
    assert stormy.name == calm.name


def test_told_to_stop_it_stops_and_goes_on(tmp_path: Path, web: Crawl) -> None:
    web.web.pages["/0.jpg"] = Answer(jpeg(0), delay=30.0)  # longer than anybody waits: the first attempt hangs here
    path = tmp_path / "recipe.yaml"
    path.write_text(recipe(tmp_path / "out", web.source(), {"timeout": 60.0, "readTimeout": 60.0}))
    command = [sys.executable, "-m", "pipelines.cli", "run", str(path)]
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    while "/0.jpg" not in web.web.paths() and child.poll() is None:
        time.sleep(0.05)
    began = time.monotonic()
    child.send_signal(signal.SIGTERM)
    _, said = child.communicate(timeout=30)
    assert child.returncode == 143
    assert time.monotonic() - began < 15
    assert "finished work is kept" in said
    assert not list((tmp_path / "out").glob("pools/*/shards/*"))
    web.web.pages["/0.jpg"] = answer(0)
    done = downloaded(path.read_text())
    assert sum(said["samples"] for said in manifest(done)["rounds"]) == IMAGES * 7 // 10


def test_what_failed_is_fetched_later_into_shards_of_its_own(tmp_path: Path, web: Crawl) -> None:
    first = downloaded(recipe(tmp_path, web.source()))
    before = _data(tmp_path)
    web.web.requests.clear()
    web.web.pages.update({f"/{i}.jpg": Answer(jpeg(i)) for i in range(IMAGES)})
    transient = {"retry": ["transient"]}

    second = downloaded(recipe(tmp_path, web.source(), transient))
    assert sorted(web.web.paths()) == sorted(f"/{i}.jpg" for i in range(4, IMAGES, 10))  # HTTP 503 may pass, 404 not
    assert second.name != first.name
    assert second.pool.name == first.pool.name
    assert second.pool.shards[:-1] == first.pool.shards
    assert second.pool.shards[-1].name == "transient-00000001"
    assert manifest(second)["rounds"][1] == {
        "retry": "transient", "shards": 1, "candidates": IMAGES // 10, "samples": IMAGES // 10, "failures": {}
    }  # fmt: skip
    assert before.items() <= _data(tmp_path).items()

    web.web.requests.clear()
    third = downloaded(recipe(tmp_path, web.source(), {"retry": ["transient", "all"]}))
    missing = [f"/{i}.jpg" for i in range(IMAGES) if i % 10 in (3, 5)]
    assert sorted(web.web.paths()) == sorted(missing)
    assert third.pool.shards[:-1] == second.pool.shards
    good = [row["uid"] for row in rows(third) if row["status"] == "success"]
    assert len(good) == len(set(good)) == IMAGES

    web.web.requests.clear()
    other = downloaded(recipe(tmp_path, web.source(), {"retry": ["all"]}))
    assert len(web.web.paths()) == 3 * IMAGES // 10  # of the first round, whatever other recipes did
    assert other.pool.shards[-1].name == "all-00000001"
    assert len(downloaded(recipe(tmp_path, web.source(), transient)).pool.shards) == 2  # that run stays what it was


def test_a_round_that_has_nothing_to_do_adds_nothing(tmp_path: Path, web: Crawl) -> None:
    web.web.pages.update({f"/{i}.jpg": Answer(jpeg(i)) for i in range(IMAGES)})
    found = planned(recipe(tmp_path, web.source(), {"retry": ["transient", "transient"]}))
    for key in ("extract", "extract:dedup", "download"):
        run_group(found, key)
    assert step("download:1").unfinished(found, False) == []  # as a launcher asks
    run_group(found, "ingest")
    done = load_run(f"{found.storage.uri}/{found.folder}")
    assert [said["candidates"] for said in manifest(done)["rounds"]] == [IMAGES + PAGES, 0, 0]
    assert len(done.pool.shards) == 1


def test_the_pages_themselves_have_what_their_digests_lack(tmp_path: Path, web: Crawl) -> None:
    """In the WARC files the images are loaded lazily, by an attribute that WAT files don't have."""
    text = recipe(tmp_path, web.source(files="warc"))
    (first,) = manifest(downloaded(text))["rounds"]
    assert (first["candidates"], first["samples"]) == (IMAGES + PAGES, IMAGES * 7 // 10)
    assert not any("/wat/" in path for path, _ in web.mirror.requests)


@pytest.mark.slow
def test_a_pool_in_a_bucket(bucket: str, web: Crawl, tmp_path: Path) -> None:
    text = recipe(tmp_path, web.source(), {"retry": ["transient"]})
    done = run(text.replace(str(tmp_path), bucket))
    assert done.storage.uri == bucket
    assert done.storage.size(f"{done.folder}/report.html")
    assert manifest(done) == manifest(downloaded(text))
    assert done.ingest
    done.storage.delete(f"{done.ingest.candidates}/candidates.json")
    done.storage.delete(done.pool.manifest_path)
    web.web.requests.clear()
    again = run(text.replace(str(tmp_path), bucket))  # of what is there still, nothing is made anew
    assert manifest(again) == manifest(done)
    assert not web.web.requests


def test_tables_of_urls(tmp_path: Path, web: Crawl) -> None:
    folder = tmp_path / "metadata"
    folder.mkdir()
    urls = [web.web.url(f"/{i}.jpg") for i in range(10)]
    table = {"uid": [uid(i) for i in range(10)], "url": urls, "text": [f"t {i}" for i in range(9)] + [None]}
    pq.write_table(pa.table({**table, "clip_l14_similarity_score": [0.5] * 10}), folder / "part.parquet")
    (folder / "more.csv").write_text(f"URL,TEXT\n{web.web.url('/10.jpg')},ten\n{urls[0]},once more\n,nothing\n")
    done = downloaded(recipe(tmp_path / "out", {"urls": str(folder)}))
    found = manifest(done)
    assert found["extraction"]["candidates"] == 13
    assert found["extraction"]["dropped"] == {"no url": 1}
    good = {row["url"].rpartition("/")[2]: row for row in rows(done) if row["status"] == "success"}
    assert set(good) == {f"{i}.jpg" for i in (0, 1, 2, 6, 7, 8, 9, 10)}
    assert good["9.jpg"]["uid"] == uid(9)
    assert good["9.jpg"]["caption"] in (None, "")
    assert Counter(row["caption"] for row in rows(done) if row["url"] == urls[0]) == {"t 0": 1, "once more": 1}
    (folder / "more.csv").write_text(f"url,text\n{urls[1]},another table\n")
    assert planned(recipe(tmp_path / "out", {"urls": str(folder)})).pool.name != done.pool.name


def test_a_storage_among_the_tables_is_refused(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("url,text\nhttp://example.com/1.jpg,one\n")
    with pytest.raises(
        PermanentError, match=r"spec\.storage: .*/out lies in spec\.pool\.urls .*would be the next run's"
    ):
        planned(recipe(tmp_path / "out", {"urls": str(tmp_path)}))


@pytest.mark.parametrize("networks", [[], ["10.0.0.0/8"]])
def test_a_private_network_is_reached_only_by_leave(tmp_path: Path, web: Crawl, networks: list[str]) -> None:
    with pytest.raises(PermanentError, match=r"^spec.pool.commonCrawl: dumps http:.* no public address; .*allowNetwor"):
        planned(recipe(tmp_path, web.source(), {"allowNetworks": networks}))
    with pytest.raises(PermanentError, match=r"^spec.pool.commonCrawl: cannot read http:.* no public address"):
        planned(recipe(tmp_path, web.source(dump=DUMP), {"allowNetworks": networks}))
    assert web.mirror.requests == []
    folder = tmp_path / "dump"
    for path, data in web.mirror.files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)
    here = web.source(base=str(folder), index=str(folder))
    found = planned(recipe(tmp_path, here, {"allowNetworks": networks}))
    with pytest.raises(PermanentError, match=r"none of 72 images .* \(private_address 72\); for a private network"):
        run_group(found, "ingest")
    assert web.web.connections == 0


def test_a_dump_without_images_is_bad_input(tmp_path: Path, web: Crawl) -> None:
    files = dict(web.mirror.files)
    some = next(path for path in files if path.endswith(".wat.gz"))
    web.mirror.files = {path: files[some][:200] if path.endswith(".wat.gz") else data for path, data in files.items()}
    for _ in range(2):  # run again, it says the same
        with pytest.raises(PermanentError, match=r"candidates\.json: no candidate; files read: 3, with no image$"):
            run_group(planned(recipe(tmp_path, web.source())), "ingest")


def test_columns_wait_for_the_pool(tmp_path: Path, web: Crawl) -> None:
    found = planned(recipe(tmp_path, web.source()))
    for group in ("index", "embed", "mix", "report"):
        with pytest.raises(PermanentError, match=r"its images are still to be downloaded; `recaption run`"):
            run_group(load_run(f"{tmp_path}/{found.folder}"), group)


def test_how_it_is_fetched_names_no_other_pool(tmp_path: Path, web: Crawl) -> None:
    def names(**download: Any) -> tuple[str, str]:
        found = plan_run(parse_recipe(recipe(tmp_path, web.source(), download)))
        return found.name, found.pool.name

    same = names()
    assert names(contact="me@example.com", timeout=7.0, connections=9, perHostRate=3.0) == same
    for other in ({"robots": True}, {"maxBytes": 4096}, {"allowNetworks": [*LOOPBACK, "10.0.0.0/8"]}):
        assert names(**other)[1] != same[1]
    assert plan_run(parse_recipe(recipe(tmp_path, web.source(sample=2)))).pool.name != same[1]


def test_another_mirror_goes_on_where_the_first_one_stopped(tmp_path: Path, web: Crawl) -> None:
    before = planned(recipe(tmp_path, web.source()))
    with mirror(dict(web.mirror.files)) as other:
        web.mirror.files = {}
        found = downloaded(recipe(tmp_path, {"commonCrawl": {"dump": DUMP, "base": other.url}}))
    assert found.pool.name == before.pool.name
    assert len(rows(found)) == IMAGES + PAGES


def test_a_plan_that_is_damaged_is_one_line(tmp_path: Path, web: Crawl) -> None:
    found = planned(recipe(tmp_path, web.source()))
    path = tmp_path / found.folder / "plan.json"
    said = r"runs/.*/plan\.json: isn't what was written there .*; delete it and run again"
    for damage in (b"", b"{}", b"[1]"):
        path.write_bytes(damage)
        with pytest.raises(PermanentError, match=said):
            load_run(f"{tmp_path}/{found.folder}")
    path.write_bytes(b"{")
    with pytest.raises(PermanentError, match=said):
        planned(recipe(tmp_path, web.source()))
    path.unlink()
    assert planned(recipe(tmp_path, web.source())).name == found.name


def test_another_run_that_deletes_the_spills_does_no_harm(
    tmp_path: Path, web: Crawl, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two recipes of one dump deduplicate it at once; one is done while the other still reads."""
    found = planned(recipe(tmp_path, web.source()))
    run_group(found, "extract")
    read_segment = dedup.read_segment

    def late(*args: Any) -> Any:
        monkeypatch.setattr(dedup, "read_segment", read_segment)
        run_group(found, "extract:dedup")
        return read_segment(*args)

    monkeypatch.setattr(dedup, "read_segment", late)
    work = load_extraction(found.storage, str(found.ingest and found.ingest.candidates))
    for task in range(work.dedup_tasks):
        step("extract:dedup").run_task(found, task, work.dedup_tasks)
    run_group(found, "ingest")
    assert not list(tmp_path.rglob("*.spill"))
    assert manifest(found)["rounds"][0]["candidates"] == IMAGES + PAGES


def test_what_a_downloaded_pool_was_made_from_may_go(tmp_path: Path, web: Crawl) -> None:
    done = downloaded(recipe(tmp_path, web.source()))
    before = done.status()["stages"]["extract:dedup"]
    assert done.ingest
    shutil.rmtree(tmp_path / done.ingest.candidates)
    asked = len(web.mirror.requests)
    again = downloaded(recipe(tmp_path, web.source()))
    assert not [path for path, _ in web.mirror.requests[asked:] if path.endswith(".wat.gz")]
    assert {**again.status()["stages"]["extract:dedup"], "seconds": 0} == {**before, "seconds": 0}


@pytest.mark.parametrize("path", ["candidates.json", "plan.json", "manifest", "round"])
def test_a_file_that_is_damaged_is_one_line(tmp_path: Path, web: Crawl, path: str) -> None:
    found = planned(recipe(tmp_path, web.source(), {"retry": ["transient"]}))
    assert found.ingest
    for key in ingest_of(found)[: {"plan.json": 0, "manifest": 4}.get(path, 3)]:
        run_group(found, key)
    if path == "round":
        step("download:1").count_units(found, None)  # plans it
    places = {"manifest": found.pool.manifest_path, "round": f"pools/{found.pool.name}/retries/transient/plan.json"}
    place = places.get(path, f"{found.ingest.candidates}/{path}")
    for damage in (b"", b'{"shards": [{}', b'"x"'):
        (tmp_path / place).write_bytes(damage)
        with pytest.raises(PermanentError, match=rf"{place}: isn't what was written there .*; delete it and run again"):
            run_all(load_run(f"{tmp_path}/{found.folder}"))
    (tmp_path / place).unlink()
    assert (
        manifest(downloaded(recipe(tmp_path, web.source(), {"retry": ["transient"]})))["rounds"][1]["candidates"] == 6
    )


def test_tasks_are_frozen(tmp_path: Path, web: Crawl) -> None:
    planned(recipe(tmp_path, web.source(), compute={"shardsPerTask": 8}))
    with pytest.raises(PermanentError, match=r"planned before, with another plan \(shards_per_task was 8, is 4\)"):
        planned(recipe(tmp_path, web.source(), compute={"shardsPerTask": 4}))


def test_common_crawl_that_is_away_is_bad_luck_not_a_lost_run(tmp_path: Path, web: Crawl) -> None:
    found = planned(recipe(tmp_path, web.source()))
    web.mirror.faults = ["hang up", 503, "cut", 500]
    run_all(found)
    assert found.storage.size(f"{found.folder}/report.html")
