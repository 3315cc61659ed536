"""Exact deduplication across a dump: each pair once, in shards of 10,000, a task per partition of the uids.

A uid's rows all lie in one partition, so partitions know nothing of each other. Memory is bounded (by some four times
BUDGET, and a segment) whatever a partition's size: a larger one takes several passes, each over a range of its uids.
"""

from __future__ import annotations

import io
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from components.base.errors import PermanentError
from components.base.threads import map_ahead
from components.stages.extract.extraction import BUDGET, SHARD, Extraction
from components.stages.extract.pairs import SPACE, bounds_of, cut, hexadecimal, sort_once
from components.stages.extract.spill import Spill, SpillSegment, TaskRecord, read_record, read_segment
from components.storage.commit import DONE, DoneRecord, commit, find_whole, write_content
from components.storage.commit import read_record as read_done
from components.storage.interface import Storage


@dataclass(frozen=True)
class Partition(DoneRecord):
    """A partition's done.json: its shards, and what became of the rows."""

    shards: list[dict[str, Any]]
    """file, rows, bytes, sha256 of each, in order."""
    rows: int
    """Rows that came in."""
    lost: Mapping[str, int]

    @property
    def data(self) -> Mapping[str, int]:
        return {shard["file"]: shard["bytes"] for shard in self.shards}


class Dedup:
    """Works through some partitions, or all; reads the tasks' records once.

    It keeps only what these partitions need: all 25,000 segments of each of a whole dump's 25,000 spills would be
    20 GB.

    Raises:
        PermanentError: a task isn't done.
    """

    def __init__(self, storage: Storage, extraction: Extraction, tasks: int, partitions: range | None = None) -> None:
        self.storage, self.extraction = storage, extraction
        self.partitions = range(extraction.partitions) if partitions is None else partitions

        def spills(task: int) -> list[tuple[int, str, np.ndarray]]:
            found = read_record(storage, extraction, task).spills
            return [(task, spill.file, _table(spill, self.partitions)) for spill in found]

        self.spills = [spill for some in map_ahead(spills, range(tasks)) for spill in some]

    def run(self, partition: int) -> Partition:
        """Write a partition's shards, unless that is done. Their bytes don't depend on the number of tasks."""
        path = f"{self.extraction.shards(partition)}{DONE}"
        if found := find_whole(self.storage, path, Partition):
            return found
        lost: Counter[str] = Counter()
        shards = [self._write(partition, n, shard) for n, shard in enumerate(_shards(self._once(partition, lost)))]
        rows = sum(segment.rows for segment in self._segments(partition))
        return commit(self.storage, path, Partition(shards, rows, dict(sorted(lost.items()))))

    def _once(self, partition: int, lost: Counter[str]) -> Iterator[pa.Table]:
        """Yield the partition's rows, sorted, each uid once, a table per pass; `lost` counts the other rows."""
        segments = self._segments(partition)
        start, stop = bounds_of(0, SPACE, self.extraction.partitions)[partition : partition + 2]
        passes = max(1, -(-sum(segment.memory for segment in segments) // BUDGET))
        bounds = bounds_of(start, stop, passes)
        for number in range(passes):
            some = bounds[number : number + 2]

            def read(segment: SpillSegment, some: list[int] = some) -> pa.Table:
                table = read_segment(self.storage, self.extraction, segment)
                return table if passes == 1 else _copied(cut(table.combine_chunks(), some)[0])

            # Several at once only where all of them fit
            tables = list(map_ahead(read, segments) if passes == 1 else map(read, segments))
            if tables:
                table, gone = sort_once(pa.concat_tables(tables))
                del tables
                lost.update(gone)
                yield table

    def _segments(self, partition: int) -> list[SpillSegment]:
        """Return the partition's segments in the spills of all tasks."""
        row = self.partitions.index(partition)
        found = [SpillSegment(task, file, *table[row].tolist()) for task, file, table in self.spills]
        return [segment for segment in found if segment.rows]

    def _write(self, partition: int, number: int, shard: pa.Table) -> dict[str, Any]:
        sink = io.BytesIO()
        uids = hexadecimal(shard.column("uid").combine_chunks())
        pq.write_table(shard.set_column(0, "uid", uids), sink, compression="zstd")
        stem = f"{self.extraction.shards(partition)}.{number:04d}"
        data = write_content(self.storage, stem, "parquet", sink.getvalue())
        return {"file": data.file, "rows": shard.num_rows, "bytes": data.bytes, "sha256": data.sha256}


def finish(storage: Storage, extraction: Extraction, tasks: int) -> dict[str, Any]:
    """Write candidates.json: all shards in order and the whole funnel, once every partition is done.

    Raises:
        PermanentError: a task or partition isn't done, or a candidate is unaccounted for.
    """
    records = [_slim(read_record(storage, extraction, task)) for task in range(tasks)]
    paths = [f"{extraction.shards(partition)}{DONE}" for partition in range(extraction.partitions)]
    absent = "this partition is not done; run dedup's tasks first"
    partitions = list(map_ahead(lambda path: read_done(storage, path, Partition, absent), paths))
    funnel = _funnel(records, partitions)
    accounted = funnel["kept"] + sum(funnel["dropped"].values()) + sum(funnel["lost"].values())
    if accounted != funnel["candidates"]:
        raise PermanentError(
            f"{extraction.folder}: {funnel['candidates']:,} candidates were seen but {accounted:,} are accounted for; "
            "records of different runs are mixed: delete the folder and run again"
        )
    shards = [shard for partition in partitions for shard in partition.shards]
    result = {"dump": extraction.dump, "kind": extraction.kind, "funnel": funnel, "shards": shards}
    storage.create(f"{extraction.folder}/candidates.json", json.dumps(result, indent=1).encode())
    return result


def _slim(record: TaskRecord) -> TaskRecord:
    """Return a record without its segments: those of a thousand tasks are a million."""
    return replace(record, spills=[])


def _table(spill: Spill, partitions: range) -> np.ndarray:
    """Return (partitions, 4) int64: start, bytes, rows, bytes in memory of each segment."""
    whole = np.array(spill.segments, np.int64).reshape(-1, 3)
    starts = np.cumsum(whole[:, 0]) - whole[:, 0]
    return np.column_stack([starts, whole])[partitions.start : partitions.stop].copy()


def _funnel(records: list[TaskRecord], partitions: list[Partition]) -> dict[str, Any]:
    seen, dropped, lost = Counter[str](), Counter[str](), Counter[str]()
    damaged = Counter[str](places=0, bytes=0)
    for partition in partitions:
        lost.update(partition.lost)
    for record in records:
        seen.update(record.records)
        dropped.update(record.dropped)
        lost.update(record.lost)
        damaged.update(record.damaged)
    return {
        "files": sum(record.files for record in records),
        "records": dict(sorted(seen.items())),
        "candidates": sum(record.candidates for record in records),
        "dropped": dict(sorted(dropped.items())),
        "lost": dict(sorted(lost.items())),
        "kept": sum(shard["rows"] for partition in partitions for shard in partition.shards),
        "undecoded": sum(record.undecoded for record in records),
        "damaged": dict(damaged),
        "damages": [damage for record in records for damage in record.damages],
    }


def _shards(tables: Iterator[pa.Table]) -> Iterator[pa.Table]:
    """Cut tables into shards of SHARD rows; the last one has what is left."""
    rest: pa.Table | None = None
    for table in tables:
        table = pa.concat_tables([rest, table]) if rest is not None else table
        whole = table.num_rows - table.num_rows % SHARD
        for start in range(0, whole, SHARD):
            yield table.slice(start, SHARD)
        rest = _copied(table.slice(whole))
    if rest is not None and rest.num_rows:
        yield rest


def _copied(table: pa.Table) -> pa.Table:
    """Copy rows into memory of their own, so that the table they were cut from can be freed."""
    return table.take(pa.array(range(table.num_rows), pa.int64()))
