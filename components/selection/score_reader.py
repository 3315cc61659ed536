"""Reads scores for mix: the file of a part once, as far as memory goes, though rules come after their thresholds."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from components.base.threads import map_ahead
from components.pool.columns import Columns, align
from components.pool.run import Run
from components.pool.shards import Shard
from components.selection.rules import Bools, Scores

KEPT = 1 << 26  # scores that are kept for a second look: 268 MB; what lies behind them is read twice


class ScoreReader:
    """The scores of a run, shard by shard."""

    def __init__(self, run: Run, columns: Columns, kept: int = KEPT) -> None:
        self.run, self.columns, self._room = run, columns, kept
        self._kept: dict[tuple[str, str], pa.Table] = {}

    def passes(self, score: str) -> Callable[[], Iterator[Scores]]:
        """Return a function that starts a pass over a score of the pool, shard by shard; NaN where there is none."""
        self._list(score)
        return lambda: map_ahead(lambda shard: _floats(self._some(score, shard)), self.run.pool.shards)

    def read(self, score: str, shard: Shard, uids: pa.Array) -> tuple[Scores, Bools]:
        """Return a score of the shard's usable samples, (N,) with NaN where there is none, and of which it failed.

        Args:
            uids: of these samples, as the index has them.
        """
        table = self._whole(score, shard)
        if table is None:
            table = align(self._read(score, shard), uids)
        return _floats(table), table.column("failed").fill_null(False).to_numpy()

    def _list(self, score: str) -> None:
        """List the column's parts and the index's once, before there are threads."""
        for spec in (self.run.score(score), self.run.index):
            self.columns.parts(spec, self.run.pool.shards[0])

    def _some(self, score: str, shard: Shard) -> pa.Table:
        """Return the score of the samples that the column covers, in any order."""
        whole = self._whole(score, shard)
        return self._read(score, shard) if whole is None else whole

    def _whole(self, score: str, shard: Shard) -> pa.Table | None:
        """Return the score of the usable samples in the index's order; None where the column doesn't cover just them.

        A part has its samples in that order. So one that covers as many samples as are usable needs no uids.
        """
        if found := self._kept.get((score, shard.name)):
            return found
        node = self.run.find("score", score)
        parts = self.columns.parts(node.spec, shard)
        if len(parts) != 1:
            return None
        rows = self.columns.record(node.spec, shard, parts[0]).rows
        if rows != self.columns.usable(self.run.index, shard):
            return None
        table = self.columns.read_part(node.spec, shard, parts[0], [node.fields["score"], "error"])
        found = _table(table, node.fields["score"])
        if self._room >= rows:  # threads may take some more than there is room for, a few shards' scores
            self._room -= rows
            self._kept[score, shard.name] = found
        return found

    def _read(self, score: str, shard: Shard) -> pa.Table:
        node = self.run.find("score", score)
        table = self.columns.read(node.spec, shard, [node.fields["score"], "error"])
        return _table(table, node.fields["score"]).append_column("uid", table.column("uid"))


def _table(table: pa.Table, field: str) -> pa.Table:
    """Return the score as float32, and whether there is an error instead."""
    failed = pc.is_valid(table.column("error"))
    return pa.table({"score": table.column(field).cast(pa.float32()), "failed": failed})


def _floats(table: pa.Table) -> Scores:
    scores: Scores = table.column("score").fill_null(np.nan).to_numpy()
    return scores
