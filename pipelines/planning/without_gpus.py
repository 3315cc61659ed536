"""Which stages of a recipe its cluster runs without GPUs, and how long that takes: a part of the plan."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from components.engine.registry import column_stage
from components.pool.run import Run
from components.recipe.nodes import cores_of, gpus_per_node, train_pool
from pipelines.planning.rates import CORE, stated


def without_gpus(run: Run, todo: Mapping[str, float]) -> list[str]:
    """Return the plan's lines about what a cluster runs on cores; empty where everything has GPUs.

    Args:
        todo: samples of each column still to come, by the node's key; empty where that is not known.
    """
    found = [*_columns(run, todo), *_trainings(run)]
    return [*found, _source()] if found else []


def _columns(run: Run, todo: Mapping[str, float]) -> list[str]:
    pools = run.spec.compute.pools_of(gpu=True)
    slow = [pool for pool in pools if not pool.device]
    if not slow:
        return []
    nodes = [node for node in run.nodes.values() if column_stage(node.spec.stage).needs.gpu]
    stages = [*dict.fromkeys(node.spec.stage for node in nodes), *(["evaluate"] if run.spec.evaluate else [])]
    if not stages:
        return []
    share = sum(pool.share for pool in slow) / sum(pool.share for pool in pools)
    hours = [CORE.hours(node, todo[node.key] * share) for node in nodes if node.key in todo]
    cores = sum(pool.parallelism * cores_of(pool) for pool in slow)
    names = ", ".join(pool.name for pool in slow)
    part = f"{share:.0%} of " if share < 1 else ""
    return [f"Without a GPU in a cluster (pool {names}): {part}{', '.join(stages)}{_time(hours, cores)}"]


def _trainings(run: Run) -> list[str]:
    train, nodes = run.spec.train, run.spec.compute.train
    if train is None:
        return []
    pool = train_pool(run.spec.compute)
    if gpus_per_node(nodes, pool):
        return []
    time = _time([CORE.training_hours(train)], nodes.nodes * cores_of(pool))
    return [f"Without a GPU in a cluster (pool {pool.name}): each training{time}"]


def _time(hours: Sequence[float | None], cores: int) -> str:
    """Say what core-hours come to on so many cores; a rate that is not stated is None."""
    known = sum(h for h in hours if h is not None)
    unknown = "no stated rate" if None in hours else ""
    if not known:
        return f", {unknown}" if unknown else ""
    on = f"{known / cores:,.2f} hours on {cores:,} core{'s' if cores > 1 else ''}"
    return f", {known:,.2f} core-hours{f' and more ({unknown} of the rest)' if unknown else ''}: {on}"


def _source() -> str:
    """Say where the rates come from."""
    return (
        f"Rates without a GPU: {stated(CORE)} samples/s, training of ViT-B/32 {CORE.training['small']} samples/s on a "
        "core (measured, as pipelines/planning/rates.py tells): about a thousandth of an A100."
    )
