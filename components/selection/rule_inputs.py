"""Reads the texts, scores and flags that rules and `drop` look at, aligned to a shard's index."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np
import pyarrow as pa

from components.base.errors import PermanentError
from components.base.hashing import content_hash
from components.base.threads import map_ahead
from components.pool.columns import Columns, align
from components.pool.run import Run
from components.pool.shards import Shard
from components.pool.specs import ColumnSpec
from components.recipe.columns import RAW
from components.recipe.mixtures import Condition, Mixture
from components.selection.quantile import thresholds
from components.selection.rules import Bools, Scores, Share, Thresholds, Values, meets, share_of, shares_of, tested_by
from components.selection.score_reader import ScoreReader


def find_thresholds(
    run: Run, mixtures: Iterable[Mixture], known: Iterable[str], reader: ScoreReader | None = None
) -> dict[Share, float]:
    """Find the thresholds of the shares that these mixtures and the recipe's `drop` use, of the known scores.

    Where no sample has a score, the threshold is NaN: no score is among the best, and the others' mixtures go on.

    Args:
        reader: keeps what it has read of the scores; None where nobody looks at them again.

    Raises:
        PermanentError: a score covers only part of the pool, so that its best share would be biased; or nobody has a
            score of which `drop` takes the best share.
    """
    needed = [pair for mixture in mixtures for rule in mixture.rules for pair in shares_of(mixture, rule)]
    dropped = [pair for condition in run.spec.drop if (pair := share_of(condition))]
    shares: dict[str, set[float]] = {}
    for score, share in (*needed, *dropped):
        shares.setdefault(score, set()).add(share)
    found: dict[Share, float] = {}
    reader = reader or ScoreReader(run, run.open_columns(), kept=0)
    for score in sorted(shares.keys() & set(known)):
        require_complete(run, run.score(score), f"top of {score}")
        try:
            values = thresholds(reader.passes(score), sorted(shares[score]))
        except PermanentError as error:
            if score not in {name for name, _ in dropped}:
                found |= {(score, share): math.nan for share in shares[score]}
                continue
            raise PermanentError(f"top of {score}: {error}; see why in column {run.score(score).folder}") from error
        found |= {(score, share): value for share, value in values.items()}
    return found


def require_complete(run: Run, spec: ColumnSpec, purpose: str) -> None:
    """Check that the column covers every usable sample of the pool; raise PermanentError otherwise."""
    covered, usable = coverage(run, spec)
    if covered < usable:
        raise PermanentError(
            f"{purpose}: column {spec.folder} covers {covered:,} of {usable:,} usable samples; a `top` or a statistic "
            "over a partial column would be biased: run its stage over the whole pool first"
        )


def require_finished(run: Run, columns: Columns, keys: Iterable[str]) -> None:
    """Check that this run's part of every node in `keys` is there for every shard; raise PermanentError otherwise."""
    for node in (run.nodes[key] for key in keys):
        if lacking := run.lacking(columns, node):
            raise PermanentError(
                f"{node.key}: not finished for {len(lacking):,} of {len(run.pool.shards):,} shards, the first is "
                f"{lacking[0].name} (column {node.spec.folder}, part {node.part}); run it first"
            )


def coverage(run: Run, spec: ColumnSpec) -> tuple[int, int]:
    """Count (samples that the column covers, usable samples of the pool)."""
    columns = run.open_columns()
    for column in (spec, run.index):
        columns.parts(column, run.pool.shards[0])

    def count(shard: Shard) -> tuple[int, int]:
        usable = columns.usable(run.index, shard)
        return (usable if spec.hash == run.index.hash else min(usable, columns.rows(spec, shard))), usable

    counts = list(map_ahead(count, run.pool.shards))
    return sum(c for c, _ in counts), sum(u for _, u in counts)


def analysis_path(run: Run, text: str) -> str:
    """Return where `analyze` keeps the statistics of a text over this pool, as far as the text is covered now.

    The cosines are by this recipe's scorer, so that the score's column is part of the name.
    """
    spec, score = run.text(text), run.score(text).hash if run.has("score", text) else None
    name = f"{spec.folder}-{content_hash([run.content, score, *coverage(run, spec)])}"
    return f"pools/{run.pool.name}/analyses/{name}.json"


def read_values(
    run: Run,
    columns: Columns,
    shard: Shard,
    index: pa.Table,
    texts: Iterable[str],
    scores: Iterable[str],
    flags: Iterable[str],
) -> Values:
    """Read these columns' values of the index rows `index`; null where a partial column doesn't cover a sample.

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


def drop_samples(
    run: Run,
    columns: Columns,
    shard: Shard,
    index: pa.Table,
    drop: Sequence[Condition],
    thresholds: Thresholds,
) -> tuple[Bools, dict[str, int]]:
    """Find the samples that meet no condition of `drop`.

    A sample without the score or flag meets none and is kept. Numbers are compared as rules compare them.

    Returns:
        (N,) bool, which of the index rows are kept, and by reason how many are dropped: a sample that meets several
        conditions counts for the first.
    """
    values = read_values(run, columns, shard, index, (), *tested_by(drop))
    return first_reasons(index.num_rows, drops(drop, values, thresholds))


def drops(drop: Sequence[Condition], values: Values, thresholds: Thresholds) -> list[tuple[str, Bools]]:
    """Return for each condition of `drop` the reason it gives and the samples that meet it."""
    return [(f"dropped: {c.in_words()}", meets(c, values, thresholds)) for c in drop]


def unseen_by(run: Run, columns: Columns, shard: Shard, uids: pa.Array) -> list[tuple[str, Bools]]:
    """Find the samples that the detectors behind `trainingSets.blur` have not looked at.

    Nobody knows what would have to be blurred in them, so that no training set may have them.

    Returns:
        For each detector the reason and (N,) bool.
    """

    def unseen(name: str) -> Bools:
        boxes = align(columns.read(run.boxes(name), shard, ["boxes"]), uids).column("boxes")
        found: Bools = boxes.is_null().to_numpy()
        return found

    blur = run.spec.training_sets.blur
    return [(f"not looked at by {name}, so nothing can be blurred", unseen(name)) for name in blur]


def first_reasons(rows: int, reasons: Iterable[tuple[str, Bools]]) -> tuple[Bools, dict[str, int]]:
    """Return which of the rows no reason leaves out, and how many each one does: a row counts for its first."""
    kept, counts = np.ones(rows, bool), Counter[str]()
    for reason, samples in reasons:
        counts[reason] += int((kept & samples).sum())
        kept &= ~samples
    return kept, counts


def _floats(table: pa.Table, field: str) -> Scores:
    column = table.column(field).cast(pa.float32())
    scores: Scores = column.fill_null(np.nan).to_numpy()
    return scores
