"""Which workers do a stage: on which pools of nodes, and how many GPUs or cores each holds."""

from __future__ import annotations

import shutil
from collections.abc import Sequence

from components.engine.registry import column_stage, step
from components.engine.stage import Needs
from components.pool.run import Run
from components.recipe.compute import NodePool
from components.recipe.costs import CORE, GPU, Work
from components.recipe.nodes import cores_of, gpus_per_node, pools_for, train_pool

TRAIN = "train"


def needs_of(run: Run, key: str) -> Needs:
    """Return what a worker of a column or step needs."""
    return column_stage(run.nodes[key].spec.stage).needs if key in run.nodes else step(key).needs


def pools_of(run: Run, key: str, only: str | None = None) -> Sequence[NodePool]:
    """Return the pools of nodes that a cluster runs a stage on; `only` is the one that is asked for.

    Raises:
        PermanentError: that one is not there or doesn't take the stage.
    """
    if key == TRAIN:
        return [train_pool(run.spec.compute, only)]
    return pools_for(run.spec.compute, needs_of(run, key).gpu, only)


def no_work(run: Run, key: str, pool: NodePool | None) -> Work:
    """Return the empty work of a stage's workers on a pool, which says what one of them holds.

    Args:
        pool: None is this machine, where a worker has a GPU or core of its own.
    """
    if pool is None:
        return Work(0, 0, 1, GPU if needs_of(run, key).gpu and shutil.which("nvidia-smi") else CORE)
    if key == TRAIN and gpus_per_node(run.spec.compute.train, pool):
        return Work(0, 0, 1, GPU)  # a process of the training
    if key != TRAIN and pool.device and pool.accelerator:
        return Work(0, 0, pool.accelerator.count, GPU)
    return Work(0, 0, cores_of(pool), CORE)
