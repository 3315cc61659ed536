"""Which nodes of a recipe train, and with how many GPUs or cores."""

from __future__ import annotations

from components.base.errors import PermanentError
from components.recipe.compute import Accelerator, Compute, NodePool, TrainNodes

DEFAULT_CPU = {True: "4", False: "1"}  # by GPU: decoding 4 × 150 images/s feeds CLIP ViT-L/14 on an A100


def train_pool(compute: Compute, only: str | None = None) -> NodePool:
    """Return the pool of nodes that trains: `only`, or the one that the recipe names, or the first that has what
    `train.gpusPerNode` asks for; where no pool of the recipe has it, any node.

    Raises:
        PermanentError: the one that is named is none of those.
    """
    found, name = compute.training_pools(), only or compute.train.pool
    without = compute.train.gpus_per_node == 0
    if name is None:
        anywhere = NodePool(name="cpu" if without else "gpu", accelerator=None if without else Accelerator())
        return found[0] if found else anywhere
    chosen = next((pool for pool in found if pool.name == name), None)
    if chosen is None:
        raise PermanentError(
            f"spec.compute.pools: {name} is no pool with{'out' if without else ''} an accelerator, to train on; there "
            f"is {', '.join(pool.name for pool in found) or 'none'}"
        )
    return chosen


def gpus_per_node(nodes: TrainNodes, pool: NodePool) -> int:
    """Return how many GPUs of a node train; 0 is a training on its cores."""
    if nodes.gpus_per_node is not None:
        return nodes.gpus_per_node
    return pool.accelerator.count if pool.accelerator else 0
