"""Patches of open_clip's trainer: our data, a bounded tokenizer, nodes with a disk each, several processes on a CPU."""

from __future__ import annotations

import os
from typing import Any

import torch
from open_clip_train.data import DataInfo
from torch.nn.parallel import DistributedDataParallel

from components.base.errors import TemporaryError
from components.models.texts import bounded
from components.stages.train import data
from components.stages.train.checkpoints import LATEST


def adapt(trainer: Any) -> None:
    """Replace what open_clip_train.main calls."""
    broadcast = trainer.broadcast_object

    def own_checkpoint(args: Any, path: str | None) -> str | None:
        """Return the path of this node's own copy: open_clip would send everyone the first rank's path."""
        return os.path.join(args.checkpoint_path, LATEST) if broadcast(args, path) else None

    trainer.broadcast_object = own_checkpoint
    trainer.get_data = get_data
    get_tokenizer = trainer.get_tokenizer
    trainer.get_tokenizer = lambda *args, **options: bounded(get_tokenizer(*args, **options))
    if not torch.cuda.is_available():
        parallel: Any = torch.nn.parallel
        parallel.DistributedDataParallel = OnCpu


def get_data(args: Any, transforms: tuple[Any, Any], epoch: int = 0, tokenizer: Any = None) -> dict[str, DataInfo]:
    """Do what data.get_data does, once all ranks agree on where they are; else they would wait for each other for ever.

    Raises:
        TemporaryError: the ranks disagree. They read the storage again before the next attempt.
    """
    if args.distributed:
        mine = {"checkpoint": epoch, "samples at once": args.batch_size, "passes": args.accum_freq}
        everyone: list[Any] = [None] * args.world_size
        torch.distributed.all_gather_object(everyone, mine)
        for key, value in everyone[0].items():
            other = next((theirs[key] for theirs in everyone if theirs[key] != value), value)
            if other != value:
                raise TemporaryError(f"the nodes would go on from different places, {key} {value} and {other}")
    return data.get_data(args, transforms, epoch, tokenizer)


class OnCpu(DistributedDataParallel):
    """Drops the device that open_clip names for every model: on a CPU torch wants none."""

    def __init__(self, module: torch.nn.Module, device_ids: Any = None, **options: Any) -> None:
        super().__init__(module, **options)
