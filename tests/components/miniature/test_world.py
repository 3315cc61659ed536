"""The miniature in the formats of the real thing."""

import hashlib
import json
import tarfile
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from components.miniature.build import WEIGHTS, fresh, said
from components.miniature.demo import prepare
from components.miniature.pool import write_pool
from components.miniature.world import CLASSES, Thing, alt_text, imagine, render
from components.recipe.recipe import load_recipe
from tests.pools import indexed


def test_a_pool_in_datacomps_layout(tmp_path: Path) -> None:
    write_pool(tmp_path, 250, 100, seed=3)
    assert sorted(p.name for p in tmp_path.glob("*.tar")) == ["00000000.tar", "00000001.tar", "00000002.tar"]
    rows = pq.read_table(tmp_path / "00000000.parquet").to_pylist()
    assert len(rows) == 100
    arrived = [row for row in rows if row["status"] == "success"]
    with tarfile.open(tmp_path / "00000000.tar") as tar:
        names = tar.getnames()
        assert [n for n in names if n.endswith(".jpg")] == [f"{row['key']}.jpg" for row in arrived]
        member = tar.extractfile(f"{arrived[0]['key']}.json")
        assert member is not None
        assert json.loads(member.read())["uid"] == arrived[0]["uid"]
    stats = json.loads((tmp_path / "00000000_stats.json").read_text())
    assert stats["successes"] == len(arrived) < 100


def test_the_same_seed_gives_the_same_bytes(tmp_path: Path) -> None:
    digests = []
    for name in ("a", "b"):
        write_pool(tmp_path / name, 40, 20, seed=1)
        digests.append({p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in (tmp_path / name).iterdir()})
    assert digests[0] == digests[1]


def test_the_pool_is_indexed_with_its_reasons(tmp_path: Path) -> None:
    write_pool(tmp_path / "pool", 300, 300, seed=5)
    pool, columns, index = indexed(tmp_path / "pool", tmp_path / "out")
    failures = columns.record(index, pool.shards[0], "all").failures
    assert any(reason.startswith("download: ") for reason in failures)
    assert failures["text: none"] > 0
    assert not any(reason.startswith(("shard: ", "sample: ")) for reason in failures)


def test_the_demo_recipe_is_valid_and_prepared_once(tmp_path: Path) -> None:
    recipe = load_recipe(prepare(tmp_path, samples=60, seed=2))
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*.tar")}
    assert load_recipe(prepare(tmp_path, samples=60, seed=2)) == recipe
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*.tar")} == before


def test_alt_texts_are_a_careless_webs() -> None:
    random = np.random.default_rng(0)
    things = [imagine(random) for _ in range(2000)]
    texts = [alt_text(thing, random) for thing in things]
    named = np.mean([bool(text) and thing.name in str(text) for thing, text in zip(things, texts, strict=True)])
    assert 0.35 < named < 0.5
    assert 0.01 < np.mean([text is None for text in texts]) < 0.06


def test_all_classes_look_different() -> None:
    names = [name.split() for name in CLASSES]
    things = [Thing(shape, pattern, "red", "snow", "middle", None) for pattern, shape in names]
    assert len({render(thing, np.random.default_rng(1)).tobytes() for thing in things}) == len(CLASSES)


def test_the_shipped_weights_are_small() -> None:
    assert sum(p.stat().st_size for p in WEIGHTS.rglob("*") if p.is_file()) < 3_000_000


@pytest.mark.slow
def test_the_shipped_scorer_knows_the_world() -> None:
    from components.models.clip import load_clip

    images, labels = fresh(300)
    clip = load_clip(f"local-dir:{WEIGHTS / 'scorer'}")
    found = clip.embed_images(images.permute(0, 2, 3, 1).numpy()).astype(np.float32)
    names = clip.embed_texts(list(CLASSES)).astype(np.float32)
    assert np.mean((found @ names.T).argmax(1) == labels) > 0.9


@pytest.mark.slow
def test_the_shipped_captioner_names_most_shapes() -> None:
    fine = float(said(WEIGHTS / "captioner", 200).split()[1])
    assert 0.5 < fine < 0.85
