"""SIGTERM in the middle of a library's work, which raises an error of its own: still a stop, not a failure."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from components.base.errors import PermanentError, TemporaryError, Terminated, failure_of

# The signal comes while the executor starts its thread: its shutdown then joins a thread that never started.
EARLY = """
import os, signal, sys, threading
from concurrent.futures import ProcessPoolExecutor
from components.base.processes import UndisturbedContext
from pipelines import cli

@cli.app.command()
def work():
    end = {"initializer": os._exit, "initargs": (0,)}  # else the executor's process would outlive the test
    with ProcessPoolExecutor(1, mp_context=UndisturbedContext(), **end) as processes:
        threading.Thread.start = lambda thread: signal.raise_signal(signal.SIGTERM)
        processes.submit(len, "")

if __name__ == "__main__":
    sys.argv = ["recaption", "work"]
    cli.main()
"""


def test_sigterm_while_a_thread_starts_ends_a_process_quietly(tmp_path: Path) -> None:
    (tmp_path / "early.py").write_text(EARLY)
    child = subprocess.run(
        [sys.executable, tmp_path / "early.py"],
        env={**os.environ, "PYTHONPATH": os.getcwd()},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert child.returncode == 143, child.stderr
    assert "stopped by SIGTERM; finished work is kept, run the same command to go on\n" in child.stderr
    assert "cannot join" not in child.stderr  # what the executor's new process says when we are gone is its own


def raised(first: BaseException, then: Exception, explicit: bool) -> Exception:
    """Return an error that was raised while another one was handled."""
    try:
        try:
            raise first
        except BaseException as error:
            raise then from (error if explicit else None)
    except Exception as error:
        return error


@pytest.mark.parametrize("explicit", [True, False])
def test_what_follows_from_sigterm_is_recorded_as_a_stop(explicit: bool) -> None:
    after = raised(Terminated(), RuntimeError("cannot join thread before it is started"), explicit)
    assert failure_of(raised(after, TemporaryError("away"), explicit))["kind"] == "stopped"
    assert failure_of(raised(PermanentError("wrong"), TemporaryError("away"), explicit))["kind"] == "bad luck"
