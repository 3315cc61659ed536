"""Reads what rules look at: texts, scores and flags of a shard, aligned to its index."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import numpy as np
import pyarrow as pa

from components.pool import recipe as schema
from components.pool.columns import Columns, ColumnSpec, align
from components.pool.errors import PermanentError
from components.pool.quantile import thresholds
from components.pool.rules import Scores, Values, shares_of
from components.pool.run import Run
from components.pool.shards import Shard

In = TypeVar("In")
Out = TypeVar("Out")
KEPT = 1 << 26  # scores in memory between two passes: 256 MB
THREADS = 4  # readers ahead: reading and checksums release the interpreter's lock


def ahead(work: Callable[[In], Out], items: Iterable[In]) -> Iterator[Out]:
    """`map` in order with a few threads, never more than a few results ahead of their reader."""
    with ThreadPoolExecutor(THREADS) as pool:
        waiting: deque[Future[Out]] = deque()
        try:
            for item in items:
                waiting.append(pool.submit(work, item))
                if len(waiting) > THREADS:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def score_passes(run: Run, score: str) -> Callable[[], Iterator[Scores]]:
    """Passes over one score of the whole pool, NaN where there is none.

    The first shards' scores stay in memory, KEPT at most: up to that size a second pass reads nothing again.
    """
    columns, spec = Columns(run.storage, run.pool.name), run.score(score)
    columns.parts(spec, run.pool.shards[0])  # list once, before the threads
    kept: list[Scores] = []

    def scores(shard: Shard) -> Scores:
        return _floats(columns.read(spec, shard, [_field(spec)]), _field(spec))

    def one_pass() -> Iterator[Scores]:
        yield from list(kept)
        room = KEPT - sum(map(len, kept))
        for chunk in ahead(scores, run.pool.shards[len(kept) :]):
            room -= len(chunk)
            if room >= 0:
                kept.append(chunk)
            yield chunk

    return one_pass


def find_thresholds(
    run: Run, mixtures: Iterable[schema.Mixture], known: Iterable[str]
) -> dict[tuple[str, float], float]:
    """The thresholds of all `top` conditions on the known scores.

    Raises:
        PermanentError: a score covers only part of the pool, so that its best share would be biased.
    """
    shares: dict[str, set[float]] = {}
    for mixture in mixtures:
        for rule in mixture.rules:
            for score, share in shares_of(mixture, rule):
                shares.setdefault(score, set()).add(share)
    found: dict[tuple[str, float], float] = {}
    for score in sorted(shares.keys() & set(known)):
        require_complete(run, run.score(score), f"top of {score}")
        values = thresholds(score_passes(run, score), sorted(shares[score]))
        found |= {(score, share): value for share, value in values.items()}
    return found


def require_complete(run: Run, spec: ColumnSpec, purpose: str) -> None:
    """Raises PermanentError unless the column covers every usable sample of the pool."""
    covered, usable = coverage(run, spec)
    if covered < usable:
        raise PermanentError(
            f"{purpose}: column {spec.folder} covers {covered:,} of {usable:,} usable samples; a statistic over a part "
            "would be biased, so let a mixture use that text without conditions, or run its stage over the whole pool"
        )


def coverage(run: Run, spec: ColumnSpec) -> tuple[int, int]:
    """(samples that the column covers, usable samples of the pool)."""
    columns = Columns(run.storage, run.pool.name)
    for column in (spec, run.index):
        columns.parts(column, run.pool.shards[0])

    def count(shard: Shard) -> tuple[int, int]:
        usable = sum(r.rows - _unusable(r.failures) for r in columns.records(run.index, shard))
        return (usable if spec.stage == "index" else columns.rows(spec, shard)), usable

    counts = list(ahead(count, run.pool.shards))
    return sum(c for c, _ in counts), sum(u for _, u in counts)


def _unusable(failures: object) -> int:
    assert isinstance(failures, dict)
    return sum(n for reason, n in failures.items() if reason.startswith("sample: "))


def read_values(
    run: Run,
    columns: Columns,
    shard: Shard,
    index: pa.Table,
    texts: Iterable[str],
    scores: Iterable[str],
    flags: Iterable[str],
) -> Values:
    """What these columns say about the index rows `index`; a column without a part for the shard says null."""
    uids = index.column("uid").combine_chunks()

    def rows(spec: ColumnSpec, field: str) -> pa.Table:
        if not columns.parts(spec, shard):
            return pa.table({field: pa.nulls(len(uids))})
        return align(columns.read(spec, shard, [field]), uids)

    values = Values(index.num_rows)
    for name in texts:
        table = index if name == schema.RAW else rows(run.text(name), "text")
        values.texts[name] = table.column("text").combine_chunks().cast(pa.string())
    for name in scores:
        field = _field(run.score(name))
        values.scores[name] = _floats(rows(run.score(name), field), field)
    for name in flags:
        column = rows(run.flag(name), "flag").column("flag")
        values.flags[name] = (column.fill_null(False).to_numpy(), column.is_valid().to_numpy())
    return values


def _field(score: ColumnSpec) -> str:
    return "cosine" if score.stage == "score" else "score"


def _floats(table: pa.Table, field: str) -> Scores:
    column = table.column(field).cast(pa.float32())
    scores: Scores = column.fill_null(np.nan).to_numpy()
    return scores
