"""How many steps a training takes and who computes what of a batch: fixed before it starts, for any number of GPUs."""

from __future__ import annotations

from dataclasses import dataclass

from components.base.errors import PermanentError
from components.recipe.training import ScaleConfig


@dataclass(frozen=True)
class BatchPlan:
    """Steps and batches. Steps and samples depend on the scale alone."""

    world_size: int
    accumulation: int
    """Forward passes per step and GPU (open_clip's --accum-freq)."""
    batch_per_gpu: int
    steps_per_checkpoint: int
    checkpoints: int

    @property
    def batch_size(self) -> int:
        """Samples per step, over all GPUs."""
        return self.batch_per_gpu * self.accumulation * self.world_size

    @property
    def samples_per_checkpoint(self) -> int:
        return self.steps_per_checkpoint * self.batch_size

    @property
    def steps(self) -> int:
        return self.steps_per_checkpoint * self.checkpoints

    @property
    def samples(self) -> int:
        return self.samples_per_checkpoint * self.checkpoints


def make_plan(scale: ScaleConfig, world_size: int, accumulation: int = 1, multiple: int = 1) -> BatchPlan:
    """Divide a scale's batch among the GPUs and round its samples up to whole steps.

    Args:
        multiple: a checkpoint's steps are rounded up to it; DataComp's loader rounds to its number of workers.

    Raises:
        PermanentError: the batch can't be divided evenly; a smaller batch would be another training.
    """
    parts = world_size * accumulation
    if scale.batch_size % parts:
        usable = [n for n in range(world_size, 0, -1) if scale.batch_size % n == 0]
        raise PermanentError(
            f"train: a batch of {scale.batch_size} can't be divided among {world_size} processes"
            f"{f' × {accumulation} passes' if accumulation > 1 else ''}, one for each GPU (or node without one); "
            f"use {usable[0]} of them (CUDA_VISIBLE_DEVICES; in a cluster spec.compute.train), or another batchSize"
        )
    steps = -(-(scale.samples // scale.checkpoints) // scale.batch_size)
    steps = max(1, -(-steps // multiple)) * multiple
    return BatchPlan(world_size, accumulation, scale.batch_size // parts, steps, scale.checkpoints)


def next_accumulation(scale: ScaleConfig, world_size: int, accumulation: int) -> int | None:
    """Return the next number of passes that divides the batch, for a smaller batch per GPU; None at one sample."""
    share = scale.batch_size // world_size
    return next((n for n in range(accumulation + 1, share + 1) if share % n == 0), None)
