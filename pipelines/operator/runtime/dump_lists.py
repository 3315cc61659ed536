"""The lists of dumps as schedules ask for them: many tick at one moment, and one question answers them all."""

from __future__ import annotations

import threading
import time
from concurrent.futures import Future
from dataclasses import dataclass, field

from components.base.errors import PermanentError, RecaptionError, TemporaryError
from components.stages.discover.dumps import list_dumps

LONGEST = 300.0  # seconds: four attempts of 30 s and their pauses, doubled; then the index sends without an end
MOST = 16  # indexes that are asked at once: each has a thread


@dataclass(frozen=True)
class _Answer:
    at: float
    dumps: list[str] = field(default_factory=list)
    refusal: tuple[type[RecaptionError], str] | None = None
    """Kind and message: the error itself would keep its connection."""


@dataclass
class DumpLists:
    """By the index's address; from several threads, none of which a slow index keeps for long."""

    kept: float = 60.0
    """Seconds that an answer stands; a bad one, too."""
    patience: float = 10.0
    """Seconds that who asks waits for it."""
    _answers: dict[str, _Answer] = field(default_factory=dict)
    _asking: dict[str, float] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def get(self, index: str) -> list[str] | None:
        """Newest first, at least one; None while it is asked, which may take two minutes.

        Raises:
            PermanentError: there is no such index, or it lists no dump.
            TemporaryError: it can't be reached.
        """
        with self._lock:
            answer, since = self._answers.get(index), self._asking.get(index)
            if answer is None or time.monotonic() - answer.at >= self.kept:
                answer = None
                if since is not None and time.monotonic() - since > LONGEST:
                    raise TemporaryError(f"dumps {index}: no end of its answer within {LONGEST:.0f} s")
                if since is not None or len(self._asking) >= MOST:
                    return None
                self._asking[index] = time.monotonic()
        if answer is None:
            coming: Future[_Answer] = Future()
            threading.Thread(target=self._ask, args=(index, coming), name="dumps", daemon=True).start()
            try:
                answer = coming.result(self.patience)
            except TimeoutError:
                return None
        if answer.refusal:
            kind, message = answer.refusal
            raise kind(message)
        return answer.dumps

    def _ask(self, index: str, coming: Future[_Answer]) -> None:
        found: _Answer | Exception
        try:
            found = _listed(index)
        except Exception as error:  # raised by who waits for it
            found = error
        with self._lock:
            del self._asking[index]
            if isinstance(found, _Answer):
                fresh = {i: a for i, a in self._answers.items() if found.at - a.at < self.kept}
                self._answers = {**fresh, index: found}
        if isinstance(found, _Answer):
            coming.set_result(found)
        else:
            coming.set_exception(found)


def _listed(index: str) -> _Answer:
    try:
        dumps = list_dumps(index)
        if not dumps:
            raise PermanentError(f"dumps {index}: found none; expected ids such as CC-MAIN-2026-43")
    except RecaptionError as error:
        return _Answer(time.monotonic(), refusal=(type(error), str(error)))
    except ValueError as error:  # of urllib, for an address such as http://[x
        return _Answer(time.monotonic(), refusal=(PermanentError, f"dumps {index}: {error}"))
    return _Answer(time.monotonic(), dumps)
