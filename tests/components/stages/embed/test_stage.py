"""embed through the worker loop."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from components.base.errors import PermanentError
from components.engine.images import decode
from components.engine.worker import run_task
from components.models.clip import load_clip
from components.pool.columns import Columns
from components.pool.shards import Pool
from components.pool.specs import ColumnSpec
from components.recipe.scorer import Scorer
from components.stages.embed.stage import EmbedStage
from tests.components.models.tiny import CLIP, save_open_clip
from tests.pools import indexed, jpeg, sample, uid, write_shard, write_tar


@pytest.fixture(scope="module")
def scorer(tmp_path_factory: pytest.TempPathFactory) -> Scorer:
    return Scorer(model=str(save_open_clip(tmp_path_factory.mktemp("clip") / "tiny-embed", CLIP)))


def embedded(pool: Pool, columns: Columns, index: ColumnSpec, scorer: Scorer, batch_size: int = 4) -> ColumnSpec:
    spec = EmbedStage.of_scorer(scorer, "spec.scorer", index)
    run_task(EmbedStage(spec), pool, pool.shards, columns, batch_size=batch_size, decoders=0)
    return spec


def test_every_image_has_the_models_embedding(tmp_path: Path, scorer: Scorer) -> None:
    write_shard(tmp_path / "pool", 0, 10)
    pool, columns, index = indexed(tmp_path / "pool", tmp_path / "out")
    spec = embedded(pool, columns, index, scorer)
    table = columns.read(spec, pool.shards[0])
    clip = load_clip(scorer.model)
    expected = clip.embed_images(np.stack([decode(jpeg(i), clip.geometry) for i in range(10)]))
    found = np.array(table.column("embedding").to_pylist(), np.float16)
    assert table.column("uid").to_pylist() == [uid(i) for i in range(10)]
    # another batch: matrix products may differ in float32's last bits, hence by one float16 step here and there
    np.testing.assert_allclose(found, expected, atol=1e-3)


def test_an_image_that_can_not_be_read_is_a_null_with_a_reason(tmp_path: Path, scorer: Scorer) -> None:
    samples = {f"k{i}": sample(i, jpg=b"" if i in (1, 2) else jpeg(i)) for i in range(6)}
    write_tar(tmp_path / "pool" / "00000000.tar", samples)
    pool, columns, index = indexed(tmp_path / "pool", tmp_path / "out")
    table = columns.read(embedded(pool, columns, index, scorer), pool.shards[0])
    assert [v is None for v in table.column("embedding").to_pylist()] == [i in (1, 2) for i in range(6)]
    assert table.column("error").to_pylist() == ["empty image" if i in (1, 2) else None for i in range(6)]


def test_running_it_again_gives_the_same_bytes(tmp_path: Path, scorer: Scorer) -> None:
    write_shard(tmp_path / "pool", 0, 10)
    files = []
    for out in ("a", "b"):
        pool, columns, index = indexed(tmp_path / "pool", tmp_path / out)
        spec = embedded(pool, columns, index, scorer)
        files.append((tmp_path / out / columns.record(spec, pool.shards[0], "all").file).read_bytes())
    assert files[0] == files[1]


def test_the_hash_covers_what_makes_the_values() -> None:
    index = ColumnSpec("index", "shards", 1, {})
    base = EmbedStage.of_scorer(Scorer(), "spec.scorer", index)
    assert base.label == "vit-l-14-openai"
    assert base.hash == EmbedStage.of_scorer(Scorer(weights="openai"), "spec.scorer", index).hash
    assert base.hash != EmbedStage.of_scorer(Scorer(model="ViT-B-32", weights="openai"), "spec.scorer", index).hash


def test_a_model_that_is_not_there_stops_before_any_work(tmp_path: Path) -> None:
    write_shard(tmp_path / "pool", 0, 2)
    pool, columns, index = indexed(tmp_path / "pool", tmp_path / "out")
    with pytest.raises(PermanentError, match=r"spec\.scorer\.model: /nowhere/clip does not exist"):
        embedded(pool, columns, index, Scorer(model="/nowhere/clip"))
