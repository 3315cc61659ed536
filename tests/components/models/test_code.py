"""No model's file runs Python or asks on the terminal; what a file names is refused in one line."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import transformers.dynamic_module_utils as dynamic

from components.base.errors import PermanentError
from components.miniature.demo import WEIGHTS
from components.models.captioners import load_captioner
from components.models.clip import load_clip
from components.stages.screen.classifier import load_classifier
from tests.components.models import evil
from tests.components.models.hub import hub_server
from tests.components.models.tiny import save_blip
from tests.components.stages.screen.models import save_classifier

Make = Callable[[Path, Path], Path]
Load = Callable[[str], Any]


def classify(model: str) -> Any:
    return load_classifier(model, None, "nsfw")


CASES: dict[str, tuple[Make, Load, str]] = {
    "scorer": (
        evil.scorer,
        load_clip,
        "open_clip_config.json has model_cfg.text_cfg.tokenizer_kwargs.trust_remote_code",
    ),
    "coca": (
        evil.coca,
        load_captioner,
        "open_clip_config.json has model_cfg.text_cfg.tokenizer_kwargs.trust_remote_code",
    ),
    "captioner": (evil.config, load_captioner, "config.json has auto_map"),
    "captioner, nested": (evil.nested, load_captioner, "config.json has text_config.auto_map"),
    "classifier": (evil.config, classify, "config.json has auto_map"),
}


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> io.StringIO:
    """Standard input, on which somebody would say yes."""
    monkeypatch.setattr(dynamic, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    typed = io.StringIO("y\n" * 20)
    monkeypatch.setattr(sys, "stdin", typed)
    return typed


@pytest.mark.parametrize(("make", "load", "named"), CASES.values(), ids=CASES.keys())
def test_a_folder_that_brings_python(tmp_path: Path, terminal: io.StringIO, make: Make, load: Load, named: str) -> None:
    folder, sentinel = make(tmp_path / "model", tmp_path / "sentinel"), tmp_path / "sentinel"
    with pytest.raises(PermanentError) as caught:
        load(str(folder))
    assert not sentinel.exists()
    assert terminal.tell() == 0
    assert named in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("file", "value", "named"),
    [
        ("processor_config.json", {"image_processor": [{"auto_map": {"AutoImageProcessor": "brought.X"}}]}, True),
        ("generation_config.json", {"trust_remote_code": 1}, True),
        ("deep/below/config.json", {"a": [[{"b": {"custom_pipelines": {"x": {"impl": "brought.X"}}}}]]}, True),
        ("config.json", {"attn_implementation": "org/kernel"}, True),
        ("config.json", {"text_config": {"_attn_implementation": {"": "org/kernel"}}}, True),
        ("adapter_config.json", {"base_model_name_or_path": "org/model"}, True),
        ("config.json", {"trust_remote_code": False, "auto_map": {}, "attn_implementation": "sdpa"}, False),
    ],
)
def test_keys_in_any_json_file(tmp_path: Path, file: str, value: Any, named: bool) -> None:
    folder = tmp_path / "classifier"
    save_classifier(folder)
    path = folder / file
    path.parent.mkdir(parents=True, exist_ok=True)
    evil.edit(path, **value)
    (folder / "number.json").write_text("5")
    if not named:
        assert classify(str(folder)).score(["a photo"]).shape == (1,)
        return
    with pytest.raises(PermanentError, match=rf"^screen {folder}: (has )?{file}") as caught:
        classify(str(folder))
    assert "\n" not in str(caught.value)


def test_a_file_that_is_nested_without_end(tmp_path: Path) -> None:
    save_classifier(tmp_path / "classifier")
    (tmp_path / "classifier" / "more.json").write_text("[" * 100_000)
    with pytest.raises(PermanentError, match=r"more\.json is nested too deeply"):
        classify(str(tmp_path / "classifier"))


def test_a_tower_from_elsewhere(tmp_path: Path) -> None:
    """timm would fetch the config that this names, and build what that says."""
    shutil.copytree(WEIGHTS / "scorer", tmp_path / "scorer")
    evil.edit(tmp_path / "scorer" / "open_clip_config.json", "model_cfg", "vision_cfg", timm_model_name="hf-hub:org/x")
    with pytest.raises(PermanentError, match=r"vision_cfg\.timm_model_name is hf-hub:org/x; expected a name of timm"):
        load_clip(str(tmp_path / "scorer"))


CHILD = """
import json, os, sys, warnings
warnings.simplefilter("ignore")
import numpy
from components.models.captioners import load_captioner
from components.models.clip import load_clip
from components.base.errors import PermanentError
from components.stages.screen.classifier import load_classifier
from tests.components.models.tiny import pixels

def clip(model, weights=None):
    found = load_clip(model, weights)
    return [found.embed_texts(["a red box", "x"]).tolist(), found.embed_images(pixels(2, 48)).tolist()]

def captions(model, revision=None):
    return load_captioner(model, revision).generate(pixels(3), ["a", "b", "c"], "column")

def scores(model):
    return load_classifier(model, None, "nsfw").score(["a photo", "of the number 7"]).tolist()

for line in open(sys.argv[1]):
    kind, *arguments = json.loads(line)
    try:
        found = {"clip": clip, "captions": captions, "scores": scores}[kind](*arguments)
    except PermanentError as error:
        found = str(error)
    print("\\nFOUND", json.dumps(found), os.lseek(0, 0, os.SEEK_CUR), flush=True)
"""


def loaded(tmp_path: Path, loads: list[list[str]], **environment: str) -> list[Any]:
    """What each load gave, or its error; in a process whose standard input says yes, and was not read."""
    (tmp_path / "loads").write_text("\n".join(map(json.dumps, loads)))
    (tmp_path / "typed").write_text("y\n" * 50)
    with open(tmp_path / "typed") as typed:
        child = subprocess.run(
            [sys.executable, "-c", CHILD, tmp_path / "loads"],
            stdin=typed, capture_output=True, text=True, check=False,
            env={**os.environ, "HF_HOME": str(tmp_path / "hub"), **environment},
        )  # fmt: skip
    lines = [line.removeprefix("FOUND ") for line in child.stdout.splitlines() if line.startswith("FOUND ")]
    assert len(lines) == len(loads), child.stderr
    assert {line.rpartition(" ")[2] for line in lines} == {"0"}, "standard input was read"
    return [json.loads(line.rpartition(" ")[0]) for line in lines]


@pytest.mark.slow
def test_models_of_the_hub(tmp_path: Path) -> None:
    """They load as their folders do, are checked before a library acts on them, and stay in the cache."""
    root, sentinel = tmp_path / "root", tmp_path / "sentinel"
    shutil.copytree(WEIGHTS / "scorer", root / "org/clip")
    evil.edit(root / "org/clip/open_clip_config.json", "model_cfg", "text_cfg", hf_tokenizer_name="org/words")
    (root / "org/words").mkdir()
    for file in ("tokenizer.json", "tokenizer_config.json"):
        (root / "org/clip" / file).rename(root / "org/words" / file)
    save_blip(root / "org/blip")
    save_classifier(root / "org/classifier")
    evil.config(root / "org/other", sentinel)
    (root / "org/other/config.json").write_text(json.dumps({"model_type": "bert"}))
    (root / "org/other/model.safetensors").write_bytes(b"large")
    evil.scorer(root / "evil/clip", sentinel)
    evil.edit(root / "evil/clip/open_clip_config.json", "model_cfg", "text_cfg", hf_tokenizer_name="evil/clip")
    evil.config(root / "evil/config", sentinel)
    for name, key, value in (("words", "hf_tokenizer_name", "evil/clip"), ("tower", "hf_model_name", "evil/config")):
        shutil.copytree(root / "org/clip", root / "evil" / name)
        evil.edit(root / "evil" / name / "open_clip_config.json", "model_cfg", "text_cfg", **{key: value})
    good = [["clip", "hf-hub:org/clip"], ["captions", "org/blip", "main"], ["scores", "org/classifier"]]
    bad = {
        "captioner org/other: is a bert model": ["captions", "org/other"],
        "model hf-hub:evil/clip: open_clip_config.json has model_cfg.text_cfg.tok": ["clip", "hf-hub:evil/clip"],
        "model hf-hub:evil/words: open_clip_config.json has model_cfg.text_cfg.tok": ["clip", "hf-hub:evil/words"],
        "model hf-hub:evil/tower: config.json has auto_map": ["clip", "hf-hub:evil/tower"],
        "captioner evil/config: config.json has auto_map": ["captions", "evil/config"],
        "screen evil/config: config.json has auto_map": ["scores", "evil/config"],
    }
    asked: list[str] = []
    with hub_server(root, asked) as address:
        found = loaded(tmp_path, [*good, *bad.values()], HF_ENDPOINT=address, HF_HUB_OFFLINE="0")
    assert not sentinel.exists()
    for message, said in zip(bad, found[len(good) :], strict=True):
        assert said.startswith(message)
        assert "\n" not in said
    assert not [name for name in asked if name.endswith(".py") or name == "org/other/model.safetensors"]
    shutil.copytree(root / "org/words", root / "org/clip", dirs_exist_ok=True)
    here = [["clip", str(root / "org/clip")], *([kind, str(root / name)] for kind, name, *_ in good[1:])]
    again = loaded(tmp_path, [*here, *good], HF_HUB_OFFLINE="1")
    assert again[: len(here)] == again[len(here) :] == found[: len(good)]
