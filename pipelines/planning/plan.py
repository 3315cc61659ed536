"""From a recipe to a run: which columns it needs, in which order, and what that will cost."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, cast

from components.base.errors import PermanentError
from components.base.hashing import content_hash
from components.engine.registry import column_stage
from components.pool.columns import ALL, ColumnSpec
from components.pool.run import Node, Run
from components.pool.shards import Pool, list_pool
from components.recipe import recipe as schema
from components.recipe.training import ScaleConfig
from components.selection.demand import demand_part
from components.storage.fingerprint import files_fingerprint, model_fingerprint
from components.storage.interface import Storage
from components.storage.opening import open_storage
from pipelines.planning.ingest import plan_ingest


def plan_run(recipe: schema.Recipe) -> Run:
    """List the pool, or what it is to be downloaded from, and derive everything the recipe needs. Writes nothing.

    Raises:
        PermanentError: no shards, a storage among them, a model or evaluation set that isn't there.
        TemporaryError: Common Crawl can't be reached.
    """
    spec = recipe.spec
    storage = open_storage(spec.storage)
    _refuse_inside(spec, storage)
    pool, ingest = plan_ingest(spec, storage) if spec.pool.shards is None else (_given(spec), None)
    nodes = {node.key: node for node in _nodes(recipe)}
    prints = _fingerprints(spec)
    content = spec.model_dump(mode="json", exclude=_unsaid(spec))
    columns = {key: [node.spec.hash, node.part] for key, node in nodes.items()}
    name = f"{recipe.name}-{content_hash([content, columns, pool.manifest, prints])[:8]}"
    return Run(name, storage, recipe, pool, nodes, prints, ingest)


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


def _unsaid(spec: schema.Spec) -> dict[str, Any]:
    """What is in no name: how the work is done, and keys that came after the first runs were named, left out."""
    how = dict.fromkeys(("storage", "compute", "suspend", "download"), True)
    later = {} if spec.screens else {"screens": True}
    sources = {key for key in ("urls", "common_crawl") if getattr(spec.pool, key) is None}
    return {**how, **later, "pool": sources}


def _inside(uri: str, folder: str) -> bool:
    if "://" not in uri:
        uri, folder = os.path.normpath(uri), os.path.normpath(folder)
    return f"{uri}/".startswith(f"{folder}/")


def _nodes(recipe: schema.Recipe) -> list[Node]:
    spec = recipe.spec
    index = _make("index")
    nodes = [Node("index", index)]
    nodes += [Node(f"import:{c.name}", _make("import", c, index)) for c in spec.columns]
    nodes += [
        Node(f"filter:{f.name}", _make("filter", f, f"spec.filters[{i}]", index)) for i, f in enumerate(spec.filters)
    ]
    nodes += [
        Node(f"faces:{s.name}", _make("faces", s, f"spec.screens[{i}]", index))
        for i, s in enumerate(spec.screens)
        if s.kind == "faces"
    ]
    weights = model_fingerprint(spec.scorer.model, None, "spec.scorer.model")
    if spec.scorer.weights:
        weights += "/" + model_fingerprint(spec.scorer.weights, None, "spec.scorer.weights")
    embedding = _make("embed", spec.scorer, weights, index)
    nodes.append(Node("embed", embedding))
    texts = {schema.RAW: index} | {n.key.removeprefix("import:"): n.spec for n in nodes if n.key.startswith("import:")}
    known = [name for name in spec.texts if name in texts]
    nodes += [Node(f"score:{n}", _make("score", spec.scorer, weights, index, embedding, texts[n])) for n in known]
    nodes += [
        Node(
            f"screen:{s.name}", _make("screen", s, f"spec.screens[{i}]", index, embedding, texts[s.text or schema.RAW])
        )
        for i, s in enumerate(spec.screens)
        if s.kind != "faces"
    ]
    hashes = {node.key: node.spec.hash for node in nodes}
    for i, captioner in enumerate(spec.captioners):
        at = model_fingerprint(captioner.model, captioner.revision, f"spec.captioners[{i}].model")
        column = _make("caption", captioner, at, index)
        part = demand_part(recipe, captioner.name, hashes)
        demand = None if part == ALL else captioner.name
        nodes.append(Node(f"caption:{captioner.name}", column, part, demand))
        score = _make("score", spec.scorer, weights, index, embedding, column)
        nodes.append(Node(f"score:{captioner.name}", score, part))
    return nodes


def _make(stage: str, *arguments: object) -> ColumnSpec:
    """Ask a stage's declaration for the column that it would write."""
    return cast(Any, column_stage(stage)).make_spec(*arguments)  # type: ignore[no-any-return]


def _fingerprints(spec: schema.Spec) -> dict[str, str]:
    prints = {}
    if spec.train and isinstance(spec.train.scale, ScaleConfig) and spec.train.scale.model.endswith(".json"):
        prints["student"] = model_fingerprint(
            str(Path(spec.train.scale.model).absolute()), None, "spec.train.scale.model"
        )
    if spec.evaluate:
        if not any(open_storage(spec.evaluate.root).list()):
            raise PermanentError(f"spec.evaluate.root: {spec.evaluate.root} does not exist or is empty")
        prints["tasks"] = files_fingerprint(spec.evaluate.root)
    return prints
