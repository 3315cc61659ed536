"""One call of torchrun: starts it, reads its output, stops it with us, and turns its end into one clear line."""

from __future__ import annotations

import json
import logging
import math
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import IO

import components
from components.base.errors import PermanentError, RecaptionError, TemporaryError
from components.stages.train.marks import FAILURE, UNDECODABLE

log = logging.getLogger(__name__)

_PROGRESS = re.compile(
    r"Train Epoch: (?P<epoch>\d+) \[\s*(?P<done>\d+)/(?P<all>\d+) .*? (?P<rate>[\d.e+]+)/s, .*\bLoss: (?P<loss>\S+) \("
)
_BAD_IMAGE = re.compile(rf"{UNDECODABLE} (\S+ \S+): (.*)")
_EXIT = re.compile(r"exitcode\s*: (-?\d+)")
_NOISE = re.compile(
    r"^(\s|$|[EWI]\d{4} |={4,}|-{4,}|Traceback |Root Cause|Failures:|\[rank|time\s|host\s|rank\s|exitcode)"
)
# torchrun's --standalone has its processes meet under the machine's own name, for which they ask for 11 minutes where
# it does not resolve. The loopback address is always there, and open to this machine alone.
ALONE = ["--rdzv-backend", "c10d", "--rdzv-endpoint", "127.0.0.1:0", "--local-addr", "127.0.0.1"]
_GRACE = 10.0  # seconds between SIGTERM and SIGKILL


class OutOfMemory(RecaptionError):
    """A GPU had too little memory for its share of the batch."""


@dataclass
class TrainerLog:
    """Rates, losses and failures read from the trainer's output."""

    loss: float | None = None
    """The loss of the last logged step."""
    rates: list[float] = field(default_factory=list)
    """Samples per second over all GPUs, per logged step."""
    undecodable: dict[str, str] = field(default_factory=dict)
    """Tar and key → reason."""
    failures: list[dict[str, str]] = field(default_factory=list)
    last: str = ""
    """The last line that isn't part of a traceback or of torchrun's report."""
    signals: list[int] = field(default_factory=list)
    """Exit codes that torchrun reported."""

    @property
    def rate(self) -> float | None:
        """The first step of a process includes its warming up."""
        return median(self.rates[1:] or self.rates) if self.rates else None

    def add_line(self, line: str) -> bool:
        """Take one line; return whether it tells how far the training is."""
        if line.startswith(FAILURE):
            self.failures.append(json.loads(line.removeprefix(FAILURE)))
        elif step := _PROGRESS.search(line):
            self.loss = float(step["loss"])
            self.rates.append(float(step["rate"]))
            return True
        elif bad := _BAD_IMAGE.search(line):
            self.undecodable[bad[1]] = bad[2]
        elif code := _EXIT.search(line):
            self.signals.append(int(code[1]))
        elif not _NOISE.match(line):
            self.last = line.rstrip()
        return False


def read_log(path: Path) -> TrainerLog:
    """Read the log that all attempts at this training share."""
    progress = TrainerLog()
    if path.exists():
        with open(path, encoding="utf-8", errors="replace") as lines:
            for line in lines:
                progress.add_line(line)
    return progress


def torchrun(job: Path, processes: int, log_file: Path, together: bool = False) -> TrainerLog:
    """Train until it ends.

    Args:
        together: meet the other nodes where PET_MASTER_ADDR says; torchrun reads PET_* by itself.

    Raises:
        OutOfMemory: a GPU's memory was too small.
        PermanentError: the same would happen again.
        TemporaryError: a process was killed, a peer or a GPU was lost, storage failed.
    """
    command = [sys.executable, "-m", "torch.distributed.run", *([] if together else ALONE)]
    command += ["--nproc-per-node", str(processes), "-m", "components.stages.train.launch", str(job)]
    root = str(Path(next(iter(components.__path__))).parent)
    python_path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,  # closes when we die, however: launch.py ends with it
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**os.environ, "PYTHONPATH": python_path, "PYTHONUNBUFFERED": "1"},
        start_new_session=True,
        text=True,
        errors="replace",
    )
    progress = TrainerLog()
    try:
        assert process.stdout is not None
        with open(log_file, "a", encoding="utf-8") as file:
            _listen(process.stdout, file, progress)
        code = process.wait()
    finally:
        _stop(process)
    if code:
        raise _failure(progress, code, log_file)
    if progress.loss is not None and not math.isfinite(progress.loss):
        raise PermanentError(f"train: the loss became {progress.loss}; lower learningRate or lengthen warmup")
    return progress


def _listen(lines: Iterable[str], file: IO[str], progress: TrainerLog) -> None:
    for line in lines:
        file.write(line)
        file.flush()
        if progress.add_line(line):
            log.info("%s", line.partition("|")[2].partition("|")[2].strip() or line.strip())


def _stop(process: subprocess.Popen[str]) -> None:
    """End torchrun and what it started, if they still run."""
    for pipe in (process.stdin, process.stdout):
        if pipe:
            with suppress(OSError):
                pipe.close()
    for number in (signal.SIGTERM, signal.SIGKILL):
        if process.poll() is not None:
            return
        with suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        end = time.monotonic() + _GRACE
        while process.poll() is None and time.monotonic() < end:
            time.sleep(0.05)


def _failure(progress: TrainerLog, code: int, log_file: Path) -> RecaptionError:
    """Find the cause among what every rank reported: the first that explains the others."""
    where = f"(all of it: {log_file})"
    for kind, error in (("memory", OutOfMemory), ("permanent", PermanentError), ("temporary", TemporaryError)):
        for failure in progress.failures:
            if failure["kind"] == kind:
                return error(f"train: {failure['message']} {where}")
    killed = next((c for c in [*progress.signals, code] if c < 0), None)
    why = f"was killed by signal {-killed}{' (out of memory?)' if killed == -9 else ''}" if killed else f"exit {code}"
    return TemporaryError(f"train: the trainer {why}: {progress.last} {where}")
