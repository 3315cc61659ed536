"""Reads what rules look at: texts, scores and flags of a shard, aligned to its index."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping

import numpy as np
import pyarrow as pa

from components.base.errors import PermanentError
from components.base.hashing import content_hash
from components.base.threads import map_ahead
from components.pool.columns import Columns, ColumnSpec, align
from components.pool.run import Run
from components.pool.shards import Shard
from components.recipe.columns import RAW
from components.recipe.mixtures import Mixture
from components.selection.quantile import thresholds
from components.selection.rules import Bools, Scores, Values, shares_of


def score_passes(run: Run, score: str) -> Callable[[], Iterator[Scores]]:
    """Starts a pass over one score of the whole pool, shard by shard; NaN where there is none."""
    columns, node = run.open_columns(), run.find("score", score)
    spec, field = node.spec, node.fields["score"]
    columns.parts(spec, run.pool.shards[0])  # list once, before the threads
    return lambda: map_ahead(lambda shard: _floats(columns.read(spec, shard, [field]), field), run.pool.shards)


def find_thresholds(run: Run, mixtures: Iterable[Mixture], known: Iterable[str]) -> dict[tuple[str, float], float]:
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
        try:
            values = thresholds(score_passes(run, score), sorted(shares[score]))
        except PermanentError as error:
            raise PermanentError(f"top of {score}: {error}; see why in column {run.score(score).folder}") from error
        found |= {(score, share): value for share, value in values.items()}
    return found


def require_complete(run: Run, spec: ColumnSpec, purpose: str) -> None:
    """Raises PermanentError unless the column covers every usable sample of the pool."""
    covered, usable = coverage(run, spec)
    if covered < usable:
        raise PermanentError(
            f"{purpose}: column {spec.folder} covers {covered:,} of {usable:,} usable samples; a `top` or a statistic "
            "over a partial column would be biased: run its stage over the whole pool first"
        )


def require_finished(run: Run, columns: Columns, keys: Iterable[str]) -> None:
    """Raises PermanentError unless this run's part of every node in `keys` is there for every shard."""
    for node in (run.nodes[key] for key in keys):
        if lacking := run.lacking(columns, node):
            raise PermanentError(
                f"{node.key}: not finished for {len(lacking):,} of {len(run.pool.shards):,} shards, the first is "
                f"{lacking[0].name} (column {node.spec.folder}, part {node.part}); run it first"
            )


def coverage(run: Run, spec: ColumnSpec) -> tuple[int, int]:
    """(samples that the column covers, usable samples of the pool)."""
    columns = run.open_columns()
    for column in (spec, run.index):
        columns.parts(column, run.pool.shards[0])

    def count(shard: Shard) -> tuple[int, int]:
        usable = sum(r.rows - _unusable(r.failures) for r in columns.records(run.index, shard))
        return (usable if spec.hash == run.index.hash else min(usable, columns.rows(spec, shard))), usable

    counts = list(map_ahead(count, run.pool.shards))
    return sum(c for c, _ in counts), sum(u for _, u in counts)


def analysis_path(run: Run, text: str) -> str:
    """Where `analyze` keeps the statistics of a text over this pool, as far as the text is covered now.

    The cosines are by this recipe's scorer, so that the score's column is part of the name.
    """
    spec, score = run.text(text), run.score(text).hash if run.has("score", text) else None
    name = f"{spec.folder}-{content_hash([run.content, score, *coverage(run, spec)])}"
    return f"pools/{run.pool.name}/analyses/{name}.json"


def _unusable(failures: Mapping[str, int]) -> int:
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
    """What these columns say about the index rows `index`; null where a partial column doesn't cover a sample.

    Raises:
        PermanentError: a column has nothing for this shard.
    """
    uids = index.column("uid").combine_chunks()

    def read(spec: ColumnSpec, field: str) -> pa.Table:
        return align(columns.read(spec, shard, [field]), uids)

    values = Values(index.num_rows)
    for name in texts:
        table = index if name == RAW else read(run.text(name), "text")
        values.texts[name] = table.column("text").combine_chunks().cast(pa.string())
    for name in scores:
        field = run.find("score", name).fields["score"]
        values.scores[name] = _floats(read(run.score(name), field), field)
    for name in flags:
        column = read(run.flag(name), "flag").column("flag")
        values.flags[name] = (column.fill_null(False).to_numpy(), column.is_valid().to_numpy())
    return values


def screened(
    run: Run,
    columns: Columns,
    shard: Shard,
    uids: pa.Array,
    dropping: Iterable[tuple[str, float]],
    blurring: Iterable[str] = (),
) -> tuple[Bools, dict[str, int]]:
    """Which samples the screens leave, (N,) bool, and by reason how many the first screen that says no takes away.

    A sample without a score stays, except where faces that nobody has looked for would have to be blurred. Compared as
    float32, as rules compare.
    """
    kept, reasons = np.ones(len(uids), bool), {}

    def read(name: str) -> Scores:
        return _floats(align(columns.read(run.score(name), shard, ["score"]), uids), "score")

    bad = [(f"screen {name}: above {most:g}", read(name) > np.float32(most)) for name, most in dropping]
    bad += [(f"screen {name}: not looked at, so nothing can be blurred", np.isnan(read(name))) for name in blurring]
    for reason, samples in bad:
        reasons[reason] = int((kept & samples).sum())
        kept &= ~samples
    return kept, reasons


def _floats(table: pa.Table, field: str) -> Scores:
    column = table.column(field).cast(pa.float32())
    scores: Scores = column.fill_null(np.nan).to_numpy()
    return scores
