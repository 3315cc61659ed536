"""A whole run whose models are named by their addresses in a bucket."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from components.base.errors import PermanentError
from components.miniature.demo import WEIGHTS
from components.miniature.pool import write_pool
from components.pool.run import Run
from components.recipe.recipe import parse_recipe
from components.storage.interface import Storage
from components.storage.opening import open_storage
from pipelines.planning.plan import plan_run
from tests.components.storage.gcs_server import BUCKET, gcs_server
from tests.pipelines.execution.test_local import GOOD, REST, mixture, recipe_text, run

CUSTOM = {"batchSize": 8, "learningRate": 0.001, "warmup": 1, "samples": 64}


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[Storage]:
    with gcs_server() as address:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", address)
        yield open_storage(f"gs://{BUCKET}")


@pytest.fixture
def models(bucket: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The miniature's models in a bucket, and a head for its scorer."""
    monkeypatch.setenv("RECAPTION_CACHE", str(tmp_path / "cache"))
    for path in WEIGHTS.rglob("*"):
        if path.is_file():
            bucket.upload(path, f"models/{path.relative_to(WEIGHTS)}")
    width = json.loads((WEIGHTS / "scorer" / "open_clip_config.json").read_text())["model_cfg"]["embed_dim"]
    save_file({"weight": torch.ones(1, width), "bias": torch.zeros(1)}, tmp_path / "head.safetensors")
    bucket.upload(tmp_path / "head.safetensors", "models/head.safetensors")
    return f"{bucket.uri}/models"


def recipe(folder: Path, models: str, **spec: Any) -> str:
    columns = [
        {"name": "blip", "caption": {"model": f"{models}/captioner"}},
        {"name": "pretty", "aesthetic": {"weights": f"{models}/head.safetensors"}},
    ]
    pretty = {"name": "pretty", "rules": [{"text": "raw", "where": [{"score": "pretty", "top": 0.5}]}]}
    mixtures = [{"name": "mixed", "rules": [GOOD, REST]}, pretty]
    scorer = {"model": f"{models}/scorer"}
    return recipe_text(folder / "out", folder / "pool", mixtures, **{"columns": columns, "scorer": scorer, **spec})


def named(run: Run) -> dict[str, str]:
    return {key: node.spec.hash for key, node in run.nodes.items()}


@pytest.mark.slow
def test_a_run_by_addresses(bucket: Storage, models: str, tmp_path: Path) -> None:
    """It makes what folders make; an object that is written anew names other columns, and them alone."""
    write_pool(tmp_path / "pool", 60, 60, seed=3)
    done = run(recipe(tmp_path, models))
    assert {stage["state"] for stage in done.status()["stages"].values()} == {"done"}
    assert mixture(done, "mixed")["pairs"] > mixture(done, "pretty")["pairs"] == 30
    assert len([*(tmp_path / "cache").glob("*/*")]) == 3
    bucket.upload(WEIGHTS / "captioner" / "config.json", "models/captioner/README.md")
    assert plan_run(parse_recipe(recipe(tmp_path, models))).name == done.name
    bucket.write("models/captioner/generation_config.json", b'{"_from_model_config": true}')
    other = plan_run(parse_recipe(recipe(tmp_path, models)))
    changed = {key for key, name in named(other).items() if named(done)[key] != name}
    assert changed == {key for key in named(done) if "blip" in key}


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ({"scorer": {"model": "{models}/none"}}, "spec.scorer.model: {models}/none: there is no such object"),
        ({"scorer": {"model": "{models}/captioner"}}, "spec.scorer.model: {models}/captioner has no open_clip_config"),
        ({"scorer": {"model": "{models}/student.json"}}, "spec.scorer.weights: a model config needs a checkpoint fil"),
        ({"scorer": {"model": "ViT-B-32", "weights": "{models}/scorer"}}, "weights: {models}/scorer is a folder; give"),
        ({"scorer": {"model": "local-dir:{models}/scorer"}}, "{models}/scorer is an address; leave local-dir: out"),
        ({"columns": [{"name": "blip", "caption": {"model": "{models}/scorer"}}]}, "{models}/scorer is a CLIP, which"),
        ({"columns": [{"name": "p", "aesthetic": {"weights": "{models}/x"}}]}, "weights: {models}/x: there is no such"),
        ({"train": {"scale": {**CUSTOM, "model": "{models}/no.json"}}}, "model: {models}/no.json: there is no such ob"),
    ],
)
def test_a_mistaken_address_is_said_by_the_plan(
    spec: dict[str, Any], expected: str, models: str, tmp_path: Path
) -> None:
    write_pool(tmp_path / "pool", 1, 1, seed=3)
    given = json.loads(json.dumps({"columns": [], **spec}).replace("{models}", models))
    text = recipe_text(tmp_path / "out", tmp_path / "pool", [{"name": "raw", "rules": [{"text": "raw"}]}], **given)
    with pytest.raises(PermanentError) as caught:
        plan_run(parse_recipe(text))
    assert expected.replace("{models}", models) in str(caught.value)


def test_another_student_makes_another_run_with_the_same_columns(bucket: Storage, models: str, tmp_path: Path) -> None:
    write_pool(tmp_path / "pool", 1, 1, seed=3)
    text = recipe(tmp_path, models, train={"scale": {**CUSTOM, "model": f"{models}/student.json"}})
    first = plan_run(parse_recipe(text))
    assert plan_run(parse_recipe(text)).name == first.name
    bucket.write("models/student.json", (WEIGHTS / "student.json").read_bytes() + b"\n")
    second = plan_run(parse_recipe(text))
    assert second.name != first.name
    assert named(second) == named(first)
