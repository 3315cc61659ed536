"""screen through the worker loop, and a whole run whose screens drop samples."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from components.base.errors import PermanentError
from components.engine.stage import NO_EMBEDDING
from components.engine.worker import run_task
from components.miniature.demo import WEIGHTS
from components.pool.columns import Columns
from components.pool.run import Run
from components.pool.shards import Pool
from components.pool.specs import ColumnSpec
from components.recipe.columns import Options
from components.recipe.recipe import parse_recipe
from components.recipe.scorer import Scorer
from components.selection.rule_inputs import read_values
from components.stages.embed.stage import EmbedStage
from components.stages.screen.classifier import load_classifier
from components.stages.screen.stage import Duplicates, ImageNsfw, ScreenStage, TextNsfw
from pipelines.planning.graph_nodes import groups
from pipelines.planning.plan import plan_run
from tests.components.stages.screen.models import LABELS, logistic, save_classifier
from tests.filled import with_index
from tests.pipelines.execution.test_local import BLIP, recipe_text
from tests.pipelines.test_cli import invoke
from tests.pools import indexed, jpeg, sample, uid, write_shard, write_tar

SCORER = Scorer(model=f"local-dir:{WEIGHTS / 'scorer'}")
SAMPLES = 8
TEXTLESS, UNREADABLE_IMAGE = 2, 3
CLEAN = 0.19  # of the classifier: about half of the texts have a higher score


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One shard with a text that is missing and an image that can't be read, embedded."""
    folder = tmp_path_factory.mktemp("world")
    samples = {f"k{i}": sample(i) for i in range(SAMPLES)}
    samples[f"k{TEXTLESS}"] = sample(TEXTLESS, text="")
    samples[f"k{UNREADABLE_IMAGE}"] = sample(UNREADABLE_IMAGE, jpg=jpeg(1)[:300])
    write_tar(folder / "shards" / "00000000.tar", samples)
    return folder


@pytest.fixture(scope="module")
def embedded(world: Path) -> tuple[Pool, Columns, ColumnSpec, ColumnSpec]:
    pool, columns, index = indexed(world / "shards", world / "out")
    embedding = EmbedStage.of_scorer(SCORER, "spec.scorer", index)
    run_task(EmbedStage(embedding), pool, pool.shards, columns, decoders=0)
    return pool, columns, index, embedding


def spec_of(screen: Options, index: ColumnSpec, embedding: ColumnSpec) -> ColumnSpec:
    reads = {"embedding": embedding, "text": index}
    inputs = {"index": index, **{role: reads[role] for role in screen.reads}}
    return ScreenStage.make_spec(screen, f"spec.columns[0].{screen.kind}", inputs)


def screened(embedded: tuple[Pool, Columns, ColumnSpec, ColumnSpec], screen: Options) -> list[dict[str, Any]]:
    """The rows of the screen's column."""
    pool, columns, index, embedding = embedded
    spec = spec_of(screen, index, embedding)
    run_task(ScreenStage(spec), pool, pool.shards, columns, batch_size=3)
    rows: list[dict[str, Any]] = columns.read(spec, pool.shards[0]).to_pylist()
    assert [row["uid"] for row in rows] == [uid(i) for i in range(SAMPLES)]
    return rows


def vectors(embedded: tuple[Pool, Columns, ColumnSpec, ColumnSpec]) -> list[np.ndarray | None]:
    pool, columns, _, embedding = embedded
    values = columns.read(embedding, pool.shards[0]).column("embedding").to_pylist()
    return [None if v is None else np.array(v, np.float32) for v in values]


def test_a_head_scores_every_embedding(embedded: Any, tmp_path: Path) -> None:
    weight = torch.randn(len(vectors(embedded)[0]), generator=torch.Generator().manual_seed(0)) * 4  # type: ignore[arg-type]
    file = logistic(tmp_path / "head.pth", weight, 0.5)
    rows = screened(embedded, ImageNsfw(weights=str(file)))
    for row, vector in zip(rows, vectors(embedded), strict=True):
        if vector is None:
            assert (row["score"], row["error"]) == (None, NO_EMBEDDING)
        else:
            expected = 1 / (1 + np.exp(-(vector @ weight.numpy() + 0.5)))
            assert row["score"] == pytest.approx(expected, abs=1e-5)
            assert row["error"] is None
    assert [row["score"] is None for row in rows] == [i == UNREADABLE_IMAGE for i in range(SAMPLES)]


def test_duplicates_of_an_index_have_cosine_1(embedded: Any, tmp_path: Path) -> None:
    some = [v for i, v in enumerate(vectors(embedded)) if i in (1, 5)]
    np.save(tmp_path / "index.npy", np.stack([v for v in some if v is not None]))
    rows = screened(embedded, Duplicates(index=str(tmp_path / "index.npy")))
    assert [row["score"] is not None and row["score"] > 0.9999 for row in rows] == [i in (1, 5) for i in range(SAMPLES)]
    assert rows[UNREADABLE_IMAGE]["error"] == NO_EMBEDDING


def test_an_embed_column_is_an_index(embedded: Any, world: Path, tmp_path: Path) -> None:
    _, columns, index, embedding = embedded
    folder = world / "out" / columns.root / embedding.folder
    rows = screened(embedded, Duplicates(index=str(folder)))
    assert [round(row["score"], 3) for row in rows if row["score"] is not None] == [1.0] * (SAMPLES - 1)
    another = shutil.copytree(WEIGHTS / "scorer", tmp_path / "another")
    config = another / "open_clip_config.json"
    config.write_text(config.read_text() + " ")
    other = EmbedStage.of_scorer(Scorer(model=f"local-dir:{another}"), "spec.scorer", index)
    stage = ScreenStage(spec_of(Duplicates(index=str(folder)), index, other))
    with pytest.raises(PermanentError, match="make the index with this scorer"):
        stage.setup(list)


@pytest.mark.parametrize("label", LABELS)
def test_a_classifier_gives_its_label_probability(embedded: Any, tmp_path: Path, label: str) -> None:
    folder = save_classifier(tmp_path / "classifier")
    rows = screened(embedded, TextNsfw(model=str(folder), label=label))
    model, tokenizer = (kind.from_pretrained(folder) for kind in (AutoModelForSequenceClassification, AutoTokenizer))
    model.eval()
    for number, row in enumerate(rows):
        if number == TEXTLESS:
            assert (row["score"], row["error"]) == (None, None)
            continue
        with torch.inference_mode():  # alone: without padding
            logits = model(**tokenizer(f"photo number {number}", return_tensors="pt")).logits
        expected = torch.softmax(logits[0].float(), dim=0)[LABELS.index(label)].item()
        assert row["score"] == pytest.approx(expected, abs=1e-5)
    assert len({row["score"] for row in rows}) > 4


def test_labels_that_do_not_exclude_each_other_and_long_texts(tmp_path: Path) -> None:
    folder = str(save_classifier(tmp_path / "classifier", problem_type="multi_label_classification"))
    long = " ".join(["photo 7"] * 5000)
    found = {label: load_classifier(folder, None, label).score([long, "photo 7 " * 8]) for label in LABELS}
    for scores in found.values():
        assert scores[0] == pytest.approx(scores[1], abs=1e-6), "cut to the model's 16 tokens both are the same"
    assert abs(sum(scores[0] for scores in found.values()) - 1) > 1e-3, "sigmoids, not a softmax"


def test_a_classifier_without_the_label_is_refused(tmp_path: Path) -> None:
    folder = save_classifier(tmp_path / "classifier")
    with pytest.raises(PermanentError, match="has no label NSFW; there is safe, nsfw, spam"):
        load_classifier(str(folder), None, "NSFW")
    (tmp_path / "empty").mkdir()
    with pytest.raises(PermanentError, match=r"screen .*empty: can't be loaded: "):
        load_classifier(str(tmp_path / "empty"), None, "nsfw")


def test_what_made_a_screen_is_in_its_hash(embedded: Any, tmp_path: Path) -> None:
    _, _, index, embedding = embedded

    def spec(**options: Any) -> ColumnSpec:
        return spec_of(ImageNsfw(**{"weights": str(tmp_path / "head.pth"), **options}), index, embedding)

    logistic(tmp_path / "head.pth", torch.ones(4), 0.0)
    first = spec()
    assert spec().hash == first.hash
    logistic(tmp_path / "head.pth", torch.ones(4), 1.0)
    assert spec().hash != first.hash
    with pytest.raises(PermanentError, match=r"spec\.columns\[0\]\.imageNsfw\.weights: .* does not exist"):
        spec(weights=str(tmp_path / "gone.pth"))


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two shards of 6, one image of which can't be read; a head that finds image 1, an index that has 1 and 8."""
    folder = tmp_path_factory.mktemp("pool")
    write_shard(folder / "shards", 0, 6)
    samples = {f"x{i}": sample(i, jpg=jpeg(1)[:300] if i == 11 else jpeg(i)) for i in range(6, 12)}
    write_tar(folder / "shards" / "00000001.tar", samples)
    pool, columns, index = indexed(folder / "shards", folder / "made")
    embedding = EmbedStage.of_scorer(SCORER, "spec.scorer", index)
    run_task(EmbedStage(embedding), pool, pool.shards, columns, decoders=0)
    all_vectors = [v for s in pool.shards for v in columns.read(embedding, s).column("embedding").to_pylist()]
    np.save(folder / "index.npy", np.array([all_vectors[1], all_vectors[8]], np.float16))
    one = torch.tensor(np.array(all_vectors[1], np.float32))
    logistic(folder / "head.pth", one * 1e4, -0.9995e4)  # certain above a cosine of 0.9995 with image 1
    save_classifier(folder / "classifier")
    return folder


def recipe(pool: Path, out: Path, mixtures: list[dict[str, Any]] | None = None, **changes: Any) -> str:
    screens = [
        BLIP,
        {"name": "nsfw", "imageNsfw": {"weights": str(pool / "head.pth")}},
        {"name": "eval", "duplicates": {"index": str(pool / "index.npy")}},
        {"name": "toxic", "textNsfw": {"model": str(pool / "classifier"), "label": "nsfw"}},
    ]
    drop = [{"score": "nsfw", "atLeast": 0.9}, {"score": "eval", "atLeast": 0.999}]
    mixtures = mixtures or [
        {"name": "kept", "rules": [{"text": "raw"}]},
        {"name": "toxic", "rules": [{"text": "raw", "where": [{"score": "toxic", "top": 0.5}]}]},
        {"name": "blip", "rules": [{"text": "blip"}]},
        {
            "name": "clean",
            "rules": [{"text": "raw", "where": [{"score": "toxic", "atMost": CLEAN}]}, {"text": "blip"}],
        },
    ]
    return recipe_text(out, pool / "shards", mixtures, **{"columns": screens, "drop": drop, **changes})


@pytest.fixture(scope="module")
def run(pool: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    out = tmp_path_factory.mktemp("run")
    (out / "recipe.yaml").write_text(recipe(pool, out / "storage"))
    invoke("run", out / "recipe.yaml")
    return plan_run(parse_recipe(recipe(pool, out / "storage")))


def mixture(run: Run, number: int) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(
        run.storage.read(f"{run.mixture_folder(run.spec.mixtures[number])}/mixture.json")
    )
    return found


def test_a_run_drops_what_the_recipe_says_and_counts_it(run: Run) -> None:
    dropped = {"the image can't be read": 1, "dropped: score nsfw ≥ 0.9": 1, "dropped: score eval ≥ 0.999": 1}
    kept = mixture(run, 0)
    assert kept["dropped"] == dropped, "image 1 is counted once, for the first condition that it meets"
    assert (kept["usable"], kept["images"]) == (12, 9)
    page = run.storage.read(f"{run.folder}/report.html").decode()
    assert "The numbers add up." in page
    assert page.count("dropped: score eval ≥ 0.999") == len(run.spec.mixtures)


def test_rules_use_a_screens_score(run: Run) -> None:
    toxic = mixture(run, 1)
    assert toxic["images"] + sum(toxic["dropped"].values()) == 12
    [threshold] = toxic["thresholds"]
    index = run.columns.read(run.index, run.pool.shards[0])
    scores = read_values(run, run.columns, run.pool.shards[0], index, [], ["toxic"], []).scores["toxic"]
    assert 0 < threshold["threshold"] <= scores.max()


def test_a_text_that_is_no_good_is_replaced(run: Run) -> None:
    """What `drop` can't: the image stays, with a caption."""
    [clean] = [m for m in run.spec.mixtures if m.name == "clean"]
    folder = Path(run.storage.uri, run.mixture_folder(clean))
    rows = [row for s in run.pool.shards for row in pq.read_table(folder / f"{s.name}.parquet").to_pylist()]
    sources = {row["uid"]: row["source"] for row in rows}
    node = run.nodes["screen:toxic"].spec
    scores = {r["uid"]: r["score"] for s in run.pool.shards for r in run.columns.read(node, s).to_pylist()}
    assert sources == {u: "raw" if scores[u] <= np.float32(CLEAN) else "blip" for u in sources}
    assert set(sources.values()) == {"raw", "blip"}
    assert f"score toxic ≤ {CLEAN:g}" in run.storage.read(f"{run.folder}/report.html").decode()


def test_what_is_dropped_is_not_captioned(run: Run) -> None:
    """A caption that no mixture can use is not made, also where a rule takes every image."""
    node = run.nodes["caption:blip"]
    captioned = {u for s in run.pool.shards for u in run.columns.read(node.spec, s).column("uid").to_pylist()}
    assert captioned == {uid(i) for i in range(12)} - {uid(1), uid(8)}
    assert mixture(run, 2)["dropped"].keys() >= {"dropped: score nsfw ≥ 0.9", "dropped: score eval ≥ 0.999"}


def test_screens_come_before_captions_in_every_graph(run: Run) -> None:
    keys = list(run.nodes)
    assert max(map(keys.index, ("screen:nsfw", "screen:eval", "screen:toxic"))) < keys.index("caption:blip")
    assert groups(run)["score"] == ["screen:nsfw", "screen:eval", "screen:toxic"]


def test_another_threshold_computes_no_column_anew(run: Run, pool: Path, tmp_path: Path) -> None:
    shutil.copytree(run.storage.uri, tmp_path / "storage")
    text = recipe(pool, tmp_path / "storage").replace("atLeast: 0.9\n", "atLeast: 1.5\n")
    assert "atLeast: 1.5" in text
    (tmp_path / "recipe.yaml").write_text(text)
    before = {p.name for p in (tmp_path / "storage" / "pools").rglob("*.done.json")}
    invoke("run", tmp_path / "recipe.yaml")
    other = plan_run(parse_recipe(text))
    assert mixture(other, 0)["dropped"] == {"the image can't be read": 1, "dropped: score eval ≥ 0.999": 2}
    new = {p for p in (tmp_path / "storage" / "pools").rglob("*.done.json") if p.name not in before}
    assert {p.parent.name.partition(".")[0] for p in new} <= {"caption", "score"}, "the captions' demand is another one"
    assert other.name != run.name


def test_a_recipe_without_screens_keeps_its_names(pool: Path, tmp_path: Path) -> None:
    mixtures = [{"name": "kept", "rules": [{"text": "raw"}]}]
    plain = plan_run(parse_recipe(recipe_text(tmp_path / "out", pool / "shards", mixtures)))
    idle = plan_run(parse_recipe(recipe(pool, tmp_path / "out", mixtures, columns=[BLIP], drop=[])))
    assert idle.name == plain.name
    watching = [BLIP, {"name": "nsfw", "imageNsfw": {"weights": str(pool / "head.pth")}}]
    watched = plan_run(parse_recipe(recipe(pool, tmp_path / "out", mixtures, columns=watching, drop=[])))
    with_index(plain)
    folders = {r.mixture_folder(r.spec.mixtures[0]) for r in (plain, idle, watched)}
    assert len(folders) == 1, "a screen that drops nothing changes no mixture"


@pytest.mark.parametrize(
    ("screen", "says"),
    [
        ({"imageNsfw": {}}, r"spec\.columns\[1\]\.imageNsfw\.weights: missing"),
        ({"duplicates": {"index": "x", "weights": "z"}}, r"duplicates\.weights: unknown key; allowed are index"),
        ({"textNsfw": {"model": "x"}}, r"spec\.columns\[1\]\.textNsfw\.label: missing"),
        ({"faces": {"label": "x"}}, r"faces\.label: unknown key; allowed are weights"),
        (
            {"textNsfw": {"model": "x", "label": "z", "text": "blip"}},
            r"spec\.columns\[1\]\.textNsfw\.text: blip is no text that is there before captions; there is raw",
        ),
        ({"duplicates": {"index": "ftp://x"}}, "scheme ftp:// is not supported"),
        ({"name": "blip", "faces": {}}, r"spec\.columns\[1\]\.name: blip is taken"),
    ],
)
def test_a_mistake_is_one_line(pool: Path, tmp_path: Path, screen: dict[str, Any], says: str) -> None:
    mixtures = [{"name": "kept", "rules": [{"text": "raw"}]}]
    with pytest.raises(PermanentError, match=says) as error:
        parse_recipe(recipe(pool, tmp_path, mixtures, columns=[BLIP, {"name": "s", **screen}], drop=[]))
    assert "\n" not in str(error.value)
