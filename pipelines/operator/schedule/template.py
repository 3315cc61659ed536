"""Check what a RecaptionSchedule asks for, and make the Recaption of a dump from its template."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass

from components.base.errors import PermanentError
from components.recipe.recipe import Recipe
from components.recipe.yaml_io import check
from pipelines.kubeflow.parameters import DUMP, SOME_DUMP, refuse_networks
from pipelines.operator.runtime.conditions import Object
from pipelines.operator.runtime.patches import API, FINALIZER
from pipelines.operator.schedule.cron import CronTimes
from pipelines.operator.schedule.model import LONGEST_SCHEDULE, RecaptionSchedule, ScheduleSpec

SCHEDULE, OF_DUMP = "recaption.dev/schedule", "recaption.dev/dump"  # labels of a schedule's Recaptions


@dataclass(frozen=True)
class Timetable:
    """A RecaptionSchedule's spec, with its cron expression parsed."""

    spec: ScheduleSpec
    times: CronTimes

    @property
    def oldest(self) -> str:
        """Return the oldest wanted dump; empty: only the newest dump is wanted."""
        return "" if self.spec.dumps == "new" else self.spec.dumps.removeprefix("since ")


def timetable_of(thing: Object) -> Timetable:
    """Parse a RecaptionSchedule. Raises PermanentError: what `recaption validate` says, a line per mistake."""
    whole: Object = {key: thing[key] for key in ("apiVersion", "kind", "spec") if key in thing}
    name = thing["metadata"]["name"]
    try:
        spec = check(RecaptionSchedule, {**whole, "metadata": {"name": name}}, "schedule").spec
    except PermanentError as error:
        raise PermanentError(re.sub(r"(?m)^schedule: ", "", str(error))) from error
    if len(name) > LONGEST_SCHEDULE:
        raise PermanentError(
            f"metadata.name: found {len(name)} characters; expected at most {LONGEST_SCHEDULE}, for Recaptions called "
            f"{name_of(thing, SOME_DUMP)}"
        )
    pool = spec.template.spec.pool
    for key, value in (("name", pool.name), ("shards", pool.shards), ("urls", pool.urls)):
        if value is not None and DUMP not in value:
            raise PermanentError(
                f"spec.template.spec.pool.{key}: found {value}, without {DUMP}; every dump is a pool of its own"
            )
    if DUMP in spec.template.spec.storage:
        raise PermanentError(f"spec.template.spec.storage: found {DUMP} in it; a schedule's runs share one storage")
    refuse_networks(recipe_for(thing, SOME_DUMP), "spec.template.spec")
    return Timetable(spec, CronTimes.parse(spec.schedule, spec.time_zone))


def check_schedule(value: object, where: str) -> None:
    """Check a RecaptionSchedule given as YAML's value, also what a schema doesn't know, such as time zones.

    Raises:
        PermanentError: a line per mistake.
    """
    schedule = check(RecaptionSchedule, value, where)
    try:
        timetable_of(schedule.model_dump(mode="json", by_alias=True, exclude_none=True))
    except PermanentError as error:
        raise PermanentError("\n".join(f"{where}: {line}" for line in str(error).splitlines())) from error


def recipe_for(thing: Object, dump: str) -> Recipe:
    """Fill a dump into the template: {dump} as Common Crawl spells it, in the pool's name in lower case.

    Raises:
        PermanentError: a line per mistake.
    """
    template = thing["spec"]["template"]["spec"]
    spec = json.loads(json.dumps(template).replace(DUMP, dump))
    spec["pool"]["name"] = template["pool"]["name"].replace(DUMP, dump.lower())
    whole = {"apiVersion": API, "kind": "Recaption", "metadata": {"name": name_of(thing, dump)}, "spec": spec}
    try:
        return check(Recipe, whole, "template")
    except PermanentError as error:
        raise PermanentError(re.sub(r"(?m)^template: ", "spec.template.", str(error))) from error


def recaption_of(thing: Object, dump: str) -> Object:
    """Make the Recaption of a dump. It has the finalizer from the start: it can't go before it was reconciled."""
    recipe, meta = recipe_for(thing, dump), thing["metadata"]
    template = thing["spec"]["template"].get("metadata") or {}
    owner = {key: thing[key] for key in ("apiVersion", "kind")} | {key: meta[key] for key in ("name", "uid")}
    metadata = {
        "name": recipe.name,
        "namespace": meta["namespace"],
        "labels": {**(template.get("labels") or {}), SCHEDULE: meta["name"], OF_DUMP: dump.lower()},
        "annotations": dict(template.get("annotations") or {}),
        "finalizers": [FINALIZER],
        "ownerReferences": [{**owner, "controller": True, "blockOwnerDeletion": True}],
    }
    spec = json.loads(recipe.spec.model_dump_json(by_alias=True, exclude_none=True, exclude_unset=True))
    return {"apiVersion": API, "kind": "Recaption", "metadata": metadata, "spec": spec}


def name_of(thing: Object, dump: str) -> str:
    """Return the name of a dump's Recaption."""
    return f"{thing['metadata']['name']}-{dump.lower()}"


def claimant(thing: Object) -> str:
    """Return the claimant of a schedule's dumps. It has the uid: a schedule of that name in another cluster, or after
    this one, is another claimant, and starts nothing twice."""
    meta = thing["metadata"]
    return f"recaption/{meta['namespace']}/{meta['name']}/{meta['uid']}"


def is_created_by(thing: Object, schedule: Object) -> bool:
    """Return whether this schedule, not only one of that name, created the Recaption."""
    owners = thing["metadata"].get("ownerReferences", ())
    return any(owner["uid"] == schedule["metadata"]["uid"] for owner in owners)
