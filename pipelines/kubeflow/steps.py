"""The entry points of the nodes whose inputs and outputs KFP reads: plan, report and cleanup.

Their argument is KFP's executor input: the parameters' values, and the paths of the files to write outputs to.
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
from components.base.hashing import said
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
from pipelines.execution.run_status import begin, keep_prediction, timed
from pipelines.kubeflow.parameters import DUMP, SOME_DUMP, recipe_of, refuse_in_cluster, source_of
from pipelines.kubeflow.step_retry import attempted, clean_up, execute
from pipelines.planning.checks import check_recipe
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
        """Parse KFP's JSON."""
        whole = json.loads(text)
        return cls(whole.get("inputs", {}).get("parameterValues", {}), whole.get("outputs", {}))

    def write(self, name: str, value: str | bool) -> None:
        """Write an output parameter."""
        _write(self.outputs["parameters"][name]["outputFile"], value if isinstance(value, str) else json.dumps(value))

    def write_metadata(self, name: str, metadata: Mapping[str, float]) -> None:
        """Write an artifact's metadata, from which KFP's UI shows the numbers of Metrics."""
        artifact = self.outputs["artifacts"][name]["artifacts"][0]
        entry = {"name": artifact.get("name", ""), "uri": artifact["uri"], "metadata": dict(metadata)}
        _write(self.outputs["outputFile"], json.dumps({"artifacts": {name: {"artifacts": [entry]}}}))


def plan(given: ExecutorInput) -> None:
    """Plan and claim a run. A run that another KFP run has claimed is no failure: the output `reason` says so."""
    by = _claimant(given.values)
    try:
        attempted("plan", lambda: _plan(given, by))
    except Exception as error:
        _keep(given.values, by, error)
        raise


def _keep(values: Mapping[str, Any], by: str, error: Exception) -> None:
    """Record why there is no run where the operator reads it; if the storage failed, only KFP's log has the reason."""
    try:
        keep_failure(_storage(values), by, failure_of(error))
    except RecaptionError as other:
        log.info("the reason could not be recorded in the storage: %s", other)


def _plan(given: ExecutorInput, by: str) -> None:
    """Plan and claim a run, and write the outputs."""
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
            keep_prediction(run, here=os.environ.get("RECAPTION_LAUNCHER") == "local")
    log.info("%s", reason or f"run {run.name if run else ''} is claimed by {by}")
    given.write("run", f"{run.storage.uri}/{run.folder}" if run else "")
    given.write("claimant", by)
    given.write("mine", run is not None and not reason)
    given.write("reason", reason)


def check_schedule(values: Mapping[str, Any]) -> None:
    """Check a schedule's parameters before it is created. Raises PermanentError like its plan steps would."""
    _named(values, "schedule")
    recipe_of(values, SOME_DUMP)
    _storage(values)


def _plan_dump(values: Mapping[str, Any], by: str) -> tuple[Run | None, str]:
    """Plan the newest dump that this schedule has not done and whose pool has begun.

    The dump is claimed after its run was planned: a KFP run that crashes before has done nothing, one that crashes
    later is given the same dump again.

    Returns:
        the run, or None and the reason why there is none.
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
    """Plan a run, or return the one that this claimant planned before, and save it."""
    if os.environ.get("RECAPTION_LAUNCHER") != "local":  # else the launchers do the work on this machine
        refuse_in_cluster(recipe)
    run = _planned_latest(recipe, by) or plan_run(recipe)
    for text in run.remarks:
        log.warning("%s", text)
    run.save()
    return run


def _planned_latest(recipe: Recipe, by: str) -> Run | None:
    """Return the run that this claimant planned of `latest`, of the dump that was the newest then; None without one."""
    crawl, storage = recipe.spec.pool.common_crawl, open_storage(recipe.spec.storage)
    name = planned_by(storage, by) if crawl and crawl.dump == LATEST else None
    if name is None:
        return None
    run = load_run(f"{storage.uri}/runs/{name}")
    if _results_of(run.recipe) != _results_of(recipe):
        return None
    return replace(run, recipe=recipe, remarks=tuple(check_recipe(recipe)))


def _results_of(recipe: Recipe) -> Mapping[str, Any]:
    """Return the fields that determine the results."""
    return {"name": recipe.name, **said(recipe.spec, "compute", "suspend")}


def report(given: ExecutorInput, table: Path, page: Path) -> None:
    """Write the report, and its table, page and numbers for KFP's UI; then clean up after the run."""
    by = str(given.values["claimant"])
    execute("report", given.values["run"], by, lambda run: _report(run, given, table, page))
    clean_up(load_run(given.values["run"]), by)


def _report(run: Run, given: ExecutorInput, table: Path, page: Path) -> None:
    """Write the report and its artifacts."""
    timed(run, "report", lambda: step("report").run(run))
    rows = result_table(run)
    _write(table, markdown(rows))
    _write(page, run.storage.read(f"{run.folder}/report.html").decode())
    given.write_metadata("metrics", metrics(rows))


def markdown(rows: list[dict[str, object]]) -> str:
    """Format the result table as Markdown, with empty cells where there is no number."""
    titles = list(rows[0])
    lines = [titles, ["---", *["---:"] * (len(titles) - 1)], *([_cell(row[t]) for t in titles] for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def metrics(rows: list[dict[str, object]]) -> dict[str, float]:
    """Return all numbers of the result table by `<mixture> <title>`."""
    return {
        f"{row['mixture']} {title}": float(value)
        for row in rows
        for title, value in row.items()
        if isinstance(value, (int, float))
    }


def cleanup(given: ExecutorInput) -> None:
    """Delete the Jobs of the claimant's run; then release its claim, unless the run is finished.

    Raises:
        TemporaryError: some Jobs may be left; the claim stays, so that the next attempt deletes them.
    """
    attempted("cleanup", lambda: _cleanup(given.values))


def _cleanup(values: Mapping[str, Any]) -> None:
    """Clean up after the claimant's run, if it has one."""
    found = _own_run(values)
    if found and not clean_up(*found):
        raise TemporaryError(f"cleanup of run {found[0].name} failed, see above; some Jobs may be left")


def _own_run(values: Mapping[str, Any]) -> tuple[Run, str] | None:
    """Return the run that this claimant planned and the claimant; None if it planned none or another one holds it."""
    by = _claimant(values)
    try:
        storage = _storage(values)
    except PermanentError as error:
        log.info("no run was planned: %s", " ".join(str(error).split()))
        return None
    name = planned_by(storage, by)
    if name is None:
        log.info("no run was planned by %s", by)
        return None
    run = load_run(f"{storage.uri}/runs/{name}")
    holder = run.claim(by)  # a step that failed released it: claimed again, so that nobody else starts meanwhile
    if holder != by:
        log.info("run %s is claimed by %s: nothing to clean up", name, holder)
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
    """Return who claims the run: the parameter `claim`, else this KFP run."""
    return _named(values, "claim" if values["claim"] else "kfp_run")


def _named(values: Mapping[str, Any], parameter: str) -> str:
    """Return a parameter that becomes a file's name. Raises PermanentError if it can't be one."""
    name = str(values[parameter])
    if not NAME.fullmatch(name):
        raise PermanentError(f"parameter {parameter}: found {name}; expected letters, digits, dots and dashes")
    return name


def _cell(value: object) -> str:
    """Format a cell of the result table."""
    if value is None:
        return ""
    return f"{value:.3f}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)


def _write(path: str | Path, text: str) -> None:
    """Write a file, and create its folder if it is missing."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(text, encoding="utf-8")
