"""What a RecaptionSchedule asks for, checked; and the Recaption that it makes of a dump."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from components.discover.dumps import DUMP as ID
from components.discover.dumps import INDEX
from components.pool.errors import PermanentError
from components.pool.reading import dump_yaml
from components.pool.recipe import Recipe
from pipelines.kubeflow.parameters import DUMP, recipe_of
from pipelines.kubeflow.steps import SOME_DUMP
from pipelines.operator.conditions import Object
from pipelines.operator.ticks import Ticks
from pipelines.operator.writing import API, FINALIZER

SCHEDULE, OF_DUMP = "recaption.dev/schedule", "recaption.dev/dump"  # labels of a schedule's Recaptions
LONGEST = 63 - len(SOME_DUMP) - 1  # characters of a name that still makes a Recaption's
FORBID, ALLOW, REPLACE = "Forbid", "Allow", "Replace"


@dataclass(frozen=True)
class Timetable:
    """By the fields of the object's spec."""

    ticks: Ticks
    index: str
    oldest: str
    """The first dump that it is there for; empty: only the newest."""
    policy: str
    suspend: bool
    deadline: int | None
    """Seconds after which a tick that nothing came of is given up."""
    keep: tuple[int, int]
    """Finished Recaptions, succeeded and failed."""
    storage: str


def timetable_of(thing: Object) -> Timetable:
    """Raises PermanentError, a line per mistake: of the template what `recaption validate` says."""
    name, spec = thing["metadata"]["name"], thing["spec"]
    ticks = Ticks.parse(spec["schedule"], spec.get("timeZone", "Etc/UTC"))
    if len(name) > LONGEST:
        raise PermanentError(
            f"metadata.name: found {len(name)} characters; expected at most {LONGEST}, as a Recaption is called "
            f"{name}-{SOME_DUMP.lower()}"
        )
    dumps = spec.get("dumps", "new")
    oldest = dumps.removeprefix("since ")
    if dumps != "new" and not ID.fullmatch(oldest):
        raise PermanentError(f"spec.dumps: found {dumps!r}; expected new, or since CC-MAIN-2026-05 and the like")
    recipe = recipe_for(thing, SOME_DUMP)
    return Timetable(
        ticks=ticks,
        index=spec.get("index", INDEX),
        oldest="" if dumps == "new" else oldest,
        policy=spec.get("concurrencyPolicy", FORBID),
        suspend=bool(spec.get("suspend")),
        deadline=spec.get("startingDeadlineSeconds"),
        keep=(spec.get("successfulHistoryLimit", 3), spec.get("failedHistoryLimit", 3)),
        storage=recipe.spec.storage,
    )


def recipe_for(thing: Object, dump: str) -> Recipe:
    """What the template means for a dump. Raises PermanentError, a line per mistake."""
    template = thing["spec"]["template"]["spec"]
    pool: Mapping[str, Any] = template.get("pool", {})
    for key in ("name", "shards"):
        if DUMP not in str(pool.get(key, "")):
            raise PermanentError(
                f"spec.template.spec.pool.{key}: found no {DUMP} in it; every dump is a pool of its own"
            )
    if DUMP in str(template.get("storage", "")):
        raise PermanentError(f"spec.template.spec.storage: found {DUMP} in it; a schedule's runs share one storage")
    name = f"{thing['metadata']['name']}-{DUMP}"
    whole = {"apiVersion": API, "kind": "Recaption", "metadata": {"name": name}, "spec": template}
    try:
        return recipe_of({"recipe": dump_yaml(whole)}, dump)
    except PermanentError as error:
        raise PermanentError(re.sub(r"(?m)^recipe: ", "spec.template.", str(error))) from error


def recaption_of(thing: Object, dump: str) -> Object:
    """The Recaption of a dump. Our finalizer is on it from the start: nobody deletes it before we have seen it."""
    recipe, meta, template = recipe_for(thing, dump), thing["metadata"], thing["spec"]["template"].get("metadata", {})
    owner = {key: thing[key] for key in ("apiVersion", "kind")} | {key: meta[key] for key in ("name", "uid")}
    metadata = {
        "name": recipe.name,
        "namespace": meta["namespace"],
        "labels": {**template.get("labels", {}), SCHEDULE: meta["name"], OF_DUMP: dump.lower()},
        "annotations": dict(template.get("annotations", {})),
        "finalizers": [FINALIZER],
        "ownerReferences": [{**owner, "controller": True, "blockOwnerDeletion": True}],
    }
    spec = json.loads(recipe.spec.model_dump_json(by_alias=True, exclude_none=True, exclude_unset=True))
    return {"apiVersion": API, "kind": "Recaption", "metadata": metadata, "spec": spec}


def name_of(thing: Object, dump: str) -> str:
    """Of a dump's Recaption."""
    return f"{thing['metadata']['name']}-{dump.lower()}"


def claimant(thing: Object) -> str:
    """Whose the claims of dumps are. With the uid: a schedule of that name in another cluster, or after this one, is
    another claimant, and does nothing twice."""
    meta = thing["metadata"]
    return f"recaption/{meta['namespace']}/{meta['name']}/{meta['uid']}"


def is_its(thing: Object, schedule: Object) -> bool:
    """Whether the Recaption was made by this schedule, not only by one of that name."""
    owners = thing["metadata"].get("ownerReferences", ())
    return any(owner["uid"] == schedule["metadata"]["uid"] for owner in owners)
