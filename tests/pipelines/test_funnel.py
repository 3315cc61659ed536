"""The report of a pool that was downloaded: from the dump's records to what is usable, nobody forgotten."""

from __future__ import annotations

import gzip
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from components.pool.run import Run, load_run
from components.recipe.recipe import parse_recipe
from pipelines.execution.local import run_group
from pipelines.planning.plan import plan_run
from tests.components.stages.download.web import Answer
from tests.components.stages.report.test_stage import Page, page
from tests.pipelines.crawl import DUMP, Crawl, answer, crawl
from tests.pipelines.execution.test_local import recipe_text
from tests.pools import jpeg

HOW = {"retries": 0, "perHostRate": 1000.0, "perHostConnections": 16, "allowNetworks": ["127.0.0.0/8"]}
RAW = {"name": "raw", "rules": [{"text": "raw"}]}
MEANINGS = {
    "private_address": "the host is, or its name resolves to, an address that is not public",
    "http_404": "HTTP 404 or 410: gone",
    "http_5xx": "HTTP status of 500 and more",
    "not_image": "no JPEG, PNG, WebP, AVIF, GIF, BMP or TIFF",
}
FAILED = {"private_address": 12, "http_404": 6, "http_5xx": 6, "not_image": 6}


@pytest.fixture(scope="module")
def web() -> Iterator[Crawl]:
    """Three of the six busy images, 4, 14 and 24, are there at the second try."""
    with crawl() as found:
        found.web.pages |= {f"/{number}.jpg": [answer(number), Answer(jpeg(number))] for number in (4, 14, 24)}
        yield found


def ingested(storage: Path, source: dict[str, Any], index: bool = True, **download: Any) -> Run:
    """A run whose pool is downloaded and, if asked for, indexed; without a model."""
    spec = {"pool": {"name": "crawl", **source}, "download": {**HOW, **download}, "columns": []}
    run = plan_run(parse_recipe(recipe_text(storage, storage, [RAW], **spec)))
    run.save()
    run_group(run, "ingest")
    if index:
        run_group(run, "index")
    return load_run(f"{run.storage.uri}/{run.folder}")


@pytest.fixture(scope="module")
def redriven(tmp_path_factory: pytest.TempPathFactory, web: Crawl) -> Run:
    storage = tmp_path_factory.mktemp("redriven")
    return ingested(storage, web.source(), retry=["transient", "transient"], contact="https://example.org/us")


@pytest.fixture
def run(tmp_path: Path, redriven: Run) -> Run:
    """A copy that a test may change."""
    shutil.copytree(redriven.storage.uri, tmp_path / "copy")
    return load_run(f"{tmp_path}/copy/{redriven.folder}")


def funnel(found: Page) -> list[list[str]]:
    """The rows of its table up to `usable`."""
    first = next(i for i, row in enumerate(found.rows) if row[0] in ("records", "rows of the tables", "candidates"))
    return found.rows[first : 1 + next(i for i, row in enumerate(found.rows) if row[0] == "usable")]


def edited(run: Run, **about: Any) -> Page:
    """The page after somebody changed the manifest."""
    path = run.pool.manifest_path
    run.storage.write(path, json.dumps(json.loads(run.storage.read(path)) | about).encode())
    return page(run)


def test_every_candidate_of_a_dump_and_of_its_re_drives(run: Run, web: Crawl) -> None:
    found = page(run)
    failed = [[f"download: {reason} ({MEANINGS[reason]})", f"−{n}"] for reason, n in FAILED.items()]
    assert funnel(found) == [
        ["records", "39"], ["no image", "−24"], ["other kind", "−3"],
        ["pages with images", "12"],
        ["images of these pages", "120"],
        ["data uri", "−12"], ["no text", "−12"], ["other scheme", "−12"], ["duplicate", "−12"],
        ["candidates", "72"], *failed,
        ["fetched again, round 1 (transient): 6 tried, failed again: http_5xx 3", "+3"],
        ["fetched again, round 2 (transient): 3 tried, failed again: http_5xx 3", "+0"],
        ["in the tars", "45"],
        ["usable", "45"],
    ]  # fmt: skip
    assert "The numbers add up." in found.text
    assert "45 of 72 images could be downloaded (62.5 %)." in found.text
    assert f"Found in 3 WAT files of Common Crawl's {DUMP}, read from {web.mirror.url}." in found.text
    assert "Downloaded as recaption/" in found.text
    assert "(+https://example.org/us); X-Robots-Tag was respected, robots.txt was not asked." in found.text


def test_no_rate_is_made_up_of_a_run_that_found_the_work_done(run: Run) -> None:
    stages = run.status()["stages"]
    for key in ("extract", "extract:dedup", "download", "download:1"):
        stages[key]["seconds"] = 0.001
    run.save_status({"stages": stages})
    time = {row[0]: row[1:] for row in page(run).rows if row[0] in stages}
    assert time["extract"] == ["–", "0.0", "–"]
    assert time["extract:dedup"] == ["72", "0.0", "–"]
    assert time["download"] == ["42", "0.0", "–"]
    assert time["download:1"] == ["3", "0.0", "–"]


def test_numbers_of_two_stages_that_differ_are_said(run: Run) -> None:
    manifest = json.loads(run.storage.read(run.pool.manifest_path))
    extraction, (first, second, third) = manifest["extraction"], manifest["rounds"]
    none = {"duplicate": 0}
    for wrong, said in (
        ({"extraction": extraction | {"lost": none}}, "images of these pages 120 − 36 + 0 ≠ candidates 72."),
        ({"extraction": extraction | {"kept": 71}}, "extract kept 71 ≠ download was given 72."),
        ({"rounds": [first, second | {"samples": 2}, third]}, "candidates 72 − 30 + 2 ≠ in the tars 45."),
        ({"rounds": [first, second | {"candidates": 7}, third]}, "download round 1: 7 candidates ≠ 6 settled."),
        (
            {"rounds": [first | {"failures": FAILED | {"http_404": 5, "http_5xx": 7}}, second, third]},
            "the first round's failures",  # are other ones in the shards' parquets
        ),
    ):
        found = edited(run, **wrong)
        assert "The numbers do not add up: please report this." in found.text
        assert said in found.text
        assert "The numbers add up." in edited(run, **manifest).text


def test_a_page_before_every_shard_is_indexed_raises_no_doubts(run: Run) -> None:
    first, last = run.pool.shards  # 42 samples, and the 3 of the re-drive
    run.storage.delete(
        next(e.path for e in run.storage.list() if e.path.endswith(f"/{first.name}.{first.state}.all.done.json"))
    )
    found = page(run)
    assert funnel(found)[-3:] == [["in the tars", "45"], ["indexed so far", "3"], ["usable", "3"]]
    assert "The numbers add up." in found.text
    assert "Still to come: columns index" in found.text
    assert run.columns.rows(run.index, last) == 3


def test_damaged_files_and_undecoded_texts_are_notes(
    tmp_path: Path, web: Crawl, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, data = next(item for item in web.mirror.files.items() if item[0].endswith("0.warc.wat.gz"))
    monkeypatch.setattr(web.mirror, "files", {**web.mirror.files, path: data + b"\x1f\x8b no member"})
    run = ingested(tmp_path, web.source())
    damaged = json.loads(run.storage.read(run.pool.manifest_path))["extraction"]["damaged"]
    assert damaged == {"places": 1, "bytes": 12}
    found = page(run)
    assert ["files: bytes that can't be read, in 1 place", "12"] in found.rows
    assert "The numbers add up." in found.text


def test_a_pool_of_tables_begins_with_their_rows(tmp_path: Path, web: Crawl) -> None:
    urls = [web.web.url(f"/{number}.jpg") for number in (0, 1, 2, 3, 0)]
    table = "".join(f"{url},photo {url}\n" for url in urls)
    (tmp_path / "urls.csv.gz").write_bytes(gzip.compress(f"url,text\n{table},none\n".encode()))
    run = ingested(tmp_path / "out", {"urls": str(tmp_path / "urls.csv.gz")}, robots=True)
    found = page(run)
    assert funnel(found) == [
        ["rows of the tables", "6"], ["no url", "−1"], ["duplicate", "−1"],
        ["candidates", "4"], [f"download: http_404 ({MEANINGS['http_404']})", "−1"],
        ["in the tars", "3"],
        ["usable", "3"],
    ]  # fmt: skip
    assert f"Found in 1 table of {tmp_path / 'urls.csv.gz'}." in found.text
    assert "robots.txt was asked." in found.text
