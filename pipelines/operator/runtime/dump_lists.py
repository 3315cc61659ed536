"""The lists of dumps: many schedules have their time at one moment, and one request answers them all."""

from __future__ import annotations

import threading
import time
from concurrent.futures import Future
from dataclasses import dataclass, field

from components.base.errors import PermanentError, RecaptionError, TemporaryError
from components.stages.discover.dumps import list_dumps

LONGEST = 300.0  # seconds: four attempts, each 40 s to connect and 30 s for the answer, and their pauses
MOST = 16  # indexes that are asked at once, each by a thread
SHARE = 4  # of them for one namespace's schedules: the others' don't wait for its slow indexes


@dataclass(frozen=True)
class _Listing:
    """The answer of an index."""

    at: float
    dumps: list[str] = field(default_factory=list)
    refusal: tuple[type[RecaptionError], str] | None = None
    """Kind and message: the error itself would keep its connection."""


@dataclass
class DumpLists:
    """Lists of dumps by the index's address, for several threads; a slow index delays none of them for long."""

    kept: float = 60.0
    """Seconds that an answer, also a refusal, is kept."""
    patience: float = 3.0
    """Seconds that a caller waits for an answer."""
    _answers: dict[str, _Listing] = field(default_factory=dict)
    _asking: dict[str, tuple[float, str]] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def get(self, index: str, namespace: str = "") -> list[str] | None:
        """Return at least one dump, the newest first; None while the index is being asked, or too many others are.

        Args:
            namespace: whose schedule asks.

        Raises:
            PermanentError: there is no such index, or it lists no dump.
            TemporaryError: it can't be reached.
        """
        with self._lock:
            answer, (since, _) = self._answers.get(index), self._asking.get(index, (None, ""))
            if answer is None or time.monotonic() - answer.at >= self.kept:
                answer = None
                if since is not None and time.monotonic() - since > LONGEST:
                    raise TemporaryError(f"dumps {index}: no end of its answer within {LONGEST:.0f} s")
                theirs = sum(asker == namespace for _, asker in self._asking.values())
                if since is not None or len(self._asking) >= MOST or theirs >= SHARE:
                    return None
                self._asking[index] = (time.monotonic(), namespace)
        if answer is None:
            coming: Future[_Listing] = Future()
            threading.Thread(target=self._ask, args=(index, coming), name="dumps", daemon=True).start()
            try:
                answer = coming.result(self.patience)
            except TimeoutError:
                return None
        if answer.refusal:
            kind, message = answer.refusal
            raise kind(message)
        return answer.dumps

    def _ask(self, index: str, coming: Future[_Listing]) -> None:
        """Ask an index, keep the answer and hand it to the caller that waits."""
        found: _Listing | Exception
        try:
            found = _listed(index)
        except Exception as error:  # the waiting caller raises it
            found = error
        with self._lock:
            del self._asking[index]
            if isinstance(found, _Listing):
                fresh = {i: a for i, a in self._answers.items() if found.at - a.at < self.kept}
                self._answers = {**fresh, index: found}
        if isinstance(found, _Listing):
            coming.set_result(found)
        else:
            coming.set_exception(found)


def _listed(index: str) -> _Listing:
    """Ask an index for its dumps."""
    try:
        dumps = list_dumps(index)
        if not dumps:
            raise PermanentError(f"dumps {index}: found none; expected ids such as CC-MAIN-2026-43")
    except RecaptionError as error:
        return _Listing(time.monotonic(), refusal=(type(error), str(error)))
    return _Listing(time.monotonic(), dumps)
