"""An extraction: which files of a dump are read, how, into how many partitions; and where its parts lie.

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
class Extraction:
    """One extraction. Its result depends on nothing else, neither on the tasks nor on where the files are read."""

    dump: str
    base: str
    """Where the files lie: https://…, s3://…, gs://… or a folder. No part of the hash: a mirror has the same."""
    files: tuple[str, ...]
    """Paths below `base`, of one kind."""
    kind: Literal["wat", "warc", "table"]
    partitions: int
    """Number of ranges that the uids are cut into by their leading bits; a dedup task works through some of them."""
    content: str = ""
    """For tables: a hash of what `files` alone doesn't tell, where they lie and how large they are."""

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
        """Return a task's files, a contiguous range; lengths differ by at most one."""
        return self.files[task * len(self.files) // tasks : (task + 1) * len(self.files) // tasks]

    @property
    def tasks(self) -> int:
        """Number of tasks that share the reading. Every partition reads every task's spills: not too many."""
        return min(len(self.files), MOST_TASKS)

    @property
    def dedup_tasks(self) -> int:
        """Number of tasks that share the deduplication: each reads every task's record before its first partition."""
        return min(self.partitions, MOST_DEDUP_TASKS)

    def partitions_of(self, task: int) -> range:
        """Return the partitions of a task of the deduplication."""
        tasks = self.dedup_tasks
        return range(task * self.partitions // tasks, (task + 1) * self.partitions // tasks)

    def to_json(self) -> bytes:
        """Write the JSON that `from_json` reads."""
        return json.dumps(asdict(self)).encode()

    @classmethod
    def from_json(cls, data: bytes) -> Extraction:
        return cls.of(json.loads(data))

    @classmethod
    def of(cls, value: Mapping[str, Any]) -> Extraction:
        """Make an extraction of its JSON value."""
        return cls(**{**value, "files": tuple(value["files"])})


def load_extraction(storage: Storage, folder: str) -> Extraction:
    """Read the extraction that was planned in this folder.

    Raises:
        PermanentError: it is none, or one of another version, which would find others.
    """
    extraction = read_json(storage, f"{folder}/plan.json", Extraction.of)
    if extraction.folder != folder:
        raise PermanentError(f"{folder}/plan.json: this version would write to {extraction.folder}; plan the run anew")
    return extraction


def partitions_for(files: int) -> int:
    """Return enough partitions for one to fit into BUDGET, if files are as large as Common Crawl's."""
    return -(-files * ROWS_OF_FILE * BYTES_OF_ROW // BUDGET)


def partitions_of_tables(size: int) -> int:
    """Return the partitions for tables of `size` bytes: packed to a third, or with more fields than are read."""
    return max(1, -(-size * UNPACKED // BUDGET))
