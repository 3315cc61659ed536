"""Runs the cases of a kind, and bounds what each may take: a result or a reason, in bounded time and memory."""

from __future__ import annotations

import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from random import Random

from components.base.printable import printable

SECONDS = 20.0  # of the processor for one case; the slowest input that a user means to give takes 1
MIB = 1536  # that the process may grow by: an image's budget, twice, and what a table's batches take
ANSWER = 1000  # characters of one line that a person is to read
REASON = 200  # characters of a reason that is counted

Case = Callable[[Random, Path], None]
"""Makes one input and checks what becomes of it; the folder is empty, and its own."""


class Broken(AssertionError):
    """A case that misbehaved; the message says how to run it again."""


def run_cases(kind: str, case: Case, seed: int, cases: range) -> None:
    """Run these cases of a kind.

    Raises:
        Broken: a case raised anything, or took too long or too much memory.
    """
    before = _peak()
    for number in cases:
        began = time.process_time()
        again = f"python -m tests.fuzz {kind} --seed {seed} --first {number} --cases 1"
        try:
            with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
                case(Random(f"{kind}/{seed}/{number}"), Path(folder))
        except Exception as error:
            raise Broken(f"{type(error).__name__}: {str(error)[:ANSWER]}; run it again: {again}") from error
        spent, grown = time.process_time() - began, _peak() - before
        if spent > SECONDS or grown > MIB:
            raise Broken(f"took {spent:.1f} s, memory grew by {grown} MiB; run it again: {again}")


def check_lines(error: Exception) -> None:
    """Assert that an error's lines can be read, and shown in a terminal."""
    lines = str(error).split("\n")
    assert all(0 < len(line) <= ANSWER for line in lines), f"lines of {[len(line) for line in lines]} characters"
    assert all(line == printable(line) for line in lines), f"control characters in {lines!r}"


def check_reason(reason: str) -> None:
    """Assert that a reason can be counted, and shown in a report."""
    assert 0 < len(reason) <= REASON, f"a reason of {len(reason)} characters"
    assert reason == printable(reason), f"control characters in {reason!r}"


def _peak() -> int:
    """Return the most memory that this process has had, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
