"""A small training set, resharded from a pool, and a CLIP small enough for seconds on a CPU."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from components.pool.run import Run
from components.stages.reshard.stage import ReshardStep
from tests.components.stages.reshard.conftest import all_raw, make_run, select, write_tar

MODEL = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 16, "layers": 1, "width": 32, "head_width": 16, "patch_size": 8},
    "text_cfg": {"context_length": 12, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}

RECIPE = """
apiVersion: recaption.dev/v1alpha1
kind: Recaption
metadata: {{name: test}}
spec:
  storage: {root}/out
  pool: {{name: tiny, shards: {root}/shards}}
  mixtures:
  - {{name: everything, rules: [{{text: raw}}]}}
  train:
    scale:
      {{model: MODEL, batchSize: 32, learningRate: 0.001, warmup: 2, samples: 400, checkpoints: CKPT}}
"""


def make_training(root: Path, checkpoints: int = 3, model: str | None = None) -> Run:
    """200 pairs, resharded; the model is MODEL by default."""
    for shard in range(2):
        write_tar(root / f"shards/{shard}.tar", range(100 * shard, 100 * shard + 100))
    (root / "tiny-vit.json").write_text(json.dumps(MODEL))
    run = make_run(root, RECIPE.replace("CKPT", str(checkpoints)).replace("MODEL", model or "{root}/tiny-vit.json"))
    select(run, all_raw)
    ReshardStep().run(run)
    return run


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return make_training(tmp_path)
