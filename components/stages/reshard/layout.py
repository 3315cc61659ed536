"""The rows that make up each tar of the training set: known before anything is written."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from components.base.errors import PermanentError
from components.pool.shards import Shard
from components.storage.interface import Storage

SHARD_SAMPLES = 10_000  # DataComp's resharder and img2dataset: at most so many per tar


@dataclass(frozen=True)
class ShardSelection:
    """The rows that a mixture takes from one pool shard."""

    shard: Shard
    rows: int
    sha256: str
    """SHA-256 of its parquet file."""


@dataclass(frozen=True)
class Segment:
    """Consecutive rows of one selection."""

    selection: ShardSelection
    start: int
    stop: int


def tar_name(number: int) -> str:
    return f"{number:08d}.tar"


def read_mixture(storage: Storage, mixture: str, shards: Sequence[Shard]) -> list[ShardSelection]:
    """List the selections that mixture.json names, in the pool's order.

    Raises:
        PermanentError: there is no mixture, or not of these shards.
    """
    path = f"{mixture}/mixture.json"
    if storage.size(path) is None:
        raise PermanentError(f"{storage.uri}/{path} is missing; run mix first")
    found = {s["name"]: s for s in json.loads(storage.read(path))["shards"]}
    if found.keys() != {shard.name for shard in shards}:
        raise PermanentError(f"{storage.uri}/{path} names other shards than the pool has; delete it and run mix again")
    return [ShardSelection(shard, found[shard.name]["rows"], found[shard.name]["sha256"]) for shard in shards]


def read_selection(storage: Storage, mixture: str, selection: ShardSelection, fields: Sequence[str]) -> pa.Table:
    """Read these fields of a selection's rows.

    Raises:
        PermanentError: the file is not the one that mixture.json names.
    """
    path = f"{mixture}/{selection.shard.name}.parquet"
    data = storage.read(path)
    if hashlib.sha256(data).hexdigest() != selection.sha256:
        raise PermanentError(
            f"{storage.uri}/{path}: has another checksum than mixture.json says; delete mixture.json and run mix again"
        )
    return pq.read_table(pa.BufferReader(data), columns=list(fields))


def lay_out(selections: Sequence[ShardSelection], most: int = SHARD_SAMPLES) -> list[list[Segment]]:
    """Divide the selections' rows among the output tars, in the pool's order; return each tar's segments.

    The fewest tars of at most `most` samples, all within one sample of the same size: trainers draw tars with equal
    chances (open_clip's --dataset-resampled), so a last tar of three samples would show those three far too often.
    """
    total = sum(selection.rows for selection in selections)
    count = -(-total // most)
    cuts = [i * total // count for i in range(count + 1)] if count else [0]
    tars: list[list[Segment]] = [[] for _ in range(count)]
    number, done = 0, 0  # done: rows of earlier selections
    for selection in selections:
        start, end = done, done + selection.rows
        while start < end:
            stop = min(end, cuts[number + 1])
            tars[number].append(Segment(selection, start - done, stop - done))
            start = stop
            if stop == cuts[number + 1]:
                number += 1
        done = end
    return tars
