"""From a recipe to a run: which columns it needs, in which order, and what that will cost."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from components.base.errors import PermanentError
from components.base.hashing import content_hash, said
from components.base.unread import gathering
from components.pool.run import Run
from components.pool.shards import Pool, list_pool
from components.recipe import recipe as schema
from components.recipe.training import ScaleConfig
from components.stages.evaluate.tasks import fingerprint_tasks
from components.storage.addressed import is_address
from components.storage.fingerprint import model_fingerprint
from components.storage.hub import forget
from components.storage.interface import Storage
from components.storage.opening import open_storage
from pipelines.planning.checks import check_recipe
from pipelines.planning.columns import plan_columns
from pipelines.planning.ingest import plan_ingest

RUNS_NAMED = 5  # earlier runs that a message lists


def plan_run(recipe: schema.Recipe) -> Run:
    """List the pool, or what it is to be downloaded from, and derive everything the recipe needs. Writes nothing.

    Raises:
        PermanentError: no shards, a storage among them, models or evaluation sets that can't work.
        TemporaryError: Common Crawl can't be reached.
    """
    with gathering() as unread:
        planned = _planned(recipe)
    return replace(planned, unread=tuple(unread.values()))


def _planned(recipe: schema.Recipe) -> Run:
    spec = recipe.spec
    forget()  # what the hub said of models for an earlier plan
    remarks = tuple(check_recipe(recipe))
    storage = open_storage(spec.storage)
    _refuse_inside(spec, storage)
    pool, ingest = plan_ingest(spec, storage) if spec.pool.shards is None else (_given(spec), None)
    nodes = {node.key: node for node in plan_columns(recipe)}
    prints = _fingerprints(spec)
    content = said(spec, "storage", "compute", "suspend", "download")
    columns = {key: [node.spec.hash, node.part] for key, node in nodes.items()}
    name = f"{recipe.name}-{content_hash([content, columns, pool.manifest, prints])[:8]}"
    return Run(name, storage, recipe, pool, nodes, prints, ingest, remarks=remarks)


def run_of_recipe(recipe: schema.Recipe) -> str:
    """Return the address of the run that `recaption run` made of this recipe.

    Raises:
        PermanentError: as `plan_run`, or there is no such run.
    """
    planned = plan_run(recipe)
    if planned.storage.size(f"{planned.folder}/plan.json") is None:
        paths = [e.path for e in planned.storage.list(f"runs/{recipe.name}-") if e.path.endswith("/plan.json")]
        others = ", ".join(path.split("/")[1] for path in paths[:RUNS_NAMED]) or "none"
        raise PermanentError(
            f"recipe {recipe.name}: there is no run of it as it is now, {planned.storage.uri}/{planned.folder}; run it "
            f"first, or give one of its earlier runs below {planned.storage.uri}/runs: {others}"
        )
    return f"{planned.storage.uri}/{planned.folder}"


def _given(spec: schema.Spec) -> Pool:
    assert spec.pool.shards is not None  # else they are downloaded
    return list_pool(spec.pool.name, open_storage(spec.pool.shards), spec.pool.subset)


def _refuse_inside(spec: schema.Spec, storage: Storage) -> None:
    for key, what in (("shards", "the training sets"), ("urls", "the tables")):
        place = getattr(spec.pool, key)
        if place and _inside(storage.uri, open_storage(place).uri):
            raise PermanentError(
                f"spec.storage: {storage.uri} lies in spec.pool.{key} {place}, so that {what} written there would be "
                f"the next run's {key}; give another folder"
            )


def _inside(uri: str, folder: str) -> bool:
    if "://" not in uri:
        uri, folder = os.path.normpath(uri), os.path.normpath(folder)
    return f"{uri}/".startswith(f"{folder}/")


def _fingerprints(spec: schema.Spec) -> dict[str, str]:
    prints = {}
    if spec.train and isinstance(spec.train.scale, ScaleConfig) and spec.train.scale.model.endswith(".json"):
        student = spec.train.scale.model
        named = student if is_address(student) else str(Path(student).absolute())
        prints["student"] = model_fingerprint(named, None, "spec.train.scale.model")
    if spec.evaluate:
        prints |= fingerprint_tasks(spec.evaluate)
    return prints
