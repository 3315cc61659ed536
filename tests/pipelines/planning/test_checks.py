"""What a plan says of models and evaluation sets before anything is loaded: all that can't work, at once."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants
from rich.console import Console

from components.base.errors import PermanentError
from components.engine.registry import column_stage
from components.models.captioners import load_captioner
from components.pool.run import Run, load_run
from components.recipe.recipe import parse_recipe
from components.storage import hub as asking
from pipelines.planning.estimate import show_plan
from pipelines.planning.plan import plan_run
from tests.components.models.hub import COMMIT, hub_server
from tests.components.models.tiny import CLIP, save_blip, save_open_clip
from tests.pipelines.execution.test_local import recipe_text
from tests.pools import write_shard

LATER = "f" * 40
COCA = {"model_cfg": {"embed_dim": 1, "vision_cfg": {}, "text_cfg": {}, "multimodal_cfg": {}}}
FOLDERS: dict[str, dict[str, Any]] = {
    "questions": {"config.json": {"model_type": "blip", "architectures": ["BlipForQuestionAnswering"]}},
    "llava": {"config.json": {"model_type": "llava", "architectures": ["LlavaForConditionalGeneration"]}},
    "clip": {"open_clip_config.json": {"model_cfg": CLIP}},
    "whole": {"open_clip_config.json": {"model_cfg": CLIP}, "open_clip_model.safetensors": {}},
    "words": {"config.json": {"architectures": ["BertForSequenceClassification"], "id2label": {"0": "safe"}}},
    "nothing": {"README.md": {}},
}


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_shard(tmp_path / "shards", 0, 2)
    for name, files in FOLDERS.items():
        write(tmp_path / "models" / name, files)


def write(folder: Path, files: dict[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in files.items():
        (folder / name).write_text(json.dumps(value))


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, str]]:
    """A hub on loopback that can be reached; what it gives is the commits of its repositories, to be changed."""
    root, commits = tmp_path / "hub", {"org/blip": COMMIT}
    save_blip(root / "org/blip")
    write(root / "org/llava", FOLDERS["llava"])
    write(root / "org/clip", FOLDERS["clip"])
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    with hub_server(root, commits=commits) as address:
        monkeypatch.setenv("HF_ENDPOINT", address)
        monkeypatch.setattr(constants, "ENDPOINT", address)  # which the hub's client reads when it is imported
        template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace("https://huggingface.co", address)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        yield commits
    asking.forget()


def planned(columns: list[dict[str, Any]], **spec: Any) -> Run:
    names = [column["name"] for column in columns if "caption" in column] or ["raw"]
    mixtures = [{"name": "all", "rules": [{"text": name} for name in names]}]
    return plan_run(parse_recipe(recipe_text(Path("out"), Path("shards"), mixtures, columns=columns, **spec)))


def captions(model: str, **options: Any) -> list[dict[str, Any]]:
    return [{"name": "c", "caption": {"model": model, **options}}]


def clip(model: str, weights: str | None = None) -> list[dict[str, Any]]:
    return [{"name": "s", "clip": {"model": model, **({"weights": weights} if weights else {})}}]


WRONG: dict[str, tuple[Callable[[], list[dict[str, Any]]], str]] = {
    "another model of BLIP": (lambda: captions("models/questions"), "is a BlipForQuestionAnswering, which writes no"),
    "a VLM": (lambda: captions("./models/llava"), r"is a llava model \(LlavaForConditionalGeneration\); supported are"),
    "a CLIP": (lambda: captions("models/clip"), "is a CLIP, which has no text decoder"),
    "no model": (lambda: captions("models/nothing"), "models/nothing has no config.json"),
    "no folder": (lambda: captions("/nowhere"), "/nowhere does not exist"),
    "no name": (lambda: captions("blip2"), "is no folder, and no name of a hub's model"),
    "a CoCa's name": (lambda: captions("open_clip:coca_ViT-B32/laion2b"), "did you mean coca_ViT-B-32"),
    "a CLIP's name as a CoCa": (lambda: captions("open_clip:ViT-B-32/openai"), "open_clip has no CoCa ViT-B-32"),
    "a CoCa's tag": (lambda: captions("open_clip:coca_ViT-B-32/laion2b"), "no weights laion2b; .* laion2b_s13b_b90k"),
    "a name": (lambda: clip("ViT-L14", "openai"), "open_clip has no model ViT-L14; did you mean ViT-L-14"),
    "a tag": (lambda: clip("ViT-L-14", "opnai"), "ViT-L-14 has no weights opnai; give a checkpoint file or one of op"),
    "no tag": (lambda: clip("ViT-B-32"), "ViT-B-32 has no weights None"),
    "a tag for a folder": (lambda: clip("local-dir:models/whole", "openai"), "brings its weights, and openai is no"),
    "a folder without weights": (lambda: clip("local-dir:models/clip"), "has no weights beside its open_clip_config"),
    "a captioner as a CLIP": (lambda: clip("models/llava"), "has no open_clip_config.json"),
    "a label": (
        lambda: [{"name": "t", "textNsfw": {"model": "models/words", "label": "nsfw"}}],
        "models/words has no label nsfw; there is safe",
    ),
    "a file": (lambda: [{"name": "a", "aesthetic": {"weights": "gone.pth"}}], "weights: gone.pth does not exist"),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_model_that_can_not_work_is_said(what: str) -> None:
    columns, message = WRONG[what]
    with pytest.raises(PermanentError, match=message) as caught:
        planned(columns())
    assert str(caught.value).startswith("spec.columns[0].")
    assert "\n" not in str(caught.value)


def test_everything_is_said_at_once() -> None:
    (Path("tasks") / "wds_there/test").mkdir(parents=True)
    (Path("tasks") / "wds_there/test/nshards.txt").write_text("1")
    scale = {"model": "ViT-B32", "batchSize": 4, "learningRate": 1, "warmup": 1, "samples": 8}
    columns = [*captions("models/llava"), *clip("ViT-L-14", "opnai")]
    with pytest.raises(PermanentError) as caught:
        planned(
            columns,
            scorer={"model": "ViT-L-41", "weights": "openai"},
            train={"scale": scale},
            evaluate={"root": "tasks", "tasks": ["wds_there", "wds_their"]},
        )
    lines = str(caught.value).split("\n")
    assert [line.partition(":")[0] for line in lines] == [
        "spec.scorer.model",
        "spec.columns[0].caption.model",
        "spec.columns[1].clip.weights",
        "spec.evaluate",
        "spec.train.scale.model",
    ]
    assert "1 of 2 data sets can't be evaluated (wds_their): no data set at" in lines[3]
    assert caught.value.exit_code == 42


def test_names_of_open_clip_that_it_has_are_planned() -> None:
    assert planned([*captions("open_clip:coca_ViT-B-32/laion2b_s13b_b90k"), *clip("ViT-B-16-SigLIP", "webli")])


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (captions("org/gone"), r"caption\.model: org/gone: the hub has no such repository"),
        (captions("org/blip", revision="v9"), "org/blip: the hub has no revision v9"),
        (captions("org/llava"), "org/llava is a llava model"),
        (clip("hf-hub:org/blip"), "org/blip has no open_clip_config.json"),
        (captions("hf-hub:org/clip"), "org/clip is a CLIP"),
        (clip("org/clip"), "for a model of the hub write hf-hub:org/clip"),
    ],
)
def test_a_model_of_the_hub_that_can_not_work_is_said(
    hub: dict[str, str], columns: list[dict[str, Any]], message: str
) -> None:
    with pytest.raises(PermanentError, match=message) as caught:
        planned(columns)
    assert "\n" not in str(caught.value)


def shown(run: Run) -> str:
    sink = io.StringIO()
    show_plan(run, Console(file=sink, width=1000))
    return sink.getvalue()


def caption_of(run: Run) -> str:
    return run.nodes["caption:c"].spec.folder


def test_a_revision_is_the_commit_that_it_was_when_the_run_was_planned(hub: dict[str, str]) -> None:
    """The tasks load that one, though the branch has moved since; another plan makes another column."""
    first = planned(captions("org/blip"))
    first.save()
    assert f"org/blip is taken at main's commit {COMMIT}" in shown(first)
    assert caption_of(planned(captions("org/blip", revision="main"))) != caption_of(first)  # said otherwise
    hub["org/blip"] = LATER
    second = planned(captions("org/blip"))
    assert caption_of(second) != caption_of(first)
    kept = load_run(f"{first.storage.uri}/{first.folder}").nodes["caption:c"].spec
    assert column_stage("caption")(kept).commit() == COMMIT
    with pytest.raises(PermanentError, match="can't be loaded"):
        load_captioner("org/blip", column_stage("caption")(kept).commit())  # this hub has the later one only
    load_captioner("org/blip", column_stage("caption")(second.nodes["caption:c"].spec).commit())


def test_without_the_hub_its_cache_says_the_commit(hub: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    load_captioner("org/blip")
    first = planned(captions("org/blip"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert caption_of(planned(captions("org/blip"))) == caption_of(first)
    with pytest.raises(PermanentError, match="has no open_clip_config"):
        planned(clip("hf-hub:org/blip"))


def test_what_could_not_be_checked_is_said() -> None:
    run = planned([*captions("org/blip"), {"name": "d", "caption": {"model": "org/blip", "seed": 1}}])
    assert "org/blip was not checked: " in (text := shown(run))
    assert "give `revision` a commit" in text
    assert column_stage("caption")(run.nodes["caption:c"].spec).commit() is None


def test_weights_in_doubt_are_said_after_one_look() -> None:
    Path("mine.pt").write_bytes(b"x")
    run = planned(clip("ViT-L-14", "mine.pt"))
    Path("mine.pt").unlink()  # a second look would refuse the recipe
    assert "weights mine.pt: nothing says how they were trained" in shown(run)


def test_a_scorer_of_the_hub_is_taken_at_its_commit(hub: dict[str, str], tmp_path: Path) -> None:
    save_open_clip(tmp_path / "hub/org/scorer", CLIP)
    good = {"name": "good", "rules": [{"text": "raw", "where": [{"score": "raw", "atLeast": 0}]}]}
    recipe = recipe_text(Path("out"), Path("shards"), [good], columns=[], scorer={"model": "hf-hub:org/scorer"})
    run = plan_run(parse_recipe(recipe))
    nodes = [run.nodes["embed"].spec, run.nodes["score:raw"].spec]
    assert [column_stage(spec.stage)(spec).commit() for spec in nodes] == [COMMIT, COMMIT]
