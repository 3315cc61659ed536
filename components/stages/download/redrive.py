"""Re-drive: the failures of finished shards as candidates of appended ones, which hold what succeeds now."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from components.base.threads import map_ahead
from components.recipe.sources import Retry
from components.stages.download.reasons import REASONS
from components.stages.download.shard import LARGEST, Candidates, ShardRecord
from components.storage.interface import Storage

_COLUMNS = ["uid", "url", "text"]
_NONE = np.array([], "S16")


def plan_redrive(
    storage: Storage, finished: Sequence[ShardRecord], retry: Retry, first: int, folder: str
) -> list[Candidates]:
    """Write the candidates of a re-drive, 10,000 a shard, and return them.

    Finished shards don't change, so the same call writes the same bytes, under the same names. A failure that an
    earlier re-drive has mended (they are among `finished`, too) is left out; the uids of those are held in memory, 16
    bytes each.

    Args:
        first: Number of the first appended shard.
        folder: Where the candidates go in the storage.
    """
    again = [record for record in finished if record.redrive]
    uids = map_ahead(lambda record: _keys(_read(storage, record, ["uid"])), again)
    mended = np.sort(np.concatenate([_NONE, *uids]))
    first_tries = (record for record in finished if not record.redrive)
    failed = map_ahead(lambda record: _failures(storage, record, retry, mended), first_tries)
    planned = []
    for number, table in enumerate(_cut(failed), first):
        sink = io.BytesIO()
        pq.write_table(table, sink, compression="zstd")
        name, data = f"{number:08d}", sink.getvalue()
        path = f"{folder}/{name}.{hashlib.sha256(data).hexdigest()[:16]}.parquet"
        storage.write(path, data)
        planned.append(Candidates(name, path, redrive=True))
    return planned


def _failures(storage: Storage, record: ShardRecord, retry: Retry, mended: np.ndarray) -> pa.Table:
    reasons = [name for name, reason in REASONS.items() if reason.transient or retry == "all"]
    table = _read(storage, record, ["uid", "url", "caption", "error_message"])
    table = table.filter(pc.is_in(table.column("error_message"), value_set=pa.array(reasons)))
    if len(mended):  # searched: is_in would hash millions of them again for every shard
        keys = _keys(table)
        found = mended[np.searchsorted(mended, keys).clip(max=len(mended) - 1)] == keys
        table = table.filter(pa.array(~found))
    return table.drop_columns("error_message").rename_columns(_COLUMNS)


def _keys(table: pa.Table) -> np.ndarray:
    """Return the uids' bytes, (N,) S16."""
    return np.array([bytes.fromhex(uid) for uid in table.column("uid").to_pylist()], _NONE.dtype)


def _read(storage: Storage, record: ShardRecord, columns: list[str]) -> pa.Table:
    return pq.read_table(pa.BufferReader(storage.read(record.parquet)), columns=columns)


def _cut(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """Yield the same rows, LARGEST at a time."""
    kept: pa.Table | None = None
    for table in tables:
        kept = pa.concat_tables([kept, table]) if kept is not None else table
        while kept.num_rows >= LARGEST:
            yield kept.slice(0, LARGEST)
            kept = kept.slice(LARGEST)
    if kept is not None and kept.num_rows:
        yield kept
