"""Tables of candidates: sorted by uid, cut into partitions, each pair once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

SCHEMA = pa.schema([("uid", pa.binary(16)), ("url", pa.string()), ("text", pa.string())])
DUPLICATE = "duplicate"
COLLISION = "uid of another pair"  # text and URL are hashed without a mark between them, as in cc2dataset
SPACE = 1 << 32  # partitions are ranges of the uid's first 32 bits


def sort_once(table: pa.Table) -> tuple[pa.Table, Counter[str]]:
    """Sort the rows by uid and keep one row per uid; return why other rows went. Equal pairs are the same row,
    whichever is kept; of two pairs with one uid the lesser (URL, text) stands, so that order and grouping of the input
    never show."""
    table = table.combine_chunks()
    if not table.num_rows:
        return table, Counter()
    uids = _words(table)
    order = np.lexsort((uids[:, 1], uids[:, 0]))
    uids = uids[order]
    again = np.zeros(len(order), bool)
    again[1:] = (uids[1:] == uids[:-1]).all(axis=1)
    lost: Counter[str] = Counter()
    if again.any():
        rows = np.flatnonzero(again)
        differs = _differ(table, order[rows], order[rows - 1])
        if differs.any():
            order, collisions = _lesser_first(table, order, again, rows[differs])
            lost[COLLISION] = collisions
        lost[DUPLICATE] = len(rows) - lost[COLLISION]
    return table.take(pa.array(order[~again])), +lost


def cut(table: pa.Table, bounds: Sequence[int]) -> list[pa.Table]:
    """Cut a sorted table's rows at bounds of the uid's first 32 bits."""
    if not table.num_rows:
        return [table] * (len(bounds) - 1)
    rows = np.searchsorted(_words(table)[:, 0] >> np.uint64(32), np.array(bounds, np.uint64))
    return [table.slice(a, b - a) for a, b in pairwise(rows.tolist())]


def bounds_of(start: int, stop: int, parts: int) -> list[int]:
    """Cut a range of the uid's first 32 bits into equal parts: their bounds."""
    return [start + -(-i * (stop - start) // parts) for i in range(parts + 1)]


def hexadecimal(uids: pa.Array) -> pa.StringArray:
    """Write uids as DataComp does: 32 digits."""
    return pa.array([uid.hex() for uid in uids.to_pylist()], pa.string())


def _words(table: pa.Table) -> np.ndarray:
    """Return a table's uids as (N, 2) uint64, in the order of their bytes."""
    uids = table.column("uid").combine_chunks()
    uids = uids.chunk(0) if isinstance(uids, pa.ChunkedArray) else uids
    words = np.frombuffer(uids.buffers()[1], ">u8").reshape(-1, 2)
    return words[uids.offset : uids.offset + len(uids)].astype(np.uint64)


def _differ(table: pa.Table, one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Return, per pair of rows, whether URL or text differ."""
    differs = np.zeros(len(one), bool)
    for name in ("url", "text"):
        column = table.column(name)
        differs |= pc.not_equal(column.take(pa.array(one)), column.take(pa.array(other))).to_numpy()
    return differs


def _lesser_first(
    table: pa.Table, order: np.ndarray, again: np.ndarray, differing: np.ndarray
) -> tuple[np.ndarray, int]:
    """Put the least pair first within each group of one uid that has several; count the rows that are another pair."""
    order, lost = order.copy(), 0
    firsts = np.flatnonzero(~again)
    for group in np.unique(np.searchsorted(firsts, differing, side="right") - 1):
        start = firsts[group]
        stop = firsts[group + 1] if group + 1 < len(firsts) else len(order)
        rows = order[start:stop]
        pairs = [(row["url"], row["text"]) for row in table.take(pa.array(rows)).to_pylist()]
        least = min(range(len(pairs)), key=pairs.__getitem__)
        lost += sum(pair != pairs[least] for pair in pairs)
        rows = np.concatenate([rows[least : least + 1], np.delete(rows, least)])
        order[start:stop] = rows
    return order, lost
