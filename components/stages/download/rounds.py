"""The rounds of a pool's download: first all candidates, then, as often as the recipe says, what failed.

    pools/<pool>/shards/<shard>.…                      the first round's
    pools/<pool>/retries/transient-all/<shard>.…       the second re-drive's, of a recipe with `retry: [transient, all]`
    pools/<pool>/retries/transient-all/plan.json       what it tries; candidates/ beside it has them

A round stands on those before it and is named by all of their kinds, so that another recipe's never mix with it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

from components.base.errors import PermanentError
from components.base.threads import map_ahead
from components.pool.run import Run
from components.pool.shards import Shard, read_json
from components.recipe.sources import Retry
from components.stages.download.redrive import plan_redrive
from components.stages.download.shard import Candidates, ShardRecord, done_path
from components.storage.commit import read_record
from components.storage.interface import Storage

READERS = 16  # records that are read at a time: 128,000 of a bucket, 30 ms each, take 4 minutes


@dataclass(frozen=True)
class Round:
    """One pass over the candidates: round 0 tries all of them, later rounds retry failures."""

    storage: Storage
    pool: str
    extraction: str
    """Folder of the candidates of the first round."""
    kinds: tuple[Retry, ...]
    """Kinds of the re-drives up to and including this one; none in the first round."""

    @property
    def folder(self) -> str:
        """Folder of the shards that this round writes."""
        return f"pools/{self.pool}/" + (f"retries/{self._name}" if self.kinds else "shards")

    @property
    def _name(self) -> str:
        return "-".join(self.kinds)

    def earlier(self) -> list[Round]:
        return [replace(self, kinds=self.kinds[:i]) for i in range(len(self.kinds))]

    @cached_property
    def candidates(self) -> list[Candidates]:
        """The candidates that this round tries, an entry per shard; planned at the first call.

        Raises:
            PermanentError: what comes before isn't finished.
        """
        if not self.kinds:
            path = f"{self.extraction}/candidates.json"
            if self.storage.size(path) is None:
                raise PermanentError(f"{self.storage.uri}/{path}: is not there; run extract and extract:dedup first")
            files = read_json(self.storage, path, lambda value: [shard["file"] for shard in value["shards"]])
            return [Candidates(f"{number:08d}", file) for number, file in enumerate(files)]
        path = f"{self.folder}/plan.json"
        if self.storage.size(path) is None:
            self.storage.create(path, json.dumps([asdict(c) for c in self._plan()], indent=1).encode())
        return read_json(self.storage, path, lambda values: [Candidates(**value) for value in values])

    def _plan(self) -> list[Candidates]:
        earlier = self.earlier()
        finished = [record for before in earlier for record in before.records()]
        return plan_redrive(
            self.storage,
            finished,
            self.kinds[-1],
            first=sum(len(before.candidates) for before in earlier),
            folder=f"{self.folder}/candidates",
        )

    def missing(self) -> list[Candidates]:
        """Return the candidates that have no shard yet, after one listing of the folder."""
        there: dict[str, set[str]] = {}
        for entry in self.storage.list(f"{self.folder}/"):
            shard, _, rest = entry.path.removeprefix(f"{self.folder}/").partition(".")
            there.setdefault(shard, set()).add(rest.rpartition(".")[2])
        return [c for c in self.candidates if not there.get(c.shard, set()) >= {"tar", "parquet", "json"}]

    def records(self) -> Iterator[ShardRecord]:
        """Yield the records of all its shards. Raises PermanentError if a shard isn't finished."""
        return map_ahead(self._record, [c.shard for c in self.candidates], READERS)

    def _record(self, shard: str) -> ShardRecord:
        absent = f"shard {shard} is not downloaded; run the round before first"
        return read_record(self.storage, done_path(self.folder, shard), ShardRecord, absent)

    def shard_of(self, record: ShardRecord) -> Shard:
        """Return the shard as the pool lists it; a re-drive's has a name that no other recipe's retries have."""
        shard = record.to_shard(f"pools/{self.pool}/")
        return replace(shard, name=f"{self._name}-{shard.name}") if self.kinds else shard

    def summary(self, records: Sequence[ShardRecord]) -> dict[str, Any]:
        """Summarise what became of the round's candidates."""
        failures: dict[str, int] = {}
        for record in records:
            for reason, count in record.failures.items():
                failures[reason] = failures.get(reason, 0) + count
        return {
            "retry": self.kinds[-1] if self.kinds else None,
            "shards": len(records),
            "candidates": sum(record.candidates for record in records),
            "samples": sum(record.samples for record in records),
            "failures": dict(sorted(failures.items(), key=lambda item: -item[1])),
        }


def round_of(run: Run, number: int) -> Round:
    """Return a run's round by its number; 0 is the first, the others are its re-drives."""
    assert run.ingest is not None  # no other run downloads
    kinds = tuple(run.spec.download.retry[:number]) if run.spec.download else ()
    return Round(run.storage, run.pool.name, run.ingest.candidates, kinds)
