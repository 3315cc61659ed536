"""aesthetic through a whole run: a score of every image that rules can use, and that costs no image tower."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import load_file, save_file

from components.miniature.demo import WEIGHTS
from components.pool.run import Run
from components.recipe.recipe import parse_recipe
from pipelines.planning.graph_nodes import groups
from pipelines.planning.plan import plan_run
from tests.pipelines.execution.test_local import recipe_text, run
from tests.pools import jpeg, sample, uid, write_tar

WIDTH = json.loads((WEIGHTS / "scorer" / "open_clip_config.json").read_text())["model_cfg"]["embed_dim"]
UNREADABLE = 3


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("aesthetic")
    images = [jpeg(1)[:300] if i == UNREADABLE else jpeg(i) for i in range(8)]
    write_tar(folder / "shards" / "00000000.tar", {f"k{i}": sample(i, jpg=image) for i, image in enumerate(images)})
    weight = np.random.default_rng(0).normal(size=(1, WIDTH)).astype(np.float32)
    save_file({"weight": weight, "bias": np.array([5], np.float32)}, folder / "head.safetensors")
    mixtures = [{"name": "pretty", "rules": [{"text": "raw", "where": [{"score": "pretty", "top": 0.5}]}]}]
    columns = [{"name": "pretty", "aesthetic": {"weights": str(folder / "head.safetensors")}}]
    return run(recipe_text(folder / "out", folder / "shards", mixtures, columns=columns))


def test_a_rule_takes_what_people_would_like(done: Run) -> None:
    [shard] = done.pool.shards
    embeddings = done.columns.read(done.nodes["embed"].spec, shard).column("embedding").to_pylist()
    head = done.nodes["aesthetic:pretty"].spec.params["options"]["weights"]
    weight = load_file(head)["weight"][0]
    expected = [None if v is None else float(np.float32(v) @ weight + 5) for v in embeddings]
    rows = done.columns.read(done.score("pretty"), shard).to_pylist()
    assert [row["score"] for row in rows] == [pytest.approx(e, abs=1e-4) if e is not None else None for e in expected]
    assert rows[UNREADABLE]["error"] == "image without an embedding"
    best = sorted((score, i) for i, score in enumerate(expected) if score is not None)[-4:]  # of seven: index ⌊3.5⌋
    folder = Path(done.storage.uri, done.mixture_folder(done.spec.mixtures[0]))
    kept = pq.read_table(folder / f"{shard.name}.parquet").column("uid").to_pylist()
    assert set(kept) == {uid(i) for _, i in best}


def test_it_comes_after_the_embeddings_and_before_captions(done: Run) -> None:
    assert groups(done)["score"] == ["aesthetic:pretty"]
    assert "aesthetic:pretty" in done.storage.read(f"{done.folder}/report.html").decode()


def test_other_weights_are_another_column(done: Run, tmp_path: Path) -> None:
    save_file(
        {"weight": np.ones((1, WIDTH), np.float32), "bias": np.zeros(1, np.float32)}, tmp_path / "other.safetensors"
    )
    columns = [{"name": "pretty", "aesthetic": {"weights": str(tmp_path / "other.safetensors")}}]
    mixtures = [{"name": "pretty", "rules": [{"text": "raw", "where": [{"score": "pretty", "top": 0.5}]}]}]
    text = recipe_text(tmp_path, Path(done.pool.source.uri), mixtures, columns=columns)
    assert plan_run(parse_recipe(text)).score("pretty").hash != done.score("pretty").hash
