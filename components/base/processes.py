"""Processes that Ctrl-C and SIGTERM leave alone: whoever started them is stopped, and stops them."""

from __future__ import annotations

import signal
from multiprocessing.context import SpawnContext, SpawnProcess

STOPS = (signal.SIGINT, signal.SIGTERM)


class UndisturbedProcess(SpawnProcess):
    """A process that is born with the signals to stop blocked.

    Were it to ignore them in code of its own, a signal that came while it still imports modules would end it with a
    traceback, on the terminal of a person who has just pressed Ctrl-C.
    """

    def start(self) -> None:
        before = signal.pthread_sigmask(signal.SIG_BLOCK, STOPS)  # a new process has its parent's mask
        try:
            super().start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


class UndisturbedContext(SpawnContext):
    """A context of multiprocessing: new interpreters (a fork is not safe beside threads), left alone by signals."""

    Process = UndisturbedProcess
