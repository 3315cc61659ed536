"""The work that a run is expected to take, stage by stage and pool by pool, before it is done.

A rate that an earlier run measured on a pool of that name comes first, then the one that the stage states of an A100 or
of a core. A column without a stated rate that needs no GPU counts only where it was measured.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from components.pool.columns import ALL
from components.pool.run import Run
from components.recipe.compute import NodePool
from components.recipe.costs import GPU, THIS_MACHINE, Bill, Work, bill
from components.selection.demand import expected_share
from components.stages.evaluate.tasks import tasks_of
from components.stages.train.scales import scale_of
from pipelines.planning.download_forecast import upcoming
from pipelines.planning.measured import measured_rates, pace_of
from pipelines.planning.pool_size import probed_size
from pipelines.planning.rates import A100, CORE, Rates
from pipelines.planning.workers import TRAIN, no_work, pools_of

EVALUATE = "evaluate"


@dataclass(frozen=True)
class Prediction:
    """What the stages of a run are expected to take."""

    work: Mapping[str, Mapping[str, Work] | None]
    """By the stage's key and the pool's name; None where there is no rate."""
    measured: Sequence[str]
    """Keys of the stages whose rate was measured by earlier runs."""

    def bill(self, prices: Mapping[str, float]) -> Bill:
        """Add up hours and cost."""
        return bill(prices, self.work.values())

    @property
    def unknown(self) -> list[str]:
        """Keys of the stages without a rate."""
        return [key for key, work in self.work.items() if work is None]


def predict(run: Run, todo: Mapping[str, float], here: bool = False) -> Prediction:
    """Return what is expected of the samples of each column that are still to come, and of trainings and evaluations.

    Args:
        todo: samples by the node's key.
        here: for this machine instead of a cluster's pools.
    """
    known = measured_rates(run.storage)
    work: dict[str, Mapping[str, Work] | None] = {}
    measured: list[str] = []
    for key, samples in {**todo, **_steps(run)}.items():
        if not samples:
            continue
        pools: Sequence[NodePool | None] = [None] if here else pools_of(run, key)
        whole = sum(_share(pool) for pool in pools)
        found: dict[str, Work | None] = {}
        for pool in pools:
            name, part = pool.name if pool else THIS_MACHINE, samples * _share(pool) / whole
            none, before = no_work(run, key, pool), known.get((pace_of(run, key), name))
            if before and before.samples and before.unit == none.unit:
                found[name] = none.plus(part * before.seconds / before.samples, part)
                measured.append(key)
            else:
                hours = _stated_hours(run, key, part, A100 if none.unit == GPU else CORE)
                found[name] = None if hours is None else none.plus(hours * 3600 / none.devices, part)
        listed = {name: w for name, w in found.items() if w is not None}
        work[key] = listed if len(listed) == len(found) else None
    return Prediction(work, list(dict.fromkeys(measured)))


def foresee(run: Run, here: bool = False) -> Prediction | None:
    """Return what a run is expected to take, without a look at every sample; None where its pool's size isn't known.

    A plan counts what its mixtures ask for; this takes the share that is expected, as of a pool that is not scored yet.
    """
    if not run.is_downloaded:
        candidates = upcoming(run).candidates
        if candidates is None:
            return None
        return predict(run, {key: candidates * _asked(run, key) for key in run.nodes}, here)
    size, columns = probed_size(run), run.open_columns()
    columns.read_records(run.index, run.pool.shards)
    total = max(1, sum(shard.size for shard in run.pool.shards))
    todo = {}
    for key, node in run.nodes.items():
        left = sum(shard.size for shard in run.lacking(columns, node)) / total
        todo[key] = (size.rows if node.spec == run.index else size.usable) * _asked(run, key) * left
    return predict(run, todo, here)


def costs_in_words(run: Run, todo: Mapping[str, float]) -> list[str]:
    """Return the plan's lines about the hours and the cost of what is still to come.

    Args:
        todo: samples of each column, by the node's key; empty where that is not known.
    """
    if not todo:
        return []
    spent_here, there = predict(run, todo, here=True), predict(run, todo)
    lines = []
    if spent_here.measured:
        hours = sum(w.hours for key in spent_here.measured for w in (spent_here.work[key] or {}).values())
        lines.append(
            f"On this machine, as measured here: {', '.join(spent_here.measured)}, {hours:,.2f} hours of a worker"
        )
    if run.spec.compute.pools:
        lines += _in_a_cluster(run, there)
    return lines


def _in_a_cluster(run: Run, there: Prediction) -> list[str]:
    prices = run.spec.compute.prices
    pools = dict.fromkeys(pool for work in there.work.values() for pool in work or {})
    lines = [f"In a cluster: {there.bill(prices)}"]
    if len(pools) > 1:
        for pool in pools:
            parts = [{pool: work[pool]} for work in there.work.values() if work and pool in work]
            if any(part[pool].hours for part in parts):
                lines.append(f"  pool {pool}: {bill(prices, parts)}")
    if there.measured:
        lines.append(f"  by the rates of earlier runs: {', '.join(there.measured)}; of the others as stated")
    if there.unknown:
        lines.append(f"  without a rate, and so not counted: {', '.join(there.unknown)}")
    return lines


def _share(pool: NodePool | None) -> float:
    return pool.share if pool else 1.0


def _asked(run: Run, key: str) -> float:
    """Return the share of the pool's samples that a column is expected to be asked for."""
    node = run.nodes[key]
    return 1.0 if node.part == ALL else expected_share(run.spec, node.name)


def _steps(run: Run) -> dict[str, float]:
    """Return how many samples the trainings, and how many results the evaluations, still have to do."""
    train, evaluate = run.spec.train, run.spec.evaluate
    if train is None:
        return {}
    missing = [
        m
        for m in run.trained
        if not (
            run.is_downloaded and run.is_indexed and run.storage.size(f"{run.model_folder(m)}/model.json") is not None
        )
    ]
    found = {TRAIN: float(len(missing) * scale_of(train)[0].samples)}
    return found | ({EVALUATE: float(len(missing) * len(tasks_of(evaluate)))} if evaluate else {})


def _stated_hours(run: Run, key: str, samples: float, rates: Rates) -> float | None:
    """Return the hours of one device; None where no rate is stated."""
    if key in run.nodes:
        return rates.hours(run.nodes[key], samples)
    if key != TRAIN or run.spec.train is None:
        return None
    hours = rates.training_hours(run.spec.train)
    return None if hours is None else hours * samples / scale_of(run.spec.train)[0].samples
