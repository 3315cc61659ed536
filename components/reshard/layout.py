"""Which rows of which selections make up each tar of the training set: known before anything is written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pyarrow.parquet as pq

from components.pool.shards import Shard
from components.pool.storage import Storage

SHARD_SAMPLES = 10_000  # DataComp's resharder and img2dataset: at most so many per tar


@dataclass(frozen=True)
class Segment:
    """Consecutive rows of one pool shard's selection."""

    shard: Shard
    start: int
    stop: int


def tar_name(number: int) -> str:
    return f"{number:08d}.tar"


def selection_rows(storage: Storage, mixture: str, shards: Sequence[Shard]) -> dict[str, int]:
    """Pairs per pool shard, from the footers of the mixture's parquet files."""

    def rows(shard: Shard) -> int:
        with storage.open(selection_path(mixture, shard)) as file:
            return int(pq.ParquetFile(file).metadata.num_rows)

    with ThreadPoolExecutor(16) as threads:  # waiting for a bucket, not computing
        return dict(zip([s.name for s in shards], threads.map(rows, shards), strict=True))


def selection_path(mixture: str, shard: Shard) -> str:
    return f"{mixture}/{shard.name}.parquet"


def lay_out(shards: Sequence[Shard], rows: Mapping[str, int], most: int = SHARD_SAMPLES) -> list[list[Segment]]:
    """The segments of every output tar, in the pool's order.

    The fewest tars of at most `most` samples, all within one sample of the same size: trainers draw tars with equal
    chances (open_clip's --dataset-resampled), so a last tar of three samples would show those three far too often.
    """
    total = sum(rows[s.name] for s in shards)
    count = -(-total // most)
    cuts = [i * total // count for i in range(count + 1)] if count else [0]
    tars: list[list[Segment]] = [[] for _ in range(count)]
    number, done = 0, 0  # done: rows of earlier pool shards
    for shard in shards:
        start, end = done, done + rows[shard.name]
        while start < end:
            stop = min(end, cuts[number + 1])
            tars[number].append(Segment(shard, start - done, stop - done))
            start = stop
            if stop == cuts[number + 1]:
                number += 1
        done = end
    return tars
