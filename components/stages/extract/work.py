"""What one extraction is: which files of a dump, read how, into how many partitions; and where its parts lie.

candidates/<dump>-<hash>/plan.json                        this; <dump> is `tables` for tables
candidates/<dump>-<hash>/spills/<task>.{<sha256>.spill,done.json}        what the tasks extracted
candidates/<dump>-<hash>/shards/<partition>.{<number>.<sha256>.parquet,done.json}   deduplicated
candidates/<dump>-<hash>/candidates.json                  the ordered shards, and what became of every candidate
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, Literal

from components.base.errors import PermanentError
from components.base.hashing import content_hash
from components.pool.shards import read_json
from components.stages.extract.text_rules import MOST_TEXT, MOST_URL
from components.storage.interface import Storage

VERSION = 1  # raise it when the code would find other candidates
SHARD = 10_000  # candidates of one shard, as DataComp's
# A WAT file of 2023 has some 200,000 images with a text; a candidate some 160 bytes. A partition is to fit into 128 MB
ROWS_OF_FILE = 200_000
BYTES_OF_ROW = 160
BUDGET = 128_000_000
UNPACKED = 3  # bytes of candidates to a byte of a table, if nothing else is in it
MOST_TASKS, MOST_DEDUP_TASKS = 1000, 256


@dataclass(frozen=True)
class Work:
    """One extraction. Its result depends on nothing else, neither on the tasks nor on where the files are read."""

    dump: str
    base: str
    """Where the files lie: https://…, s3://…, gs://… or a folder. No part of the hash: a mirror has the same."""
    files: tuple[str, ...]
    """Paths below `base`, of one kind."""
    kind: Literal["wat", "warc", "table"]
    partitions: int
    """Of the uids, by their leading bits; what one dedup task works through."""
    content: str = ""
    """Of tables: a hash of what `files` alone doesn't tell, where they lie and how large they are."""

    @cached_property
    def folder(self) -> str:
        rules = [VERSION, self.kind, MOST_URL, MOST_TEXT, SHARD]
        content = [self.content] if self.content else []
        return f"candidates/{self.dump}-{content_hash([rules, self.dump, self.files, self.partitions, *content])}"

    def spills(self, task: int) -> str:
        return f"{self.folder}/spills/{task:06d}"

    def shards(self, partition: int) -> str:
        return f"{self.folder}/shards/{partition:06d}"

    def files_of(self, task: int, tasks: int) -> Sequence[str]:
        """A contiguous range; lengths differ by at most one."""
        return self.files[task * len(self.files) // tasks : (task + 1) * len(self.files) // tasks]

    @property
    def tasks(self) -> int:
        """How many share the reading. Every partition reads of every task's spills, so they may not be too many."""
        return min(len(self.files), MOST_TASKS)

    @property
    def dedup_tasks(self) -> int:
        """How many share the deduplication: each reads every task's record before its first partition."""
        return min(self.partitions, MOST_DEDUP_TASKS)

    def partitions_of(self, task: int) -> range:
        """Of a task of the deduplication."""
        tasks = self.dedup_tasks
        return range(task * self.partitions // tasks, (task + 1) * self.partitions // tasks)

    def to_json(self) -> bytes:
        """What `from_json` reads."""
        return json.dumps(asdict(self)).encode()

    @classmethod
    def from_json(cls, data: bytes) -> Work:
        return cls.of(json.loads(data))

    @classmethod
    def of(cls, value: Mapping[str, Any]) -> Work:
        """Of a JSON value."""
        return cls(**{**value, "files": tuple(value["files"])})


def load_work(storage: Storage, folder: str) -> Work:
    """The extraction that was planned in this folder.

    Raises:
        PermanentError: it is none, or one of another version, which would find others.
    """
    work = read_json(storage, f"{folder}/plan.json", Work.of)
    if work.folder != folder:
        raise PermanentError(f"{folder}/plan.json: this version would write to {work.folder}; plan the run anew")
    return work


def partitions_for(files: int) -> int:
    """So many that a partition fits into BUDGET, if files are as large as Common Crawl's."""
    return -(-files * ROWS_OF_FILE * BYTES_OF_ROW // BUDGET)


def partitions_of_tables(size: int) -> int:
    """Of tables of so many bytes, packed to a third or with more fields than are read, which is about as much."""
    return max(1, -(-size * UNPACKED // BUDGET))
