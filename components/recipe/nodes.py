"""Which nodes of a recipe do what, and with how many GPUs or cores."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

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


def pools_for(compute: Compute, gpu: bool, only: str | None = None) -> list[NodePool]:
    """Return the pools that serve GPU stages, or the other pools; where the recipe has none, any node that fits.

    Raises:
        PermanentError: `only` names no such pool.
    """
    kind = "GPU" if gpu else "CPU"
    found = compute.pools_of(gpu)
    if only is None:
        return found or [NodePool(name=kind.lower(), accelerator=Accelerator() if gpu else None)]
    chosen = [pool for pool in found if pool.name == only]
    if not chosen:
        names = ", ".join(pool.name for pool in found) or "none"
        raise PermanentError(f"spec.compute.pools: no {kind} pool {only}; of that kind there is {names}")
    return chosen


def cut(tasks: int, pools: Sequence[NodePool]) -> list[range]:
    """Cut tasks 0 to `tasks` - 1 contiguously by the pools' shares."""
    total = sum(pool.share for pool in pools)
    shares = [sum(pool.share for pool in pools[:i]) / total for i in range(len(pools) + 1)]
    return [range(a, b) for a, b in pairwise(round(tasks * share) for share in shares)]


def whole_cores(cpu: str) -> int:
    """Return a quantity of cores, rounded up as the pod's environment variable is."""
    number = cpu.rstrip("mkMGTi")
    scale = {"m": 0.001, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}.get(cpu[len(number) :], 1)
    return math.ceil(float(number) * scale)


def cores_of(pool: NodePool) -> int:
    """Return how many cores a pod of this pool uses for a model: those that it asks for, rounded up."""
    return max(1, whole_cores(pool.cpu or DEFAULT_CPU[False]))
