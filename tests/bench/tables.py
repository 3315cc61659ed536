"""Candidates from a table of URLs, in core-seconds, against Arrow merely reading the same columns.

The tables are made: 400,000 rows as in DataComp's metadata (which has uids) in one row group, and as a CSV without.
"""

from __future__ import annotations

import hashlib
import random
import shutil
import tempfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from components.stages.extract.spill import Spiller
from components.stages.extract.task import Extractor
from components.storage.local import LocalStorage
from tests.bench.extract import core_seconds
from tests.bench.measure import peak_mb, show

ROWS, WORDS = 400_000, 3_000
PARTITIONS = 64
FIELDS = ["uid", "url", "text"]


def write_files(folder: Path) -> tuple[Path, Path]:
    draw = random.Random(0)
    words = ["".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=draw.randint(2, 9))) for _ in range(WORDS)]
    urls = [
        f"https://www.{draw.choice(words)}{n % 9973}.com/uploads/{draw.choice(words)}-{draw.choice(words)}-{n}.jpg"
        for n in range(ROWS)
    ]
    texts = [" ".join(draw.choices(words, k=draw.randint(1, 18))) for _ in range(ROWS)]
    uids = [hashlib.md5((text + url).encode()).hexdigest() for url, text in zip(urls, texts, strict=True)]
    table = pa.table([uids, urls, texts, uids, [640] * ROWS], [*FIELDS, "sha256", "original_width"])
    parquet, csv = folder / "t.parquet", folder / "t.csv"
    pq.write_table(table, parquet, row_group_size=ROWS)
    pa_csv.write_csv(table.select(FIELDS[1:]), csv)
    return parquet, csv


def ours(path: Path, folder: Path) -> Extractor:
    """A task without its record: read, decide, sort, spill."""
    tally = Extractor(Spiller(LocalStorage(folder / "storage"), "spill", PARTITIONS))
    with open(path, "rb") as file:
        tally.read(path.name, file, "table")
    tally.spiller.flush()
    return tally


def main() -> None:
    folder = Path(tempfile.mkdtemp())
    with ProcessPoolExecutor(1) as apart:  # its memory is not ours, and counts once it has ended
        parquet, csv = apart.submit(write_files, folder).result()
        assert all(ours(path, folder).candidates == ROWS for path in (parquet, csv))
        peak = peak_mb()
    given, read = core_seconds(lambda: ours(parquet, folder), lambda: pq.read_table(parquet, columns=FIELDS))
    made, parsed = core_seconds(lambda: ours(csv, folder), lambda: pa_csv.read_csv(csv))
    show(
        **{
            "parquet with uids": f"{ROWS / given:,.0f} rows/s a core",
            "against reading it alone": f"{given / read:.1f} × its time ({ROWS / read:,.0f} rows/s)",
            "CSV without uids": f"{ROWS / made:,.0f} rows/s a core",
            "against parsing it alone": f"{made / parsed:.1f} × its time ({ROWS / parsed:,.0f} rows/s)",
            "peak memory": f"{peak:,.0f} MB",
        }
    )
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
