"""What runs in the containers of the nodes that KFP itself must understand: plan, report and cleanup.

Their argument is KFP's executor input: the parameters' values, and the files in which it looks for outputs.
"""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from components.base.errors import PermanentError, RecaptionError, TemporaryError, failure_of
from components.engine.registry import step
from components.pool.run import Run, load_run
from components.pool.shards import has_begun
from components.recipe.recipe import Recipe
from components.stages.discover.dumps import claim_path, list_dumps, unclaimed
from components.stages.discover.files import LATEST
from components.stages.report.table import result_table
from components.storage.claims import claim, keep_failure, planned_by, point
from components.storage.interface import Storage
from components.storage.opening import open_storage
from pipelines.execution.run_status import begin, timed
from pipelines.kubeflow.parameters import DUMP, SOME_DUMP, recipe_of, refuse_networks, source_of
from pipelines.kubeflow.step_retry import attempted, execute, put_away
from pipelines.planning.plan import plan_run

log = logging.getLogger(__name__)

NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,126}[A-Za-z0-9])?")


@dataclass(frozen=True)
class ExecutorInput:
    """KFP's ExecutorInput message, as far as we use it."""

    values: Mapping[str, Any]
    outputs: Mapping[str, Any]

    @classmethod
    def parse(cls, text: str) -> ExecutorInput:
        whole = json.loads(text)
        return cls(whole.get("inputs", {}).get("parameterValues", {}), whole.get("outputs", {}))

    def write(self, name: str, value: str | bool) -> None:
        """Set an output parameter."""
        _write(self.outputs["parameters"][name]["outputFile"], value if isinstance(value, str) else json.dumps(value))

    def write_metadata(self, name: str, metadata: Mapping[str, float]) -> None:
        """Set an artifact's metadata, where the UI finds the numbers of Metrics."""
        artifact = self.outputs["artifacts"][name]["artifacts"][0]
        entry = {"name": artifact.get("name", ""), "uri": artifact["uri"], "metadata": dict(metadata)}
        _write(self.outputs["outputFile"], json.dumps({"artifacts": {name: {"artifacts": [entry]}}}))


def plan(given: ExecutorInput) -> None:
    """Plan and claim a run. What stands in the way of a second execution is a reason, not a failure."""
    by = _claimant(given.values)
    try:
        attempted("plan", lambda: _plan(given, by))
    except Exception as error:
        _keep(given.values, by, error)
        raise


def _keep(values: Mapping[str, Any], by: str, error: Exception) -> None:
    """Keep why there is no run where the operator looks; where the storage is what failed, KFP's log has it only."""
    try:
        keep_failure(_storage(values), by, failure_of(error))
    except RecaptionError as other:
        log.info("what is wrong is not kept in the storage: %s", other)


def _plan(given: ExecutorInput, by: str) -> None:
    if given.values["schedule"]:
        run, reason = _plan_dump(given.values, by)
    else:
        run, reason = _planned(recipe_of(given.values), by), ""
    if run:
        point(run.storage, by, run.name)
        holder = run.claim(by)
        if holder != by:
            reason = f"run {run.name} is claimed by {holder}; to go on in its place, give its id as `claim`"
        elif not reason:
            begin(run)
    log.info("%s", reason or f"run {run.name if run else ''} is claimed by {by}")
    given.write("run", f"{run.storage.uri}/{run.folder}" if run else "")
    given.write("claimant", by)
    given.write("mine", run is not None and not reason)
    given.write("reason", reason)


def check_schedule(values: Mapping[str, Any]) -> None:
    """Raises PermanentError where no dump could be planned: as the plan step would, but before there is a schedule."""
    _named(values, "schedule")
    recipe_of(values, SOME_DUMP)
    _storage(values)


def _plan_dump(values: Mapping[str, Any], by: str) -> tuple[Run | None, str]:
    """The run of the newest dump that this schedule has not done and whose pool has begun; or why there is none.

    The dump is claimed when its run is planned: whoever crashes before did nothing, whoever crashes later is given
    its own dump again.
    """
    check_schedule(values)
    schedule, storage = str(values["schedule"]), _storage(values)
    dumps = list_dumps(values["dumps"])
    reasons = [] if dumps else [f"{values['dumps']} lists no dump"]
    for dump in unclaimed(storage, schedule, dumps, by, values["oldest_dump"]):
        recipe = recipe_of(values, dump)
        if not has_begun(recipe.spec.pool):
            reasons.append(f"dump {dump} has nothing in {source_of(recipe)} yet")
            continue
        run = _planned(recipe, by)
        holder = claim(storage, claim_path(schedule, dump), by)
        if holder == by:
            return run, ""
        reasons.append(f"dump {dump} is claimed by {holder}")
    return None, "; ".join(reasons) or f"schedule {schedule} has done {dumps[0]}, the newest dump"


def _planned(recipe: Recipe, by: str) -> Run:
    if os.environ.get("RECAPTION_LAUNCHER") != "local":  # else the launchers do the work, and ask no cluster
        refuse_networks(recipe)
    run = _before(recipe, by) or plan_run(recipe)
    run.save()
    return run


def _before(recipe: Recipe, by: str) -> Run | None:
    """The run that this claimant planned of `latest`: of the dump that was the newest then."""
    crawl, storage = recipe.spec.pool.common_crawl, open_storage(recipe.spec.storage)
    name = planned_by(storage, by) if crawl and crawl.dump == LATEST else None
    if name is None:
        return None
    run = load_run(f"{storage.uri}/runs/{name}")
    return replace(run, recipe=recipe) if _asked(run.recipe) == _asked(recipe) else None


def _asked(recipe: Recipe) -> Mapping[str, Any]:
    """All but how it is computed."""
    spec = recipe.spec.model_dump(mode="json", exclude={"compute", "suspend"})
    return {"name": recipe.name, **spec}


def report(given: ExecutorInput, table: Path, page: Path) -> None:
    """Write the report; its table, page and numbers where KFP's UI shows them. Then nothing of the run is left."""
    by = str(given.values["claimant"])
    execute("report", given.values["run"], by, lambda run: _report(run, given, table, page))
    put_away(load_run(given.values["run"]), by)


def _report(run: Run, given: ExecutorInput, table: Path, page: Path) -> None:
    timed(run, "report", lambda: step("report").run(run))
    rows = result_table(run)
    _write(table, markdown(rows))
    _write(page, run.storage.read(f"{run.folder}/report.html").decode())
    given.write_metadata("metrics", metrics(rows))


def markdown(rows: list[dict[str, object]]) -> str:
    """The result table as Markdown; empty cells where there is no number."""
    titles = list(rows[0])
    lines = [titles, ["---", *["---:"] * (len(titles) - 1)], *([_cell(row[t]) for t in titles] for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def metrics(rows: list[dict[str, object]]) -> dict[str, float]:
    """`<mixture> <title>` → number, as one flat list."""
    return {
        f"{row['mixture']} {title}": float(value)
        for row in rows
        for title, value in row.items()
        if isinstance(value, (int, float))
    }


def cleanup(given: ExecutorInput) -> None:
    """End what the claimant's run still has in the cluster; then give its claim up, unless it is finished.

    Raises:
        TemporaryError: something of it may be left; the claim stays, so that the next attempt ends it.
    """
    attempted("cleanup", lambda: _cleanup(given.values))


def _cleanup(values: Mapping[str, Any]) -> None:
    found = _own_run(values)
    if found and not put_away(*found):
        raise TemporaryError(f"cleanup of run {found[0].name} failed, see above; Jobs of it may be left")


def _own_run(values: Mapping[str, Any]) -> tuple[Run, str] | None:
    """The run that this claimant planned, unless another holds it by now; None where it never got so far."""
    by = _claimant(values)
    try:
        storage = _storage(values)
    except PermanentError as error:
        log.info("there was no run: %s", " ".join(str(error).split()))
        return None
    name = planned_by(storage, by)
    if name is None:
        log.info("%s planned no run", by)
        return None
    run = load_run(f"{storage.uri}/runs/{name}")
    holder = run.claim(by)  # the step that failed gave it up: held again, so that nobody else starts meanwhile
    if holder != by:
        log.info("run %s is claimed by %s: nothing to end", name, holder)
        return None
    return run, by


def _storage(values: Mapping[str, Any]) -> Storage:
    """Open the storage that the recipe names, which is the same for every dump.

    Raises:
        PermanentError: the recipe isn't valid, or {dump} stands in its storage.
    """
    uri = recipe_of(values, SOME_DUMP if DUMP in values["recipe"] else None).spec.storage
    if SOME_DUMP in uri:
        raise PermanentError(f"spec.storage: found {DUMP} in it; a schedule's runs share one storage")
    return open_storage(uri)


def _claimant(values: Mapping[str, Any]) -> str:
    return _named(values, "claim" if values["claim"] else "kfp_run")


def _named(values: Mapping[str, Any], parameter: str) -> str:
    """A parameter that becomes a file's name."""
    name = str(values[parameter])
    if not NAME.fullmatch(name):
        raise PermanentError(f"parameter {parameter}: found {name}; expected letters, digits, dots and dashes")
    return name


def _cell(value: object) -> str:
    if value is None:
        return ""
    return f"{value:.3f}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)


def _write(path: str | Path, text: str) -> None:
    """KFP's files may lie in folders that are not there yet."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(text, encoding="utf-8")
