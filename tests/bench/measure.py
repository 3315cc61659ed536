"""What the benchmarks share: alternating runs, medians, peak memory."""

from __future__ import annotations

import json
import resource
import statistics
import time
from collections.abc import Callable


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


def show(**figures: str) -> None:
    print(json.dumps({name.replace("_", " "): value for name, value in figures.items()}), flush=True)
