"""The lists of dumps as schedules ask for them: many tick at one moment, and one question answers them all."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field

from components.discover.dumps import list_dumps
from components.pool.errors import PermanentError, RecaptionError


@dataclass
class DumpLists:
    """By the index's address; from several threads."""

    kept: float = 60.0
    """Seconds that an answer stands; a bad one, too."""
    _answers: dict[str, tuple[float, list[str] | RecaptionError]] = field(default_factory=dict)
    _asking: set[str] = field(default_factory=set)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def get(self, index: str) -> list[str] | None:
        """Newest first, at least one; None while another thread asks, which may take two minutes.

        Raises:
            PermanentError: there is no such index, or it lists no dump.
            TemporaryError: it can't be reached.
        """
        with self._lock:
            at, answer = self._answers.get(index, (0.0, None))
            if answer is None or time.monotonic() - at >= self.kept:
                if index in self._asking:
                    return None
                self._asking.add(index)
                answer = None
        if answer is None:
            answer = self._ask(index)
        if isinstance(answer, RecaptionError):
            raise type(answer)(str(answer))  # a new one each time: a traceback grows with every raise
        return answer

    def _ask(self, index: str) -> list[str] | RecaptionError:
        answer: list[str] | RecaptionError
        try:
            answer = list_dumps(index)
            if not answer:
                answer = PermanentError(f"dumps {index}: found none; expected ids such as CC-MAIN-2026-43")
        except RecaptionError as error:
            answer = error
        finally:
            with self._lock:
                self._asking.discard(index)
        with self._lock:
            self._answers[index] = time.monotonic(), answer
        return answer
