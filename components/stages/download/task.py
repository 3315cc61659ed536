"""Download: shards of candidates to shards of images, several on their way at once, each committed whole or not at all.

The next shard begins when the one before it runs out of candidates to begin, so that its slowest hosts hold up nothing.
Images wait on disk until their shard is whole; what is in memory doesn't grow with the number of candidates.
"""

from __future__ import annotations

import asyncio
import logging
import resource
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import partial

import pyarrow as pa
from aiohttp.abc import AbstractResolver

from components.base.errors import RecaptionError, TemporaryError
from components.recipe.sources import Download
from components.stages.download.background import emitted
from components.stages.download.fetch import Fetcher
from components.stages.download.pictures import Pictures
from components.stages.download.reasons import Failed
from components.stages.download.shard import Candidates, Outcome, ShardRecord, Spool, commit, finished, read_candidates
from components.stages.download.slots import MAX_LENT, Slot, Slots
from components.storage.interface import Storage

log = logging.getLogger(__name__)

OPEN = 3  # shards on their way, the one that is committed among them
SILENT, NOT_ASKED = ("connect", "dns_failed"), ("bad_url", "private_address", "port")
FEW, SILENCE = 100, 0.98  # candidates; share of them: of a crawl's links some 30 % are dead
RESERVED = 256  # file descriptors that are not connections

Progress = Callable[[int, int], None]
"""Called with candidates settled and shards committed since the last call."""
Names = Callable[[], AbstractResolver]
"""Makes the resolver; called in the event loop."""


def download(
    candidates: Sequence[Candidates],
    options: Download,
    storage: Storage,
    folder: str,
    *,
    source: Storage | None = None,
    processes: int | None = None,
    names: Names | None = None,
    progress: Progress = lambda candidates, shards: None,
) -> list[ShardRecord]:
    """Download those of these shards that are missing; return the records of all of them, in order.

    Args:
        folder: Where the shards go in the storage.
        source: Where the candidates lie; None: in the same storage.
        processes: Number of processes that decode and resize; None is one per core.
        names: None asks the system's name servers.

    Raises:
        PermanentError, TemporaryError: as the storage does; or the candidates are no table of candidates.
    """
    records = {c.shard: record for c in candidates if (record := finished(storage, folder, c.shard))}
    progress(0, len(records))
    missing = [c for c in candidates if c.shard not in records]
    if missing:
        with ExitStack() as stack:
            work = _Downloads(missing, options, source or storage, stack)
            for item in stack.enter_context(closing(emitted(partial(work.run, processes, names)))):
                if isinstance(item, int):
                    progress(item, 0)
                    continue
                _refuse_silence(item)
                records[item.name] = commit(
                    storage,
                    folder,
                    item.name,
                    item.table,
                    item.outcomes,
                    item.spool,
                    redrive=item.redrive,
                    user_agent=options.user_agent,
                    seconds=time.monotonic() - item.began,
                )
                item.spool.close()
                item.release()
                progress(0, 1)
    return [records[c.shard] for c in candidates]


@dataclass
class _Item:
    """A shard whose candidates are settled."""

    name: str
    redrive: bool
    table: pa.Table
    outcomes: list[Outcome]
    spool: Spool
    began: float
    release: Callable[[], object]
    """Lets another shard begin."""


def _refuse_silence(item: _Item) -> None:
    """Refuse a shard whose requests hardly reached any server: a network that is down isn't the candidates' failure.

    Raises:
        TemporaryError: of a shard's requests hardly any was answered. Of a re-drive's, that may be the servers' fault.
    """
    reasons = Counter(outcome.reason for outcome in item.outcomes if outcome.reason not in NOT_ASKED)
    silent = sum(reasons[reason] for reason in SILENT)
    if not item.redrive and reasons.total() >= FEW and silent >= SILENCE * reasons.total():
        said = ", ".join(f"{reason} {reasons[reason]:,}" for reason in SILENT)
        raise TemporaryError(
            f"shard {item.name}: {silent:,} of {reasons.total():,} requests found no server ({said}); is this "
            "machine's network down? The shard is not kept; run again"
        )


class _Downloads:
    """The shards on their way, in the event loop."""

    def __init__(self, candidates: Sequence[Candidates], options: Download, source: Storage, stack: ExitStack) -> None:
        self.candidates, self.options, self.source, self.stack = candidates, options, source, stack
        self.pending = 0
        """Candidates begun and not settled."""

    async def run(self, processes: int | None, names: Names | None, emit: Callable[[_Item | int], None]) -> None:
        connections = self.options.connections
        self.emit, self.places, self.room = emit, asyncio.Semaphore(OPEN), asyncio.Event()
        self.slots = Slots(connections, _lendable(connections))
        async with (
            Pictures(processes) as self.pictures,
            Fetcher(self.options, self.slots, names() if names else None) as self.fetcher,
            asyncio.TaskGroup() as shards,
        ):
            for candidates in self.candidates:
                await self.places.acquire()
                table = await asyncio.to_thread(read_candidates, self.source, candidates.path)
                while self.pending > 2 * connections:
                    self.room.clear()
                    await self.room.wait()
                self.pending += table.num_rows
                shards.create_task(self._shard(candidates, table))

    async def _shard(self, candidates: Candidates, table: pa.Table) -> None:
        began, spool = time.monotonic(), self.stack.enter_context(closing(Spool()))
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(self._one(url, spool)) for url in table.column("url").to_pylist()]
        outcomes = [task.result() for task in tasks]
        release = partial(asyncio.get_running_loop().call_soon_threadsafe, self.places.release)
        self.emit(_Item(candidates.shard, candidates.redrive, table, outcomes, spool, began, release))

    async def _one(self, url: str | None, spool: Spool) -> Outcome:
        outcome = await self._outcome(url or "", spool)
        self.pending -= 1
        if self.pending <= 2 * self.options.connections:
            self.room.set()
        self.emit(1)
        return outcome

    async def _outcome(self, url: str, spool: Spool) -> Outcome:
        with Slot(self.slots) as slot:
            try:
                fetched = await self.fetcher.fetch(url, slot)
                made = await self.pictures.make(fetched.data)
            except Failed as failure:
                return Outcome(failure.reason, failure.status)
            except RecaptionError:
                raise
            except Exception as error:  # whatever it is, it costs this candidate, not the shard on every attempt
                log.warning("%s: %s: %s", url, type(error).__name__, error, exc_info=error)
                return Outcome("error")
        return Outcome(made, fetched.status) if isinstance(made, str) else spool.add(made, fetched.status)


def _lendable(connections: int) -> int:
    """Return how many slots may be lent: a connection takes a file descriptor, two while it tries IPv6 and IPv4."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        soft = hard if hard != resource.RLIM_INFINITY else max(soft, 1 << 16)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return max(0, min(MAX_LENT, (soft - RESERVED - 2 * connections) // 2))
