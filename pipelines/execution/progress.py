"""Progress of long work: a bar on a terminal, log lines elsewhere, with rate and time left."""

from __future__ import annotations

import logging
import os
import re
import sys
import threading
import time
from datetime import timedelta
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
from rich.progress import Progress as Bar

log = logging.getLogger(__name__)

EVERY = 10.0  # seconds between two log lines
RELAY = "RECAPTION_RELAY"  # set for a process whose parent shows its progress
RELAY_EVERY = 0.5
_RELAYED = re.compile(r"progress (\d+) (\d+)")

console = Console(stderr=True)
"""The terminal, for bar and log alike: two consoles would draw over each other."""


class Progress:
    """Counts samples and shards of one stage, or the tasks of one that counts nothing else."""

    def __init__(self, label: str, total: int, unit: str = "shards", counts: str = "samples") -> None:
        self.label, self.total, self.unit, self.counts = label, total, unit, counts
        self.count = self.finished = 0
        self.skipped = 0
        """Shards without samples: they were found done, so they say nothing about the time left."""
        self.began = self.spoke = time.monotonic()
        self.bar: Bar | None = None
        self._relays = RELAY in os.environ
        self._told = (0, 0)
        self._at_shard = 0
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        if console.is_terminal and not self._relays:
            columns = ("{task.description:<24}", BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[state]}"))
            self.bar = Bar(*columns, console=console)
            self.bar.start()
            self.task = self.bar.add_task(self.label, total=self.total, state=self.unit)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._relays:
            self._relay()
        elif self.bar:
            self.bar.stop()
        elif kind is None:
            log.info("%s: %s", self.label, ", ".join(self._state()))

    def add(self, samples: int, shards: int) -> None:
        """Count more samples computed and more shards committed; may be called from any thread."""
        with self._lock:
            self.count += samples
            self.finished += shards
            if shards and self.count == self._at_shard:
                self.skipped += shards
            if shards:
                self._at_shard = self.count
            self._speak()

    def take(self, line: str) -> bool:
        """Count a line of a child's stderr if it reports progress; return whether it did."""
        found = _RELAYED.fullmatch(line.strip())
        if found:
            self.add(int(found[1]), int(found[2]))
        return found is not None

    def _speak(self) -> None:
        silent = time.monotonic() - self.spoke
        if self._relays:
            if silent >= RELAY_EVERY:
                self._relay()
        elif self.bar:
            counted = self.unit == "shards" and self.finished  # until then the bar stands still, the count doesn't
            state = self._state()[2 if counted else 1 :]
            self.bar.update(self.task, completed=self.finished, state=" · ".join([self.unit, *state]))
        elif silent >= EVERY:
            self.spoke = time.monotonic()
            log.info("%s: %s", self.label, ", ".join(self._state()))

    def _relay(self) -> None:
        samples, shards = self.count - self._told[0], self.finished - self._told[1]
        self.spoke, self._told = time.monotonic(), (self.count, self.finished)
        print(f"progress {samples} {shards}", file=sys.stderr, flush=True)

    def _state(self) -> list[str]:
        """Describe shards, samples and, as far as they are known, rate and time left."""
        seconds = time.monotonic() - self.began
        state = [f"{self.finished:,} of {self.total:,} {self.unit}"]
        if self.unit == "shards":
            state.append(f"{self.count:,} {self.counts}")
            state += [f"{_round(self.count / seconds)} {self.counts}/s"] if self.count and seconds else []
        timed = self.finished - self.skipped
        if timed and self.finished < self.total:
            left = seconds / timed * (self.total - self.finished)
            state.append(f"about {timedelta(seconds=round(left))} left")
        return state


def _round(rate: float) -> str:
    return f"{rate:,.0f}" if rate >= 10 else f"{rate:.1f}"
