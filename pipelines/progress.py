"""Progress of long work: a bar on a terminal, log lines elsewhere, with rate and time left."""

from __future__ import annotations

import logging
import sys
import time
from types import TracebackType
from typing import Self

from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

log = logging.getLogger(__name__)

EVERY = 10.0  # seconds between two log lines


class Progress:
    """Counts samples and shards of one stage."""

    def __init__(self, label: str, shards: int) -> None:
        self.label, self.total = label, shards
        self.count = self.finished = 0
        self.began = self.spoke = time.monotonic()
        self.bar: Bar | None = None

    def __enter__(self) -> Self:
        if sys.stderr.isatty():
            columns = (
                "{task.description:<24}",
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("shards · {task.fields[rate]}"),
            )
            self.bar = Bar(*columns, TimeRemainingColumn())
            self.bar.start()
            self.task = self.bar.add_task(self.label, total=self.total, rate="")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self.bar:
            self.bar.stop()
        elif kind is None:
            log.info("%s: %s", self.label, self._state())

    def add(self, samples: int, shards: int) -> None:
        """More samples are computed, more shards committed."""
        self.count += samples
        self.finished += shards
        self._speak()

    def _speak(self) -> None:
        if self.bar:
            self.bar.update(self.task, completed=self.finished, rate=self._rate())
        elif time.monotonic() - self.spoke >= EVERY:
            self.spoke = time.monotonic()
            log.info("%s: %s", self.label, self._state())

    def _rate(self) -> str:
        seconds = time.monotonic() - self.began
        return f"{self.count / seconds:,.0f} samples/s" if self.count and seconds else ""

    def _state(self) -> str:
        seconds = time.monotonic() - self.began
        left = seconds / self.finished * (self.total - self.finished) if self.finished else 0
        parts = [f"{self.finished} of {self.total} shards", f"{self.count:,} samples", self._rate()]
        parts.append(f"about {left:,.0f} s left" if left else "")
        return ", ".join(p for p in parts if p)
