"""The lists of dumps as schedules ask for them: many tick at one moment, and one question answers them all."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field

from components.discover.dumps import list_dumps
from components.pool.errors import PermanentError, RecaptionError


@dataclass(frozen=True)
class _Answer:
    at: float
    dumps: list[str] = field(default_factory=list)
    refusal: tuple[type[RecaptionError], str] | None = None
    """Kind and message: the error itself would keep its connection."""


@dataclass
class DumpLists:
    """By the index's address; from several threads."""

    kept: float = 60.0
    """Seconds that an answer stands; a bad one, too."""
    _answers: dict[str, _Answer] = field(default_factory=dict)
    _asking: set[str] = field(default_factory=set)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def get(self, index: str) -> list[str] | None:
        """Newest first, at least one; None while another thread asks, which may take two minutes.

        Raises:
            PermanentError: there is no such index, or it lists no dump.
            TemporaryError: it can't be reached.
        """
        with self._lock:
            answer = self._answers.get(index)
            fresh = answer is not None and time.monotonic() - answer.at < self.kept
            if not fresh and index in self._asking:
                return None
            if not fresh:
                self._asking.add(index)
        if answer is None or not fresh:
            answer = self._ask(index)
        if answer.refusal:
            kind, message = answer.refusal
            raise kind(message)
        return answer.dumps

    def _ask(self, index: str) -> _Answer:
        try:
            answer = _listed(index)
            with self._lock:
                fresh = {i: a for i, a in self._answers.items() if answer.at - a.at < self.kept}
                self._answers = {**fresh, index: answer}
            return answer
        finally:
            with self._lock:
                self._asking.discard(index)


def _listed(index: str) -> _Answer:
    try:
        dumps = list_dumps(index)
        if not dumps:
            raise PermanentError(f"dumps {index}: found none; expected ids such as CC-MAIN-2026-43")
    except RecaptionError as error:
        return _Answer(time.monotonic(), refusal=(type(error), str(error)))
    return _Answer(time.monotonic(), dumps)
