"""What is known of a pool before it is downloaded: nothing is written, and of tables only the footers are read."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil
from typing import Any

import pyarrow.parquet as pq

from components.base.threads import map_ahead
from components.pool.run import Run
from components.pool.shards import read_json
from components.recipe.sources import Retry
from components.stages.download.reasons import REASONS
from components.stages.download.rounds import Round, round_of
from components.stages.extract.extraction import ROWS_OF_FILE, SHARD, Extraction, load_extraction
from components.storage.tables import explained
from components.storage.web import open_source

FOOTERS = 20  # parquets that are looked at for their rows
COMMONPOOL = 450e9 / 12.8e6  # bytes of a sample's images and texts in CommonPool small (DataComp's README)


@dataclass(frozen=True)
class Upcoming:
    """A pool that is still to be downloaded."""

    source: str
    candidates: float | None
    """At most so many samples; None where that is not known before the tables are read."""
    origin: str
    """Of that number."""
    exact: bool
    steps: list[tuple[str, str]]
    """Of the download, and how far each is."""
    tars: float | None
    """Their bytes, about; None where nothing tells."""
    tars_origin: str


def upcoming(run: Run) -> Upcoming:
    """Tell what the storage, the recipe and the footers of tables say of the pool to come."""
    assert run.ingest is not None  # else the pool was there
    work = (
        Extraction.from_json(run.ingest.plan)
        if run.ingest.plan
        else load_extraction(run.storage, run.ingest.candidates)
    )
    found = _found(run)
    counted = (float(found["funnel"]["kept"]), True, "as extracted") if found else _rows(work)
    candidates, exact, origin = counted
    shards = len(found["shards"]) if found else candidates and ceil(candidates / SHARD)
    done, size = _so_far(round_of(run, 0))
    tars: tuple[float | None, str]
    steps = [
        *_extraction(run, work, bool(found)),
        ("download", _of(done, shards, "shards", bool(found))),
        *_retries(run),
    ]
    if done and shards:
        tars = size / done * shards, "as large as those that are there"
    else:
        per_sample = f"{COMMONPOOL / 1000:.0f} kB a sample, as in CommonPool"
        tars = candidates and candidates * COMMONPOOL, f"if every image arrives: {per_sample}"
    return Upcoming(_source(run, work), candidates, origin, exact, steps, *tars)


def _found(run: Run) -> dict[str, Any]:
    """Read candidates.json; empty where the extraction isn't finished."""
    assert run.ingest is not None
    path = f"{run.ingest.candidates}/candidates.json"
    return read_json(run.storage, path, lambda value: {**value}) if run.storage.size(path) is not None else {}


def _source(run: Run, work: Extraction) -> str:
    count = f"{len(work.files):,}"
    if work.kind == "table":
        return f"{count} table{'' if len(work.files) == 1 else 's'} of {run.spec.pool.urls}"
    return f"{count} {work.kind.upper()} file{'' if len(work.files) == 1 else 's'} of {work.dump}"


def _rows(work: Extraction) -> tuple[float | None, bool, str]:
    """Return the candidates before duplicates are gone, whether they were counted, and how."""
    if work.kind != "table":
        return float(len(work.files) * ROWS_OF_FILE), False, f"an estimate: {ROWS_OF_FILE:,} a file, as in 2023"
    if not all(path.endswith(".parquet") for path in work.files):
        return None, False, "a CSV doesn't say how many rows it has"
    some = work.files[:: ceil(len(work.files) / FOOTERS)]
    source = open_source(work.base)

    def rows(path: str) -> int:
        with explained(f"table {path}"), source.open(path) as file:
            return int(pq.ParquetFile(file).metadata.num_rows)

    counted = sum(map_ahead(rows, some)) * len(work.files) / len(some)
    whole = len(some) == len(work.files)
    return counted, whole, "the tables' rows" if whole else f"an estimate from {len(some)} of the tables"


def _extraction(run: Run, work: Extraction, finished: bool) -> Iterator[tuple[str, str]]:
    paths = [e.path for e in run.storage.list(f"{work.folder}/") if e.path.endswith(".done.json")]
    for key, part, total, unit in (
        ("extract", "spills", work.tasks, "tasks"),
        ("extract:dedup", "shards", work.partitions, "partitions"),
    ):
        done = sum(path.startswith(f"{work.folder}/{part}/") for path in paths)
        yield key, _of(total if finished else done, total, unit)


def _retries(run: Run) -> Iterator[tuple[str, str]]:
    for number, retry in enumerate(run.spec.download.retry if run.spec.download else (), 1):
        found = round_of(run, number)
        path = f"{found.folder}/plan.json"  # `found.candidates` would write it
        if run.storage.size(path) is None:
            yield f"download:{number}", f"what failed until then ({_failed(round_of(run, 0), retry, number)}{retry})"
        else:
            yield f"download:{number}", _of(_so_far(found)[0], read_json(run.storage, path, len), "shards")


def _failed(first: Round, retry: Retry, number: int) -> str:
    """Return how many images the first re-drive is for, once that is known."""
    path = f"{first.extraction}/candidates.json"
    if number != 1 or first.storage.size(path) is None or first.missing():
        return ""
    failures = first.summary(list(first.records()))["failures"]
    count = sum(n for reason, n in failures.items() if retry == "all" or REASONS[reason].transient)
    return f"{count:,}, "


def _so_far(found: Round) -> tuple[int, int]:
    """Return (finished shards, bytes of their tars)."""
    entries = list(found.storage.list(f"{found.folder}/"))
    done = sum(entry.path.endswith(".done.json") for entry in entries)
    return done, sum(entry.size for entry in entries if entry.path.endswith(".tar"))


def _of(done: int, total: float | None, unit: str, exact: bool = True) -> str:
    if total is None:
        return f"{done:,} {unit}" if done else ""
    return f"{done:,} of {'' if exact else 'about '}{total:,.0f} {unit}"
