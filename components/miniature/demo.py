"""The demo: a pool, two evaluation sets, a student and the recipe that uses them."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import yaml

from components.miniature.pool import write_evaluation, write_pool

log = logging.getLogger(__name__)

WEIGHTS = Path(__file__).with_name("weights")
SAMPLES = 6_000  # the default: the whole demo within 6 minutes on two cores
SHARD = 1_000
TESTED = 2_000  # images of the classification task


def prepare(folder: Path, samples: int | None = None, seed: int = 0) -> Path:
    """Write pool, evaluation sets, student and recipe below `folder`, unless there; return the recipe's path."""
    count = samples or SAMPLES
    world = folder / f"world-{count}-{seed}"
    if not (world / "complete").exists():
        log.info("rendering a pool of %d images into %s", count, world)
        shutil.rmtree(world, ignore_errors=True)
        write_pool(world / "pool", count, SHARD, seed)
        write_evaluation(world / "evaluation", TESTED, seed=2**32 + seed)
        (world / "student.json").write_text(json.dumps(student(), indent=1))
        (world / "complete").touch()
    path = world / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe(folder, world, seed), sort_keys=False))
    return path


def student() -> dict[str, Any]:
    """Return the config of the scorer's architecture, to be trained from nothing; its tokenizer is the scorer's."""
    config = json.loads((WEIGHTS / "scorer" / "open_clip_config.json").read_text())["model_cfg"]
    config["text_cfg"]["hf_tokenizer_name"] = str(WEIGHTS / "scorer")
    whole: dict[str, Any] = config
    return whole


def recipe(folder: Path, world: Path, seed: int) -> dict[str, Any]:
    """Return a recipe with four mixtures of the paper on the small world."""
    good = {"name": "good", "text": "raw", "where": [{"score": "raw", "top": 0.3}]}
    rest = {"text": "blip", "where": [{"score": "blip", "atLeast": {"rule": "good"}}]}
    return {
        "apiVersion": "recaption.dev/v1alpha1",
        "kind": "Recaption",
        "metadata": {"name": "demo"},
        "spec": {
            "storage": str(folder.absolute()),
            "pool": {"name": world.name, "shards": str((world / "pool").absolute())},
            "scorer": {"model": f"local-dir:{WEIGHTS / 'scorer'}"},
            "columns": [{"name": "blip", "caption": {"model": str(WEIGHTS / "captioner")}}],
            "mixtures": [
                {"name": "raw", "rules": [{"text": "raw"}]},
                {"name": "raw-top30", "rules": [{"text": "raw", "where": [{"score": "raw", "top": 0.3}]}]},
                {"name": "synthetic", "rules": [{"text": "blip"}]},
                {"name": "raw-top30-plus-synthetic", "rules": [good, rest]},
            ],
            "train": {
                "scale": {
                    "model": str((world / "student.json").absolute()),
                    "batchSize": 128,
                    "learningRate": 0.002,
                    "warmup": 50,
                    "samples": 25_600,
                    "checkpoints": 2,
                },
                "seed": seed,
            },
            "evaluate": {
                "root": str((world / "evaluation").absolute()),
                "tasks": ["miniature-classes", "miniature-retrieval"],
            },
        },
    }
