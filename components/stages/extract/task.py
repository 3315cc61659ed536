"""One task of extract: a range of a dump's files, or of tables → their candidates, sorted, in the storage."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import pyarrow.compute as pc

from components.base.version import version
from components.stages.extract import page, wat
from components.stages.extract.extraction import Extraction
from components.stages.extract.members import Damage
from components.stages.extract.records import WarcRecord, read_records
from components.stages.extract.spill import Spiller, TaskRecord, done_path, find_record
from components.stages.extract.table import candidates_of
from components.stages.extract.text_rules import candidate
from components.storage.commit import commit
from components.storage.interface import Storage
from components.storage.web import open_source

log = logging.getLogger(__name__)

KINDS = {"wat": (b"metadata", wat.images_of), "warc": (b"response", page.images_of)}
WITH_IMAGES = "with images"
ROWS = "rows of tables"
MOST_DAMAGES = 1000  # places that a record lists; it counts all
REPLACEMENT = "\ufffd"


def extract_task(
    storage: Storage,
    extraction: Extraction,
    task: int,
    tasks: int,
    progress: Callable[[int], None] = lambda files: None,
    allow_networks: Sequence[str] = (),
) -> TaskRecord:
    """Extract a task's files, unless that is done. The same files give the same bytes, however often it is killed.

    Args:
        progress: called with the number of files that are through since the last call.
        allow_networks: CIDRs of private networks in which a mirror may lie.

    Raises:
        PermanentError: a file that the dump lists is not there, or a table isn't what its name says.
        TemporaryError: it can't be read now.
    """
    files = extraction.files_of(task, tasks)
    if done := find_record(storage, extraction, task):
        progress(len(files))
        return done
    began = time.monotonic()
    source, extractor = (
        open_source(extraction.base, allow_networks),
        Extractor(Spiller(storage, extraction.spills(task), extraction.partitions)),
    )
    for name in files:
        with source.open(name) as file:
            extractor.read(name, file, extraction.kind)
        progress(1)
    extractor.spiller.flush()
    record = TaskRecord(**extractor.counts(), files=len(files), seconds=time.monotonic() - began, code=version())
    return commit(storage, done_path(extraction, task), record)


class Extractor:
    """Extracts a task's files and counts what became of every record and every image."""

    def __init__(self, spiller: Spiller) -> None:
        self.spiller = spiller
        self.records: Counter[str] = Counter()
        self.dropped: Counter[str] = Counter()
        self.damaged: Counter[str] = Counter(places=0, bytes=0)
        self.damages: list[dict[str, Any]] = []
        self.candidates = self.undecoded = 0

    def read(self, name: str, file: Any, kind: str) -> None:
        """Extract all of one file."""
        if kind == "table":
            self._table(name, file)
            return
        wanted, images_of = KINDS[kind]
        for found in read_records(file, wanted):
            if isinstance(found, Damage):
                self._note(name, found)
            elif isinstance(found, str):
                self.records[found] += 1
            else:
                self._page(found, images_of)

    def _page(self, record: WarcRecord, images_of: Callable[[WarcRecord], Any]) -> None:
        found = images_of(record)
        if isinstance(found, str):
            self.records[found] += 1
            return
        self.records[WITH_IMAGES] += 1
        where, images = found
        self.candidates += len(images)
        for image in images:
            kept = candidate(where, image)
            if isinstance(kept, str):
                self.dropped[kept] += 1
            else:
                self.spiller.add(*kept)
                self.undecoded += REPLACEMENT in kept[1]

    def _table(self, name: str, file: Any) -> None:
        for found in candidates_of(file, name):
            self.records[ROWS] += found.rows
            self.candidates += found.rows
            self.dropped.update(found.dropped)
            self.spiller.add_batch(found.kept)
            self.undecoded += pc.sum(pc.match_substring(found.kept.column("text"), REPLACEMENT)).as_py() or 0

    def _note(self, name: str, damage: Damage) -> None:
        log.warning("%s: %d bytes at %d can't be read (%s)", name, damage.bytes, damage.offset, damage.reason)
        self.damaged.update(places=1, bytes=damage.bytes)
        if len(self.damages) < MOST_DAMAGES:
            self.damages.append({"file": name, **asdict(damage)})

    def counts(self) -> dict[str, Any]:
        return {
            "spills": self.spiller.spills,
            "records": dict(sorted(self.records.items())),
            "candidates": self.candidates,
            "dropped": dict(sorted(self.dropped.items())),
            "lost": dict(sorted(self.spiller.lost.items())),
            "undecoded": self.undecoded,
            "damaged": dict(self.damaged),
            "damages": self.damages,
        }
