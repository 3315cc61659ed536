"""caption through the worker loop: the same captions whatever the batches, the parts, the restarts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from components.engine.images import decode
from components.engine.worker import run_task
from components.models.captioner import Sampling
from components.models.captioners import load_captioner
from components.pool.columns import Columns
from components.pool.shards import Pool
from components.pool.specs import ColumnSpec
from components.stages.caption.stage import EMPTY, Caption, CaptionStage
from tests.components.models.tiny import COCA, save_blip, save_blip2, save_open_clip
from tests.pools import indexed, jpeg, sample, uid, write_shard, write_tar

SAVES = {"blip": save_blip, "blip2": save_blip2, "coca": lambda folder: save_open_clip(folder, COCA)}

CONFIGS = ("open_clip_config.json", "config.json")


@pytest.fixture(scope="module", params=SAVES)
def captioner(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Caption:
    folder = SAVES[request.param](tmp_path_factory.mktemp("caption") / f"tiny-caption-{request.param}")
    return Caption(model=str(folder), max_length=10)


def spec_of(captioner: Caption, index: ColumnSpec) -> ColumnSpec:
    return CaptionStage.make_spec(captioner, "spec.columns[0].caption", {"index": index})


def captions(pool: Pool, columns: Columns, index: ColumnSpec, captioner: Caption, **options: int) -> dict[str, str]:
    spec = spec_of(captioner, index)
    run_task(CaptionStage(spec), pool, pool.shards, columns, decoders=0, **options)  # type: ignore[arg-type]
    rows = [row for shard in pool.shards for row in columns.read(spec, shard).to_pylist()]
    return {row["uid"]: row["text"] for row in rows}


def test_captions_are_the_models_whatever_the_batches(tmp_path: Path, captioner: Caption) -> None:
    write_shard(tmp_path / "pool", 0, 7)
    write_shard(tmp_path / "pool", 1, 5, start=7)
    pool, columns, index = indexed(tmp_path / "pool", tmp_path / "out")
    found = captions(pool, columns, index, captioner, batch_size=3)
    model = load_captioner(captioner.model, None, Sampling(0.75, 50, 5, 10))
    images = np.stack([decode(jpeg(i), model.geometry) for i in range(12)])
    spec = spec_of(captioner, index)
    expected = model.generate(images, [uid(i) for i in range(12)], spec.hash)
    assert found == {uid(i): caption for i, caption in enumerate(expected)}


def test_two_parts_hold_the_captions_of_one(tmp_path: Path, captioner: Caption) -> None:
    write_shard(tmp_path / "pool", 0, 9)
    pool, columns, index = indexed(tmp_path / "pool", tmp_path / "whole")
    whole = captions(pool, columns, index, captioner)
    pool, columns, index = indexed(tmp_path / "pool", tmp_path / "parts")
    spec = spec_of(captioner, index)
    run_task(
        CaptionStage(spec), pool, pool.shards, columns, "some", lambda _, rows: np.arange(rows.num_rows) % 4 == 1,
        decoders=0,
    )  # fmt: skip
    assert columns.rows(spec, pool.shards[0]) == 2
    assert captions(pool, columns, index, captioner) == whole


def test_temperature_seed_and_fingerprint_make_other_columns(tmp_path: Path, captioner: Caption) -> None:
    write_shard(tmp_path / "pool", 0, 6)
    pool, columns, index = indexed(tmp_path / "pool", tmp_path / "out")
    base = captions(pool, columns, index, captioner)
    for change in ({"temperature": 1.5}, {"seed": 1}):
        other = captioner.model_copy(update=change)
        assert captions(pool, columns, index, other).keys() == base.keys()
        assert captions(pool, columns, index, other) != base
    before = spec_of(captioner, index)
    config = next(Path(captioner.model) / name for name in CONFIGS if (Path(captioner.model) / name).exists())
    config.write_text(config.read_text() + " ")
    assert spec_of(captioner, index).hash != before.hash


def test_an_image_that_can_not_be_read_has_no_caption(tmp_path: Path, captioner: Caption) -> None:
    write_tar(tmp_path / "pool" / "00000000.tar", {"a": sample(0), "b": sample(1, jpg=b"<html>")})
    pool, columns, index = indexed(tmp_path / "pool", tmp_path / "out")
    found = captions(pool, columns, index, captioner)
    assert found[uid(0)]
    assert found[uid(1)] is None


def test_an_empty_caption_is_a_counted_failure(tmp_path: Path) -> None:
    folder = save_blip(tmp_path / "mute", end_bias=1000.0)
    write_shard(tmp_path / "pool", 0, 3)
    pool, columns, index = indexed(tmp_path / "pool", tmp_path / "out")
    captioner = Caption(model=str(folder), min_length=0, max_length=3)
    assert captions(pool, columns, index, captioner) == {uid(i): None for i in range(3)}
    spec = spec_of(captioner, index)
    assert columns.record(spec, pool.shards[0], "all").failures == {f"sample: {EMPTY}": 3}


def test_label() -> None:
    captioner = Caption(model="Salesforce/blip2-opt-2.7b")
    spec = spec_of(captioner, ColumnSpec("index", "shards", 1, {}))
    assert spec.label == "blip2-opt-2.7b-t0.75"
    assert "name" not in spec.params
