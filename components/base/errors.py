"""The two kinds of failure, their exit codes, and the signal to stop.

    RecaptionError
    ├── PermanentError   bad input: exit 42, never retried
    └── TemporaryError   bad luck: exit 75, retried
    Terminated           SIGTERM arrived: exit 143, nothing half-written

Every message is one line: what, where, what was found, what was expected, what to do.
"""

import logging
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

from components.base.addresses import without_login
from components.base.printable import printable

MISTAKE, BAD_LUCK, STOPPED = "mistake", "bad luck", "stopped"

log = logging.getLogger(__name__)


class RecaptionError(Exception):
    """Base of all failures that have a message for a person, in which no address has its password."""

    exit_code = 1

    def __init__(self, message: str = "") -> None:
        super().__init__(without_login(message))


class PermanentError(RecaptionError):
    """Bad input: the same call fails again. Kubernetes' FailIndex rule names this exit code."""

    exit_code = 42


class TemporaryError(RecaptionError):
    """Bad luck (network, preemption, a full disk): worth a retry. 75 is sysexits' EX_TEMPFAIL."""

    exit_code = 75


class Terminated(BaseException):
    """SIGTERM arrived. A BaseException, so that no `except Exception` takes it for a failed sample."""

    exit_code = 143


def from_system(error: BaseException) -> bool:
    """Return whether the operating system reported an error: a library's own OSError, as Pillow's, has no number."""
    return isinstance(error, OSError) and error.errno is not None


def chain_of(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error, then what it was raised from or while it was handled, and so on to the first error."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def was_terminated(error: BaseException) -> bool:
    """Return whether SIGTERM is behind an error: a library that it interrupts may raise an error of its own.

    An executor whose thread is just being started, for one, says that it cannot join a thread before it is started.
    """
    return any(isinstance(earlier, Terminated) for earlier in chain_of(error))


def failure_of(error: BaseException) -> dict[str, str]:
    """Return how a failure is recorded: its kind and its message in one line.

    The kinds are `mistake` (somebody must change something), `bad luck` (worth another try), `stopped` (a signal) and
    `bug` (of ours).
    """
    message = without_login(printable(" ".join(str(error).split())))
    if was_terminated(error) or not isinstance(error, Exception):
        return {"kind": STOPPED, "message": "a signal stopped it"}
    if isinstance(error, TemporaryError):
        return {"kind": BAD_LUCK, "message": message}
    if isinstance(error, RecaptionError):
        return {"kind": MISTAKE, "message": message}
    return {"kind": "bug", "message": f"{type(error).__name__}: {message}"}


def leave(code: int) -> NoReturn:
    """End this process at once, after everything was put away: the interpreter's own end would wait for no thread.

    A thread that is in C++ code then, as one that reads ahead is in pyarrow's, would end the process with SIGABRT.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def stop_on_sigterm() -> None:
    """Make SIGTERM end this process as Ctrl-C does, with exit code 143: what is committed stays."""

    def stop(*_: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise Terminated

    signal.signal(signal.SIGTERM, stop)


@contextmanager
def leaving_on_sigterm(advice: str) -> Iterator[None]:
    """Let SIGTERM end this process with exit code 143 and one logged line, whatever error it comes out as.

    Args:
        advice: ends that line.
    """
    stop_on_sigterm()
    try:
        yield
    except BaseException as error:
        if not was_terminated(error):
            raise
        log.info("stopped by SIGTERM; %s", advice)
        leave(Terminated.exit_code)
