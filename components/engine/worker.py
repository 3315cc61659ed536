"""The one worker loop: skip what is done, read and decode off the hot path, batch, compute, commit.

Reading and decoding run ahead in a thread and its decoding processes while the stage computes; batches never cross
shards; a shard's part is committed whole or not at all. No model is loaded before a shard has something to compute.
"""

from __future__ import annotations

import queue
import threading
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing, nullcontext, suppress
from dataclasses import dataclass, field
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.compute as pc

from components.engine.decoding import Chunk, Decoders, joined, pixels_of
from components.engine.images import Pixels
from components.engine.stage import Batch, ColumnStage
from components.pool.columns import ALL, Columns, align
from components.pool.identities import IndexedSamples
from components.pool.shards import Pool, Shard
from components.selection.demand import Demand
from components.storage.interface import Storage

AHEAD = 2  # batches that wait decoded, to ride out a slow read: 2 × 256 × 224 × 224 × 3 bytes = 77 MB


@dataclass
class Summary:
    """The work that was done in one call of run_task."""

    shards: int = 0
    samples: int = 0
    failures: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True)
class _PendingBatch:
    """One batch on its way from the reader to the stage; `last` closes its shard."""

    batch: Batch
    pixels: list[Chunk]
    last: bool


def run_task(
    stage: ColumnStage,
    pool: Pool,
    shards: Sequence[Shard],
    columns: Columns,
    part: str = ALL,
    demand: Demand | None = None,
    *,
    batch_size: int | None = None,
    decoders: int | None = None,
    progress: Callable[[int, int], None] = lambda samples, shards: None,
) -> Summary:
    """Compute one column's part for these shards.

    Args:
        decoders: decoding processes; None is one per core, 0 decodes in the reading thread.
        progress: called with samples computed and shards committed since the last call.

    Raises:
        TemporaryError, PermanentError: as storage and stage do; committed shards stay.
    """
    for spec in {spec.folder: spec for spec in (stage.spec, *stage.spec.inputs.values())}.values():
        columns.check_files(spec, shards)  # once where the index is also the text: each is a listing
    open_shards = [s for s in shards if part not in columns.parts(stage.spec, s)]
    summary = Summary()
    progress(0, len(shards) - len(open_shards))
    left = commit_empty(stage, open_shards, columns, part, demand)
    summary.shards = len(open_shards) - len(left)
    progress(0, summary.shards)
    if not left:
        return summary
    index = stage.spec.inputs.get("index", stage.spec)
    stage.setup(IndexedSamples(pool.source, columns, index, left))
    with Decoders(decoders if "image" in stage.reads else 0) as processes:
        reader = _BatchReader(stage, pool.source, columns, demand, batch_size or stage.batch_size, processes)
        with closing(reader.start(left)) as works:
            for last, table, failures, seconds in _computed(stage, works, progress):
                columns.commit(stage.spec, last.shard, part, table, failures, seconds, last.content)
                progress(0, 1)
                summary.shards += 1
                summary.samples += table.num_rows
                summary.failures.update(failures)
    return summary


def commit_empty(
    stage: ColumnStage, shards: Sequence[Shard], columns: Columns, part: str, demand: Demand | None
) -> Sequence[Shard]:
    """Commit the parts of shards of which no sample is asked for, up to the first other one; return that and the rest.

    The stage needs no setup: nothing is computed. A column of vectors, whose width only the model knows, is left alone.
    """
    if "tar" in stage.reads or any(field.dtype == "float16[D]" for field in stage.fields):
        return shards
    for done, shard in enumerate(shards):
        if wanted_rows(stage, shard, columns, demand).num_rows:
            return shards[done:]
        columns.commit(stage.spec, shard, part, _table(stage, [], {f.name: [] for f in stage.fields}, []), {}, 0.0)
    return []


def wanted_rows(stage: ColumnStage, shard: Shard, columns: Columns, demand: Demand | None) -> pa.Table:
    """Return the index rows that are usable, asked for, covered by all inputs, and not in another part yet."""
    index = columns.read(stage.spec.inputs["index"], shard)
    mask = pc.is_null(index.column("error"))
    if demand:
        mask = pc.and_(mask, pa.array(demand(shard, index)))
    index = index.filter(mask)
    for spec in stage.spec.inputs.values():
        if spec.inputs:  # the index covers all of them
            covered = columns.read(spec, shard, []).column("uid").combine_chunks()
            index = index.filter(pc.is_in(index.column("uid"), value_set=covered))
    if columns.parts(stage.spec, shard):
        own = columns.read(stage.spec, shard, []).column("uid").combine_chunks()
        index = index.filter(pc.invert(pc.is_in(index.column("uid"), value_set=own)))
    return index


def _computed(
    stage: ColumnStage, works: Iterator[_PendingBatch], progress: Callable[[int, int], None]
) -> Iterator[tuple[Batch, pa.Table, Mapping[str, int], float]]:
    """Run the stage over the batches; yield each shard's last batch with the whole shard's table."""
    tables: list[pa.Table] = []
    counts: Counter[str] = Counter()
    began = time.monotonic()
    for work in works:
        batch = work.batch
        table = _computed_batch(stage, batch, [p for chunk in work.pixels for p in pixels_of(chunk)])
        tables.append(table)
        counts.update(batch.counts)
        progress(table.num_rows, 0)
        if work.last:
            whole = pa.concat_tables([t for t in tables if t.num_rows] or tables[:1])
            counts.update(f"sample: {e}" for e in whole.column("error").to_pylist() if e is not None)
            yield batch, whole, counts, time.monotonic() - began
            tables, counts, began = [], Counter(), time.monotonic()


def _computed_batch(stage: ColumnStage, batch: Batch, pixels: list[Pixels | str]) -> pa.Table:
    """Run one batch through the stage: rows whose image can't be read become nulls with the reason."""
    if batch.tar is not None:
        with batch.tar, batch.beside or nullcontext():
            found = stage.process(batch)
        return _table(stage, found["uid"], found, found["error"])
    good, errors = _sift(batch, pixels)
    if len(good) < len(batch.uids) or pixels:
        pictures = [p for p in pixels if not isinstance(p, str)]
        shaped = stage.geometry is not None and stage.geometry.mode == "inside"
        images = joined(pictures) if pictures and not shaped else None
        inputs = {role: table.take(pa.array(good, pa.int64())) for role, table in batch.inputs.items()}
        uids = [batch.uids[i] for i in good]
        readable = Batch(batch.shard, uids, images, pictures if shaped else (), inputs, counts=batch.counts)
    else:
        readable = batch
    values: Mapping[str, Sequence[Any]] = stage.process(readable) if good else {f.name: [] for f in stage.fields}
    for row, reason in zip(good, values.get("error", ()), strict=False):
        errors[row] = reason
    return _table(stage, batch.uids, {f.name: _spread(values[f.name], good, len(errors)) for f in stage.fields}, errors)


def _sift(batch: Batch, pixels: list[Pixels | str]) -> tuple[list[int], list[str | None]]:
    """Return the rows that can be computed, and for every row the reason why it can't be (None where it can)."""
    errors: list[str | None] = [p if isinstance(p, str) else None for p in pixels] or [None] * len(batch.uids)
    return [row for row, error in enumerate(errors) if error is None], errors


def _spread(values: Sequence[Any], rows: list[int], length: int) -> Sequence[Any]:
    """Place the values of some rows among nulls, `length` in all."""
    if len(rows) == length:
        return values
    whole: list[Any] = [None] * length
    for row, value in zip(rows, values, strict=True):
        whole[row] = value
    return whole


def _table(
    stage: ColumnStage, uids: Sequence[str], values: Mapping[str, Sequence[Any]], errors: Sequence[str | None]
) -> pa.Table:
    arrays = {f.name: f.array(values[f.name]) for f in stage.fields}
    return pa.table({"uid": pa.array(uids, pa.string()), **arrays, "error": pa.array(errors, pa.string())})


class _Closed(Exception):
    """The computing thread has ended, so reading ahead is pointless."""


class _BatchReader:
    """Runs ahead of the stage: reads inputs and image bytes, hands images to the decoding processes."""

    def __init__(
        self,
        stage: ColumnStage,
        source: Storage,
        columns: Columns,
        demand: Demand | None,
        batch_size: int,
        decoders: Decoders,
    ) -> None:
        self.stage, self.source, self.columns, self.demand = stage, source, columns, demand
        self.batch_size, self.decoders = batch_size, decoders
        self.queue: queue.Queue[_PendingBatch | BaseException | None] = queue.Queue(AHEAD)
        self.closed = threading.Event()

    def start(self, shards: Sequence[Shard]) -> Generator[_PendingBatch, None, None]:
        """Yield the batches of all shards, in order."""
        thread = threading.Thread(target=self._run, args=(shards,), name="reader", daemon=True)
        thread.start()
        try:
            while (item := self.queue.get()) is not None:
                if isinstance(item, BaseException):
                    raise item
                yield item
        finally:
            self.closed.set()
            thread.join(timeout=60)
            while not self.queue.empty():
                _close(self.queue.get())

    def _run(self, shards: Sequence[Shard]) -> None:
        try:
            for shard in shards:
                for work in self._shard(shard):
                    self._put(work)
            self._put(None)
        except _Closed:
            return
        except BaseException as error:  # carried to the computing thread, which raises it
            with suppress(_Closed):
                self._put(error)

    def _put(self, item: _PendingBatch | BaseException | None) -> None:
        while not self.closed.is_set():
            try:
                return self.queue.put(item, timeout=0.1)
            except queue.Full:
                continue
        _close(item)
        raise _Closed

    def _shard(self, shard: Shard) -> Iterator[_PendingBatch]:
        if "tar" in self.stage.reads:
            yield self._whole(shard)
            return
        rows = wanted_rows(self.stage, shard, self.columns, self.demand)
        inputs = {
            role: align(self.columns.read(spec, shard), rows.column("uid").combine_chunks())
            for role, spec in self.stage.spec.inputs.items()
            if role in self.stage.reads
        }
        reads_images = "image" in self.stage.reads and rows.num_rows
        with self.source.open(shard.tar, shard.version) if reads_images else nullcontext() as tar:
            yield from self._batches(shard, rows, inputs, tar)

    def _batches(
        self, shard: Shard, rows: pa.Table, inputs: Mapping[str, pa.Table], tar: BinaryIO | None
    ) -> Iterator[_PendingBatch]:
        for start in range(0, rows.num_rows, self.batch_size) or (0,):
            some = rows.slice(start, self.batch_size)
            batch = Batch(
                shard,
                some.column("uid").to_pylist(),
                inputs={role: table.slice(start, self.batch_size) for role, table in inputs.items()},
            )
            futures = self._decode(tar, some) if tar else []
            yield _PendingBatch(batch, futures, start + self.batch_size >= rows.num_rows)

    def _whole(self, shard: Shard) -> _PendingBatch:
        batch = Batch(shard, [], tar=self.source.open(shard.tar, shard.version))
        if shard.parquet:
            batch.beside = self.source.open(shard.parquet)
        return _PendingBatch(batch, [], last=True)

    def _decode(self, tar: BinaryIO, rows: pa.Table) -> list[Chunk]:
        assert self.stage.geometry is not None
        images = []
        for offset, size in zip(rows.column("offset").to_pylist(), rows.column("size").to_pylist(), strict=True):
            tar.seek(offset)
            images.append(tar.read(size))
        return self.decoders.submit(images, self.stage.geometry)


def _close(item: _PendingBatch | BaseException | None) -> None:
    """Close the files of a batch that will not be processed."""
    if isinstance(item, _PendingBatch):
        for file in filter(None, (item.batch.tar, item.batch.beside)):
            file.close()
