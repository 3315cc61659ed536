"""reshard: write each mixture out as the training set that open_clip, DataComp and webdataset read."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from typing import Any

import pyarrow as pa

from components.base.cores import cores
from components.base.errors import TemporaryError
from components.base.processes import UndisturbedContext
from components.base.version import version
from components.engine.stage import Needs, Step
from components.pool.run import Run
from components.recipe.mixtures import Mixture
from components.stages.reshard.card import card
from components.stages.reshard.ids import write_sample_ids
from components.stages.reshard.layout import Segment, ShardSelection, lay_out, read_mixture, read_selection, tar_name
from components.stages.reshard.write import DatasetJob, Resharder, TarRecord, begin, done_name, write_tar
from components.storage.commit import find_record
from components.storage.interface import Storage

log = logging.getLogger(__name__)

Layout = Sequence[Sequence[Segment]]


class ReshardStep(Step):
    """Copies image bytes as they are, but for faces to be blurred; a tar is written by one core, whole or not at all.

    Task t of n writes every n-th tar of all mixtures, numbered through; `run` writes the rest and what describes them.
    """

    name = "reshard"
    summary = "write the training set of each mixture: webdataset tars with the chosen text"
    reads = ("mixtures", "index", "shards")
    writes = "datasets/<mixture>: tars, meta.json, sample_ids.npy, sizes.json, README.md, dataset.json"
    needs = Needs(memory_gib=2, decoders=None)
    divisible = True

    def run(self, run: Run) -> None:
        for mixture in run.written:
            reshard(run, mixture)

    def run_task(self, run: Run, task: int, tasks: int) -> None:
        before = 0
        for mixture in run.written:
            layout = lay_out(read_mixture(run.storage, run.mixture_folder(mixture), run.pool.shards))
            numbers = range((task - before) % tasks, len(layout), tasks)
            before += len(layout)
            job = _job(run, mixture)
            _write_tars(job, run.storage, layout, numbers, _looked_up(run.storage, job.dataset, numbers))


def reshard(run: Run, mixture: Mixture) -> None:
    """Write what is missing of one training set.

    Raises:
        PermanentError: a tar of the pool is not the one that was indexed.
    """
    folder, storage = run.dataset_folder(mixture), run.storage
    sizes = {e.path.removeprefix(f"{folder}/"): e.size for e in storage.list(f"{folder}/")}
    if _is_whole(storage, folder, sizes):
        return
    selections = read_mixture(storage, run.mixture_folder(mixture), run.pool.shards)
    layout = lay_out(selections)
    numbers = range(len(layout))
    records = _write_tars(_job(run, mixture), storage, layout, numbers, _finished(storage, folder, sizes, numbers))
    _write_rest(run, mixture, folder, records, selections)
    samples, tars = sum(record.samples for record in records), len(records)
    log.info("mixture %s: %s in %s", mixture.name, f"{samples:,} samples", f"{tars:,} tar{'s' if tars != 1 else ''}")


def _job(run: Run, mixture: Mixture) -> DatasetJob:
    folders = run.mixture_folder(mixture), run.dataset_folder(mixture)
    blur = tuple(run.boxes(name) for name in run.spec.training_sets.blur)
    return DatasetJob(run.storage.uri, run.pool.name, run.pool.source.uri, run.index, *folders, blur)


def _is_whole(storage: Storage, folder: str, sizes: Mapping[str, int]) -> bool:
    """Return whether dataset.json is there and every tar it lists has its size."""
    if "dataset.json" not in sizes:
        return False
    tars = json.loads(storage.read(f"{folder}/dataset.json"))["shards"]
    missing = [tar["name"] for tar in tars if sizes.get(tar["name"]) != tar["bytes"]]
    if missing:
        log.warning("%s: %s is gone or has another size; written anew", folder, ", ".join(missing[:3]))
    return not missing


def _finished(storage: Storage, folder: str, sizes: Mapping[str, int], numbers: Sequence[int]) -> dict[int, TarRecord]:
    """Return the tars that a record vouches for and that are there in full."""
    found = {}
    for number in numbers:
        if done_name(number) in sizes:
            record = find_record(storage, f"{folder}/{done_name(number)}", TarRecord)
            if record and sizes.get(record.name) == record.bytes:
                found[number] = record
    return found


def _looked_up(storage: Storage, folder: str, numbers: Sequence[int]) -> dict[int, TarRecord]:
    """Return what _finished does, without a listing: a task has few of the folder's tars."""
    names = [name for number in numbers for name in (done_name(number), tar_name(number))]
    sizes = {name: storage.size(f"{folder}/{name}") for name in names}
    return _finished(storage, folder, {name: size for name, size in sizes.items() if size is not None}, numbers)


def _write_tars(
    job: DatasetJob, storage: Storage, layout: Layout, numbers: Sequence[int], records: dict[int, TarRecord]
) -> list[TarRecord]:
    """Write those of these tars that `records` lacks, and return the records of all of them."""
    todo = [number for number in numbers if number not in records]
    processes = min(cores(), len(todo))
    samples = sum(record.samples for record in records.values())

    def done(number: int, record: TarRecord) -> None:
        nonlocal samples
        records[number] = record
        samples += record.samples
        log.info("%s: tar %d of %d, %d samples", job.dataset, len(records), len(numbers), samples)

    if processes > 1:
        _in_processes(job, layout, todo, processes, done)
    elif todo:
        resharder = Resharder(job)
        for number in todo:
            done(number, resharder.write(number, layout[number]))
    return [records[number] for number in numbers]


def _in_processes(
    job: DatasetJob, layout: Layout, todo: Sequence[int], processes: int, done: Callable[[int, TarRecord], None]
) -> None:
    """Write a tar per process; at most two per process are handed out at a time, so that stopping is quick."""
    executor = ProcessPoolExecutor(processes, mp_context=UndisturbedContext(), initializer=begin, initargs=(job,))
    waiting = iter(todo)
    pending: dict[Future[TarRecord], int] = {}
    try:
        while True:
            for number in _some(waiting, 2 * processes - len(pending)):
                pending[executor.submit(write_tar, number, layout[number])] = number
            if not pending:
                break
            for future in wait(pending, timeout=1, return_when=FIRST_COMPLETED).done:
                done(pending.pop(future), future.result())
    except BrokenProcessPool as error:
        raise TemporaryError(
            f"{job.dataset}: a writing process died (out of memory?); run again, finished tars are kept"
        ) from error
    finally:
        if pending:
            _kill(executor)
        executor.shutdown(cancel_futures=True)


def _some(numbers: Iterator[int], count: int) -> Iterator[int]:
    for _ in range(count):
        number = next(numbers, None)
        if number is None:
            return
        yield number


def _kill(executor: ProcessPoolExecutor) -> None:
    """Stop the processes at once: what they left half-written is ignored and made anew."""
    for process in list((executor._processes or {}).values()):
        with suppress(OSError, ValueError):
            process.kill()


def _write_rest(
    run: Run, mixture: Mixture, folder: str, records: Sequence[TarRecord], selections: Sequence[ShardSelection]
) -> None:
    """Write what describes the tars; dataset.json last, since readers trust only what it names."""
    storage = run.storage
    uids = _uids(storage, run.mixture_folder(mixture), selections)
    distinct = write_sample_ids(uids, storage, f"{folder}/sample_ids.npy")
    dataset = _dataset(run, mixture, records, distinct)
    meta = {"output_shard_count": len(records), "output_shard_format": "{:08d}.tar"}
    storage.write(f"{folder}/meta.json", _json(meta))
    storage.write(f"{folder}/sizes.json", _json({r.name: r.samples for r in records}))
    storage.write(f"{folder}/README.md", card(run, mixture, dataset).encode())
    storage.create(f"{folder}/dataset.json", _json(dataset))


def _dataset(run: Run, mixture: Mixture, records: Sequence[TarRecord], distinct: int) -> dict[str, Any]:
    samples = sum(record.samples for record in records)
    sources, formats = Counter[str](), Counter[str]()
    for record in records:
        sources.update(record.sources)
        formats.update(record.formats)
    return {
        "mixture": mixture.name,
        "selection": run.mixture_folder(mixture),
        "pool": run.pool.name,
        "content": run.content,
        "samples": samples,
        "uids": distinct,
        "repeated": samples - distinct,
        "bytes": sum(record.bytes for record in records),
        "sources": dict(sorted(sources.items())),
        "formats": dict(sorted(formats.items())),
        "code": version(),
        "shards": [{k: r.to_json()[k] for k in ("name", "samples", "bytes", "sha256")} for r in records],
    }


def _uids(storage: Storage, mixture: str, selections: Sequence[ShardSelection]) -> Iterator[pa.StringArray]:
    for selection in selections:
        if selection.rows:
            yield read_selection(storage, mixture, selection, ["uid"]).column("uid").combine_chunks()


def _json(value: object) -> bytes:
    return json.dumps(value, indent=1).encode()
