"""download: the candidates' images, small, in shards; then the pool is there."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from math import ceil
from typing import Any

from components.base.errors import PermanentError
from components.engine.stage import Needs, Step
from components.pool.run import Run
from components.pool.shards import Shard, read_json, save_manifest, tasks_of
from components.recipe.sources import Download
from components.stages.download.reasons import REASONS
from components.stages.download.rounds import Round, round_of
from components.stages.download.shard import Candidates

log = logging.getLogger(__name__)

PRIVATE = "private_address"


class DownloadStep(Step):
    """A run has it once, and once more for each `retry` of its recipe: part 1, 2, …"""

    name = "download"
    summary = "fetch the images, never from a private address, and shrink them as DataComp does"
    reads = ("candidates",)
    writes = "pools/<pool>/{shards,retries}: tars, and parquets with the reason of every failure; the manifest"
    needs = Needs(memory_gib=3, decoders=None)
    divisible = True
    unit = "shards"
    counts = "candidates"
    _found: Round | None = None

    def run(self, run: Run) -> None:
        if run.is_downloaded:
            return
        found = self._round(run)
        missing = found.missing()
        self.progress(0, len(found.candidates) - len(missing))
        if missing:
            self._download(run, found, missing, _how(run))
        if self._number == len(_how(run).retry):
            _finish(run)

    def count_tasks(self, run: Run) -> int:
        return ceil(len(self._round(run).candidates) / run.spec.compute.shards_per_task)

    def unfinished(self, run: Run, done: bool) -> Sequence[int]:
        if run.is_downloaded:
            return ()
        found = self._round(run)
        missing = {candidates.shard for candidates in found.missing()}
        tasks = tasks_of(found.candidates, self.count_tasks(run))
        return [task for task, some in enumerate(tasks) if any(c.shard in missing for c in some)]

    def count_units(self, run: Run, task: int | None) -> int:
        if run.is_downloaded:
            return 0
        candidates = self._round(run).candidates
        return len(candidates if task is None else tasks_of(candidates, self.count_tasks(run))[task])

    def run_task(self, run: Run, task: int, tasks: int) -> None:
        found = self._round(run)
        workers = min(tasks, run.spec.compute.workers(gpu=False))
        self._download(run, found, tasks_of(found.candidates, tasks)[task], _how(run).shared_by(workers))

    def outcome(self, run: Run) -> dict[str, Any]:
        if run.is_downloaded:
            said = read_json(run.storage, run.pool.manifest_path, lambda value: dict(value["rounds"][self._number]))
        else:
            found = self._round(run)
            said = found.summary(list(found.records()))
        shards = said["shards"]
        return {"shards": shards, "total": shards, "samples": said["samples"], "failures": said["failures"]}

    @property
    def _number(self) -> int:
        return int(self.part or 0)

    def _round(self, run: Run) -> Round:
        """Return the round of this step, found once: it reads its candidates once, and a step is made for one run."""
        if self._found is None:
            self._found = round_of(run, self._number)
        return self._found

    def _download(self, run: Run, found: Round, candidates: Sequence[Candidates], how: Download) -> None:
        from components.stages.download.task import download

        if how.contact is None:
            log.warning("spec.download.contact is not set: owners of web servers can't tell whom to write to")
        download(candidates, how, run.storage, found.folder, progress=self.progress)


def _how(run: Run) -> Download:
    return run.spec.download or Download()


def _finish(run: Run) -> None:
    """Write the pool's manifest, with what became of every candidate."""
    assert run.ingest is not None
    shards: list[Shard] = []
    rounds: list[dict[str, Any]] = []
    agents: set[str] = set()
    for number in range(len(_how(run).retry) + 1):
        found = round_of(run, number)
        records = list(found.records())
        rounds.append(found.summary(records))
        agents.update(record.user_agent for record in records)
        shards += [found.shard_of(record) for record in records if record.samples or not record.redrive]
    if not any(said["samples"] for said in rounds):
        failed = rounds[0]["failures"]
        reasons = ", ".join(f"{reason} {count:,}" for reason, count in failed.items())
        advice = "for a private network of yours set spec.download.allowNetworks; " if PRIVATE in failed else ""
        none = f"none of {rounds[0]['candidates']:,} images could be downloaded"
        raise PermanentError(
            f"pool {run.pool.name}: {none} ({reasons}); {advice}to try again what may pass, add `transient` to "
            "spec.download.retry"
        )
    extraction = read_json(
        run.storage,
        f"{run.ingest.candidates}/candidates.json",
        lambda value: {"dump": value["dump"], "kind": value["kind"], **value["funnel"]},
    )
    extraction.pop("damages")  # candidates.json has them
    occurred = {reason: REASONS[reason].meaning for said in rounds for reason in said["failures"]}
    about = {"extraction": extraction, "rounds": rounds, "reasons": occurred, "user_agents": sorted(agents)}
    save_manifest(run.storage, run.pool, shards, **about)
