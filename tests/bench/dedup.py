"""Deduplicating millions of candidates of which a third are duplicates, partition by partition in bounded memory.

5 million rows; `python -m tests.bench.dedup 50` takes 50. Peer: Arrow's own group_by over all rows in memory.
"""

from __future__ import annotations

import json
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa

from components.stages.extract.dedup import Dedup, finish
from components.stages.extract.extraction import BUDGET, BYTES_OF_ROW, Extraction
from components.stages.extract.spill import Spiller, TaskRecord, commit, read_segment
from components.storage.local import LocalStorage
from tests.bench.measure import show

ROWS_OF_TASK = 1_000_000
UNIQUE = 2 / 3


def write(folder: Path, rows: int) -> None:
    """What the extract tasks would have spilled."""
    storage, work = LocalStorage(folder), work_of(rows)
    draw = np.random.default_rng(0)
    for task in range(rows // ROWS_OF_TASK):
        spiller = Spiller(storage, work.spills(task), work.partitions)
        for n in draw.integers(0, int(rows * UNIQUE * 1.2), ROWS_OF_TASK).tolist():
            host, name = n % 99_991, n // 7
            spiller.add(
                f"https://www.shop-number-{host}.example/wp-content/uploads/2026/{n % 12:02d}/{name}.jpg",
                f"a photo of thing number {n} on a wooden table",
            )
        spiller.flush()
        kept = ROWS_OF_TASK
        record = TaskRecord(
            spiller.spills, 1, {}, kept, {}, dict(spiller.lost), 0, {"places": 0, "bytes": 0}, [], 0.0, ""
        )
        commit(storage, work, task, record)


def work_of(rows: int) -> Extraction:
    return Extraction(
        "bench", "", tuple(map(str, range(rows // ROWS_OF_TASK))), "wat", -(-rows * BYTES_OF_ROW // BUDGET)
    )


def ours(folder: Path, rows: int) -> int:
    storage, work = LocalStorage(folder), work_of(rows)
    dedup = Dedup(storage, work, rows // ROWS_OF_TASK)
    for partition in range(work.partitions):
        dedup.run(partition)
    kept: int = finish(storage, work, rows // ROWS_OF_TASK)["funnel"]["kept"]
    return kept


def in_memory(folder: Path, rows: int) -> int:
    storage, work = LocalStorage(folder), work_of(rows)
    dedup = Dedup(storage, work, rows // ROWS_OF_TASK)
    segments = [segment for partition in range(work.partitions) for segment in dedup._segments(partition)]
    table = pa.concat_tables([read_segment(storage, work, segment) for segment in segments])
    once = table.group_by("uid", use_threads=False).aggregate([("url", "first"), ("text", "first")])
    return int(once.num_rows)


def child(what: str, folder: Path, rows: int) -> tuple[int, float, float]:
    """Rows kept, seconds, and MB at the peak, of a process of its own."""
    command = [sys.executable, "-m", "tests.bench.dedup", str(rows), what, str(folder)]
    kept, wall, peak = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    return kept, wall, peak


def main(rows: int) -> None:
    folder = Path(tempfile.mkdtemp())
    _, wrote, write_peak = child("write", folder, rows)
    other, simple, simple_peak = child("in_memory", folder, rows)
    kept, took, peak = child("ours", folder, rows)
    assert kept == other, (kept, other)
    millions = f"{rows // 1_000_000}M rows"
    show(
        **{
            f"{millions}, {kept:,} kept": f"{rows / took:,.0f} rows/s in {work_of(rows).partitions} partitions",
            f"{millions}: peak memory": f"{peak:,.0f} MB; all in memory {simple_peak:,.0f} MB",
            f"{millions}: Arrow's group_by, in memory": f"{rows / simple:,.0f} rows/s, nothing written",
            f"{millions}: hashed, sorted, spilled before": f"{rows / wrote:,.0f} rows/s, {write_peak:,.0f} MB",
        }
    )
    shutil.rmtree(folder)


if __name__ == "__main__":
    if len(sys.argv) > 2:
        began = time.perf_counter()
        found = globals()[sys.argv[2]](Path(sys.argv[3]), int(sys.argv[1]))
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6
        print(json.dumps([found, time.perf_counter() - began, memory]))
    else:
        main(1_000_000 * int(sys.argv[1]) if len(sys.argv) > 1 else 5_000_000)
