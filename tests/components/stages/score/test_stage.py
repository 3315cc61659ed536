"""score through the worker loop: cosines of the stored embeddings, nulls where a side is missing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from components.engine.stage import Batch, ColumnStage, Field, Needs
from components.engine.worker import run_task
from components.miniature.demo import WEIGHTS
from components.models.clip import load_clip
from components.pool.columns import Columns
from components.pool.specs import ColumnSpec
from components.recipe.recipe import parse_recipe
from components.recipe.scorer import Scorer
from components.stages.embed.stage import EmbedStage
from components.stages.score.stage import ScoreStage
from pipelines.planning.graph_nodes import groups
from pipelines.planning.plan import plan_run
from tests.components.models.tiny import CLIP, save_open_clip
from tests.pipelines.execution.test_local import recipe_text, run
from tests.pools import indexed, jpeg, sample, uid, write_tar


class Upper(ColumnStage):
    """A text column as a captioner makes one: some rows null."""

    name, summary, writes = "upper", "texts", "text"
    reads = ()
    needs = Needs(memory_gib=1)
    version = 1
    fields = (Field("text", "string", "text"),)

    def process(self, batch: Batch) -> Mapping[str, Sequence[Any]]:
        return {"text": [None if int(u, 16) % 3 == 0 else f"caption {u}" for u in batch.uids]}


@pytest.fixture(scope="module")
def scorer(tmp_path_factory: pytest.TempPathFactory) -> Scorer:
    return Scorer(model=str(save_open_clip(tmp_path_factory.mktemp("clip") / "tiny-score", CLIP)))


@pytest.fixture
def embedded(tmp_path: Path, scorer: Scorer) -> tuple[Any, Columns, ColumnSpec, ColumnSpec]:
    """Eleven samples: 2 and 7 without an image, 5 and 7 without a text."""
    samples = {
        f"k{i:02d}": sample(i, text="" if i in (5, 7) else f"text {i}", jpg=b"" if i in (2, 7) else jpeg(i))
        for i in range(11)
    }
    write_tar(tmp_path / "pool" / "00000000.tar", samples)
    pool, columns, index = indexed(tmp_path / "pool", tmp_path / "out")
    embedding = EmbedStage.of_scorer(scorer, "spec.scorer", index)
    run_task(EmbedStage(embedding), pool, pool.shards, columns, decoders=0)
    return pool, columns, index, embedding


def test_cosines_of_the_raw_texts(embedded: Any, scorer: Scorer) -> None:
    pool, columns, index, embedding = embedded
    spec = ScoreStage.of_text(index, embedding, index)
    run_task(ScoreStage(spec), pool, pool.shards, columns, batch_size=4)
    table = columns.read(spec, pool.shards[0])
    cosines = table.column("cosine").to_pylist()
    assert table.schema.field("cosine").type == pa.float32()
    assert [c is None for c in cosines] == [i in (2, 5, 7) for i in range(11)]
    assert [e is None for e in table.column("error").to_pylist()] == [i not in (2, 7) for i in range(11)]
    vectors = columns.read(embedding, pool.shards[0]).column("embedding").to_pylist()
    texts = load_clip(scorer.model).embed_texts([f"text {i}" for i in range(11)]).astype(np.float64)
    for i, cosine in enumerate(cosines):
        if cosine is not None:
            image = np.array(vectors[i], np.float64)
            expected = image @ texts[i] / np.linalg.norm(image) / np.linalg.norm(texts[i])
            assert cosine == pytest.approx(expected, abs=2e-3)  # texts in another batch: a float16 step
            assert -1 <= cosine <= 1


def test_a_caption_column_is_scored_without_reading_an_image(
    embedded: Any, scorer: Scorer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool, columns, index, embedding = embedded
    text = ColumnSpec("caption", "upper", 1, {}, {"index": index})
    run_task(Upper(text), pool, pool.shards, columns)
    spec = ScoreStage.of_text(index, embedding, text)
    stage = ScoreStage(spec)
    monkeypatch.setattr("components.models.clip.Clip.embed_images", lambda *_: pytest.fail("ran the image tower"))
    tar = tmp_path / "pool" / "00000000.tar"
    tar.write_bytes(b"\0" * tar.stat().st_size)
    run_task(stage, pool, pool.shards, columns, batch_size=2)
    cosines = columns.read(spec, pool.shards[0]).column("cosine").to_pylist()
    assert [c is None for c in cosines] == [i % 3 == 0 or i in (2, 7) for i in range(11)]
    assert len(set(cosines)) == sum(c is not None for c in cosines) + 1


def test_a_partial_text_column_is_scored_where_it_is(embedded: Any, scorer: Scorer) -> None:
    pool, columns, index, embedding = embedded
    text = ColumnSpec("caption", "upper", 1, {}, {"index": index})
    run_task(Upper(text), pool, pool.shards, columns, "some", lambda _, rows: np.arange(rows.num_rows) < 5)
    spec = ScoreStage.of_text(index, embedding, text)
    run_task(ScoreStage(spec), pool, pool.shards, columns, "some")
    assert columns.read(spec, pool.shards[0]).column("uid").to_pylist() == [uid(i) for i in range(5)]


def test_a_batch_without_any_text(embedded: Any, scorer: Scorer) -> None:
    pool, columns, index, embedding = embedded
    spec = ScoreStage.of_text(index, embedding, index)
    run_task(ScoreStage(spec), pool, pool.shards, columns, batch_size=1)
    assert columns.read(spec, pool.shards[0]).column("cosine").null_count == 3


def test_labels_say_which_text_by_which_scorer() -> None:
    index = ColumnSpec("index", "shards", 1, {})
    embedding = EmbedStage.of_scorer(Scorer(), "spec.scorer", index)
    caption = ColumnSpec("caption", "blip2-opt-2.7b-t0.75", 1, {}, {"index": index})
    raw = ScoreStage.of_text(index, embedding, index)
    synthetic = ScoreStage.of_text(index, embedding, caption)
    assert raw.label == "raw-by-vit-l-14-openai"
    assert synthetic.label == "blip2-opt-2.7b-t0.75-by-vit-l-14-openai"
    assert raw.hash != synthetic.hash


def both_scores(name: str) -> list[dict[str, Any]]:
    """A mixture by this score and the recipe's own."""
    return [
        {
            "name": "m",
            "rules": [{"text": "raw", "where": [{"score": name, "top": 0.5}, {"score": "raw", "atLeast": -1}]}],
        }
    ]


def test_a_further_clip_scores_beside_the_recipes_scorer(tmp_path: Path, scorer: Scorer) -> None:
    """Each has embeddings of its own; by the same CLIP it would be the same column."""
    write_tar(tmp_path / "shards" / "00000000.tar", {f"k{i}": sample(i) for i in range(6)})
    mixtures = [
        {
            "name": "m",
            "rules": [{"text": "raw", "where": [{"score": "other", "top": 0.5}, {"score": "raw", "atLeast": -1}]}],
        }
    ]
    columns = [{"name": "other", "clip": {"model": scorer.model}}]
    done = run(recipe_text(tmp_path / "out", tmp_path / "shards", mixtures, columns=columns))
    assert groups(done)["embed"] == ["embed", "embed:other"]
    assert groups(done)["score"] == ["score:raw", "score:other"]
    own, other = done.score("raw"), done.score("other")
    assert own.inputs["embedding"].hash != other.inputs["embedding"].hash
    [shard] = done.pool.shards
    embeddings = done.columns.read(other.inputs["embedding"], shard).column("embedding").to_pylist()
    texts = load_clip(scorer.model).embed_texts([f"photo number {i}" for i in range(6)]).astype(np.float32)
    found = done.columns.read(other, shard).column("cosine").to_pylist()
    for vector, text, cosine in zip(embeddings, texts, found, strict=True):
        assert cosine == pytest.approx(float(np.float32(vector) @ text / np.linalg.norm(text)), abs=2e-3)
    same = [{"name": "same", "clip": {"model": f"local-dir:{WEIGHTS / 'scorer'}"}}]
    twin = plan_run(parse_recipe(recipe_text(tmp_path / "out", tmp_path / "shards", both_scores("same"), columns=same)))
    assert twin.score("same") == twin.score("raw") == own
