"""The time of GPUs and cores that a run's stages take, and what it comes to at the prices of `compute.pools`.

status.json has it per stage and pool: `work` is what was spent, `predicted` what was expected before.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

GPU, CORE = "GPU", "core"
THIS_MACHINE = "this machine"  # stands where a pool's name does; no pool of a recipe can have this name
LARGEST = 2.0**53


@dataclass(frozen=True)
class Work:
    """The work of one stage on one pool of nodes."""

    seconds: float
    """Of its workers, added up: pods, or the processes of a training."""
    samples: float
    """Number of samples that they did; of an evaluation, of results."""
    devices: int
    """Number of GPUs or cores that one worker holds, working or not."""
    unit: str
    """GPU or core."""

    @property
    def hours(self) -> float:
        """Hours of its GPUs or cores."""
        return self.seconds * self.devices / 3600

    def plus(self, seconds: float, samples: float) -> Work:
        """Return this work and more of it; never less than nothing."""
        return Work(max(0.0, self.seconds + seconds), max(0.0, self.samples + samples), self.devices, self.unit)

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "seconds": round(self.seconds, 3), "samples": round(self.samples, 1)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Work:
        """Read what `to_json` wrote. Raises ValueError, KeyError or TypeError where it is something else."""
        made = cls(float(value["seconds"]), float(value["samples"]), int(value["devices"]), str(value["unit"]))
        numbers = made.seconds, made.samples, made.devices
        if made.unit not in (GPU, CORE) or not all(0 <= number <= LARGEST for number in numbers):
            raise ValueError(f"found the work {dict(value)}")
        return made


@dataclass(frozen=True)
class Bill:
    """Hours, and what they cost."""

    gpu_hours: float = 0.0
    core_hours: float = 0.0
    money: float | None = None
    """In the currency of the recipe's prices; None where no pool that worked has a price."""
    is_whole: bool = True
    """False where some work has no known hours, or hours have no price though others do."""

    def __str__(self) -> str:
        said = [f"{self.gpu_hours:,.2f} GPU-hours"] if self.gpu_hours or not self.core_hours else []
        said += [f"{self.core_hours:,.2f} core-hours"] if self.core_hours else []
        said += [f"cost {self.money:,.2f}"] if self.money is not None else []
        return ", ".join(said) + ("" if self.is_whole else " and more")


def read_work(value: Mapping[str, Any] | None) -> dict[str, Work]:
    """Read a stage's work by pool; empty where there is none. Raises as `Work.from_json`."""
    return {str(pool): Work.from_json(work) for pool, work in (value or {}).items()}


def bill(prices: Mapping[str, float], works: Iterable[Mapping[str, Work] | None]) -> Bill:
    """Add up the work of stages, each by pool; None stands for a stage of which no hours are known.

    Args:
        prices: of an hour of one GPU or core, by the pool's name.
    """
    stages = list(works)
    listed = [(pool, work) for stage in stages for pool, work in (stage or {}).items() if work.hours]
    money = [work.hours * prices[pool] for pool, work in listed if pool in prices]
    known = None not in stages and len(money) in (0, len(listed))

    def hours(unit: str) -> float:
        return math.fsum(work.hours for _, work in listed if work.unit == unit)

    return Bill(hours(GPU), hours(CORE), math.fsum(money) if money else None, known)


def spent(prices: Mapping[str, float], status: Mapping[str, Any]) -> Bill:
    """Add up what a run's stages have spent so far, by its status.json."""
    return bill(prices, [read_work(entry.get("work")) for entry in status.get("stages", {}).values()])


def predicted(prices: Mapping[str, float], status: Mapping[str, Any]) -> Bill | None:
    """Add up what was expected when the run began, by its status.json; None where nothing was."""
    if "predicted" not in status:
        return None
    found = status["predicted"].values()
    return bill(prices, [None if work is None else read_work(work) for work in found])
