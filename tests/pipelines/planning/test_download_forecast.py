"""`recaption plan` before the pool is there: what it says at each step of the download, and that it changes nothing."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from components.base.errors import PermanentError
from components.pool.run import Run
from components.recipe.recipe import parse_recipe
from components.stages.extract import dedup
from pipelines.execution.local import run_step
from pipelines.planning.estimate import show_plan
from pipelines.planning.plan import plan_run
from tests.pipelines.crawl import DUMP, Crawl, crawl
from tests.pipelines.execution.test_local import GOOD, REST, recipe_text
from tests.pipelines.test_funnel import HOW, RAW

MIXED = {"name": "mixed", "rules": [GOOD, REST]}


@pytest.fixture(scope="module")
def web() -> Iterator[Crawl]:
    with crawl() as found:
        yield found


def planned(storage: Path, source: dict[str, Any], *retry: str, **spec: Any) -> Run:
    how = {**HOW, "retry": list(retry)}
    whole = {"pool": {"name": "crawl", **source}, "download": how, **spec}
    return plan_run(parse_recipe(recipe_text(storage, storage, [MIXED if "columns" not in spec else RAW], **whole)))


def said(run: Run) -> list[str]:
    """The lines of the plan, spaces made one; it leaves every file as it is."""
    folder = Path(run.storage.uri)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    out = io.StringIO()
    show_plan(run, Console(file=out, width=200))
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
    return [" ".join(line.split()) for line in out.getvalue().splitlines()]


def test_a_dump_before_anything_is_done(tmp_path: Path, web: Crawl) -> None:
    run = planned(tmp_path / "new", web.source(), "transient", scorer={"model": "ViT-L-14", "weights": "openai"})
    lines = said(run)
    assert lines[:3] == [
        f"run {run.name}: pool {run.pool.name}, to be downloaded from 3 WAT files of {DUMP}",
        "candidates: about 600,000 (an estimate: 200,000 a file, as in 2023)",
        "its tars: about 21.1 GB (if every image arrives: 35 kB a sample, as in CommonPool)",
    ]
    assert lines[4:8] == [
        "extract 0 of 3 tasks",
        "extract:dedup 0 of 1 partitions",
        "download 0 of about 60 shards",
        "download:1 what failed until then (transient)",
    ]
    # 600,000 · (32 + 2 · 768) bytes; 600,000 / 490 / 3600 hours
    assert "embed about 600,000 940.8 MB 0.34" in lines
    assert any(line.startswith("caption:blip about 42") for line in lines)  # the 70 % that are not the best
    assert "training sets: 1, at most 21.1 GB" in lines
    assert not web.web.requests
    assert not (tmp_path / "new").exists()


def test_it_knows_more_after_each_step(tmp_path: Path, web: Crawl, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dedup, "SHARD", 25)
    run = planned(tmp_path, web.source(), "transient", columns=[])
    run.save()
    run_step(run, "extract", 0)
    assert "extract 1 of 3 tasks" in said(run)
    run_step(run, "extract")
    run_step(run, "extract:dedup")
    lines = said(run)
    assert "candidates: 72 (as extracted)" in lines
    assert "its tars: about 2.5 MB (if every image arrives: 35 kB a sample, as in CommonPool)" in lines
    assert "download 0 of 3 shards" in lines
    assert any(line.startswith("index about 72 ") for line in lines)

    run_step(run, "download")
    assert run.pool.name in said(run)[0]
    assert "download 3 of 3 shards" in said(run)
    tars = sum(path.stat().st_size for path in tmp_path.rglob("*.tar"))
    assert f"its tars: about {tars / 1000:,.1f} kB (as large as those that are there)" in said(run)
    assert "download:1 what failed until then (6, transient)" in said(run)  # the busy ones
    assert "download:1 what failed until then (30, all)" in said(planned(tmp_path, web.source(), "all", columns=[]))

    run_step(run, "download:1")
    assert said(run)[0].startswith(f"run {run.name}: pool {run.pool.name}, 3 shards ({tars / 1000:,.1f} kB), ")

    later = planned(tmp_path, web.source(), "transient", "all", columns=[])
    lines = said(later)
    assert "download:1 1 of 1 shards" in lines
    assert "download:2 what failed until then (all)" in lines


def test_the_rows_of_tables_are_counted_without_reading_them(tmp_path: Path) -> None:
    tables = tmp_path / "tables"
    tables.mkdir()
    for number in range(45):
        table = pa.table({"url": [f"http://example.com/{number}/{row}" for row in range(number)]})
        table = table.append_column("text", pa.array(["a text"] * number))
        pq.write_table(table, tables / f"{number:03d}.parquet")
    urls = str(tables / "010.parquet")
    assert "candidates: 10 (the tables' rows)" in said(planned(tmp_path / "out", {"urls": urls}))
    lines = said(planned(tmp_path / "out", {"urls": str(tables)}))
    assert lines[0].endswith(f"to be downloaded from 45 tables of {tables}")
    assert "candidates: about 945 (an estimate from 15 of the tables)" in lines  # 45 · the mean of 0, 3, …, 42
    (tables / "more.csv").write_text("url,text\n")
    lines = said(planned(tmp_path / "out", {"urls": str(tables)}))
    assert "candidates: not known yet (a CSV doesn't say how many rows it has)" in lines
    assert "download" in lines  # of how many shards isn't known
    assert not any(line.startswith("embed") for line in lines)


def test_a_table_that_is_none_is_one_line(tmp_path: Path) -> None:
    tables = tmp_path / "tables"
    tables.mkdir()
    (tables / "bad.parquet").write_bytes(b"nothing")
    with pytest.raises(PermanentError, match=r"^table bad.parquet: .*"):
        said(planned(tmp_path / "out", {"urls": str(tables)}))
