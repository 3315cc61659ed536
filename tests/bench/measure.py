"""What the benchmarks share: alternating runs, medians, peak memory."""

from __future__ import annotations

import json
import os
import resource
import statistics
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path


def seconds(*works: Callable[[], object], runs: int = 3) -> list[float]:
    """Median wall seconds of each; run in turn, A B A B, so that a drifting machine slows all alike."""
    took: list[list[float]] = [[] for _ in works]
    for _ in range(runs):
        for work, times in zip(works, took, strict=True):
            began = time.perf_counter()
            work()
            times.append(time.perf_counter() - began)
    return [statistics.median(times) for times in took]


def peak_mb() -> float:
    """Peak resident memory of this process and of its largest child, in MB."""
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    children = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    return (own + children) * 1024 / 1e6


def tree(command: Sequence[str]) -> float:
    """Run a command to its end; return the peak resident memory of it and all its descendants together, in MB."""
    peak, page = 0, os.sysconf("SC_PAGE_SIZE")
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as child:
        assert child.stderr is not None
        os.set_blocking(child.stderr.fileno(), False)
        said = b""
        while child.poll() is None:
            peak = max(peak, _resident(child.pid))
            said += child.stderr.read() or b""
            time.sleep(0.02)
    assert child.returncode == 0, said.decode()
    return peak * page / 1e6


def _resident(pid: int) -> int:
    """Return the resident pages of a process and its descendants; 0 for one that has ended."""
    try:
        own = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        children = [
            int(word)
            for task in Path(f"/proc/{pid}/task").iterdir()
            for word in (task / "children").read_text().split()
        ]
    except (OSError, IndexError):
        return 0
    return own + sum(map(_resident, children))


def show(**figures: str) -> None:
    print(json.dumps({name.replace("_", " "): value for name, value in figures.items()}), flush=True)
