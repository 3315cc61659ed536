"""What can be said of a pool once it is indexed, and before a model is loaded: is there anything to work on?"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence

from components.base.errors import PermanentError
from components.pool.columns import Columns, Record
from components.pool.members import IMAGES, describe_members
from components.pool.run import Run

log = logging.getLogger(__name__)

UNUSABLE = "sample: "  # how reasons begin that cost a sample
LOOKED = 100_000  # rows of the index whose uids are compared
SHOWN = 4  # reasons that are named


def check_pool(run: Run, columns: Columns, records: Sequence[Record]) -> None:
    """Check an indexed pool; log it where shards have uids in common.

    Args:
        records: those of the index, in the order of the pool's shards.

    Raises:
        PermanentError: no shard has a usable sample.
    """
    failures: Counter[str] = Counter()
    for record in records:
        failures.update(record.failures)
    if sum(record.rows for record in records) > sum(record.unusable for record in records):
        _say_repeated_uids(run, columns, records)
        return
    first = max(run.pool.shards, key=lambda shard: shard.size)
    with run.pool.source.open(first.tar, first.version) as file:
        members = describe_members(file)
    reasons = ", ".join(f"{reason.removeprefix(UNUSABLE)} {count:,}" for reason, count in failures.most_common(SHOWN))
    shards = f"{len(records):,} shard{'' if len(records) == 1 else 's'}"
    raise PermanentError(
        f"pool {run.pool.name}: no usable sample in its {shards} ({reasons}); {first.tar} {members}; a sample is "
        f"KEY.{IMAGES[0]} (or {', '.join(IMAGES[1:-1])}) with KEY.txt or KEY.json, and KEY has no dot"
    )


def _say_repeated_uids(run: Run, columns: Columns, records: Sequence[Record]) -> None:
    """Log how many uids of the first shards are in more than one: numbers that begin anew in every shard, mostly."""
    shards_of: Counter[str] = Counter()
    rows = shards = 0
    for shard, record in zip(run.pool.shards, records, strict=True):
        if shards > 1 and rows + record.rows > LOOKED:
            break
        shards_of.update(set(columns.read(run.index, shard, []).column("uid").to_pylist()))
        rows, shards = rows + record.rows, shards + 1
    if repeated := sum(count > 1 for count in shards_of.values()):
        log.warning(
            "pool %s: %d of the %d uids in its first %d shards are in several of them: they are different samples, but "
            "what is imported by uid is given to each of these",
            *(run.pool.name, repeated, len(shards_of), shards),
        )
