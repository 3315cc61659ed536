"""What `recaption plan` says of a cluster whose pools have no GPUs, and what that costs in time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from components.recipe.compute import NodePool
from components.recipe.nodes import cores_of
from pipelines.cli import app
from tests.pipelines.execution.test_local import recipe_text
from tests.pools import write_shard

RULES = [{"text": "blip2"}, {"text": "raw", "where": [{"score": "raw", "atLeast": 0}, {"score": "blip2", "atMost": 0}]}]
MIXTURES = [{"name": "both", "emit": "all", "rules": RULES}]
PAPER: dict[str, Any] = {
    "scorer": {"model": "ViT-L-14"},
    "columns": [{"name": "blip2", "caption": {"model": "Salesforce/blip2-opt-2.7b"}}],
    "train": {"scale": "small"},
}
A100 = {"name": "a100", "accelerator": {"count": 8}}
MODELS = {"name": "models", "accelerator": {"count": 0}, "cpu": "2", "parallelism": 3}


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pool")
    for shard in range(2):
        write_shard(folder, shard, 900)
    return folder


def said(root: Path, shards: Path, compute: dict[str, Any], **spec: Any) -> list[str]:
    """The lines of the plan that begin with `Without` or tell of its rates."""
    path = root / "recipe.yaml"
    path.write_text(recipe_text(root / "out", shards, MIXTURES, compute=compute, **{**PAPER, **spec}))
    result = CliRunner().invoke(app, ["plan", str(path)], env={"COLUMNS": "300"})
    assert result.exit_code == 0, result.output
    return [line for line in result.output.splitlines() if "ithout a GPU" in line]


def test_columns_and_trainings_on_cores_are_told_with_their_hours(tmp_path: Path, shards: Path) -> None:
    columns, training, rates = said(tmp_path, shards, {"pools": [MODELS], "train": {"nodes": 2}})
    # 1,800 images: 1,800 / .47 s by CLIP, 1,800 / .07 s by BLIP-2, 1,800 / (.47 × 13) s for a score, of two texts
    hours = 1800 / 3600 * (1 / 0.47 + 1 / 0.07 + 2 / 0.47 / 13)
    assert columns == (
        f"Without a GPU in a cluster (pool models): embed, score, caption, {hours:.2f} core-hours: "
        f"{hours / 6:.2f} hours on 6 cores"
    )
    assert training == (
        "Without a GPU in a cluster (pool models): each training, 2,222.22 core-hours: 555.56 hours on 4 cores"
    )
    assert "ViT-L-14 0.47" in rates


def test_a_part_on_cores_is_told_as_one(tmp_path: Path, shards: Path) -> None:
    columns, _ = said(tmp_path, shards, {"pools": [MODELS, {**A100, "share": 3}]})
    assert "(pool models): 25% of embed, score, caption, " in columns


def test_a_training_alone_may_be_on_cores(tmp_path: Path, shards: Path) -> None:
    training, _ = said(tmp_path, shards, {"pools": [A100], "train": {"gpusPerNode": 0}})
    assert training.endswith("(pool cpu): each training, 2,222.22 core-hours: 2,222.22 hours on 1 core")


def test_what_has_no_stated_rate_is_told(tmp_path: Path, shards: Path) -> None:
    compute = {"pools": [MODELS]}
    captioner = {"name": "blip2", "caption": {"model": "Salesforce/blip-image-captioning-base"}}
    columns, training, _ = said(tmp_path, shards, compute, columns=[captioner], train={"scale": "xlarge"})
    assert "core-hours and more (no stated rate of the rest): " in columns
    assert training == "Without a GPU in a cluster (pool models): each training, no stated rate"


@pytest.mark.parametrize("compute", [{}, {"pools": [A100, {"name": "cpu"}]}])
def test_nothing_is_said_where_all_have_gpus(tmp_path: Path, shards: Path, compute: dict[str, Any]) -> None:
    assert said(tmp_path, shards, compute) == []


@pytest.mark.parametrize(("cpu", "cores"), [(None, 1), ("2", 2), ("500m", 1), ("2500m", 3), ("0", 1), ("1.5", 2)])
def test_cores_of_a_pod(cpu: str | None, cores: int) -> None:
    assert cores_of(NodePool(name="a", cpu=cpu)) == cores
