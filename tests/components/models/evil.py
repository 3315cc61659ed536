"""Model folders that bring Python: it writes a file, the sentinel, when a library runs it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from components.miniature.demo import WEIGHTS
from tests.components.models.tiny import COCA, save_blip2, save_open_clip

MODULE = """
from pathlib import Path
Path({sentinel!r}).touch()
from transformers import PreTrainedConfig, PreTrainedTokenizerFast
class Config(PreTrainedConfig):
    model_type = "brought"
class Tokenizer(PreTrainedTokenizerFast):
    pass
"""
TOKENIZER = {"auto_map": {"AutoTokenizer": ["brought.Tokenizer", None]}}
CONFIG = {"model_type": "brought", "auto_map": {"AutoConfig": "brought.Config"}}
TRUST = {"trust_remote_code": True}


def edit(path: Path, *keys: str, **values: Any) -> None:
    """Set values of the mapping at `keys` of a JSON file."""
    whole = json.loads(path.read_text()) if path.exists() else {}
    inner = whole
    for key in keys:
        inner = inner.setdefault(key, {})
    inner.update(values)
    path.write_text(json.dumps(whole))


def arm(folder: Path, sentinel: Path) -> Path:
    """Put the Python file into a folder."""
    (folder / "brought.py").write_text(MODULE.format(sentinel=str(sentinel)))
    return folder


def scorer(folder: Path, sentinel: Path) -> Path:
    """The miniature's CLIP, whose config trusts its tokenizer's Python."""
    shutil.copytree(WEIGHTS / "scorer", folder)
    edit(folder / "open_clip_config.json", "model_cfg", "text_cfg", tokenizer_kwargs=TRUST)
    edit(folder / "tokenizer_config.json", **TOKENIZER)
    return arm(folder, sentinel)


def coca(folder: Path, sentinel: Path) -> Path:
    """A CoCa, whose config trusts its tokenizer's Python."""
    save_open_clip(folder, COCA)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(WEIGHTS / "scorer" / file, folder)
    edit(folder / "open_clip_config.json", "model_cfg", "text_cfg", hf_tokenizer_name="x", tokenizer_kwargs=TRUST)
    edit(folder / "tokenizer_config.json", **TOKENIZER)
    return arm(folder, sentinel)


def config(folder: Path, sentinel: Path) -> Path:
    """A folder of transformers with a kind of model of its own: transformers asks whether to run it."""
    folder.mkdir()
    edit(folder / "config.json", **CONFIG)
    return arm(folder, sentinel)


def nested(folder: Path, sentinel: Path) -> Path:
    """A BLIP-2, whose language model inside config.json names the Python: transformers asks while it is built."""
    save_blip2(folder)
    edit(
        folder / "config.json",
        text_config={"model_type": "vit", "auto_map": {"AutoModelForSeq2SeqLM": f"{folder}--brought.Config"}},
    )
    return arm(folder, sentinel)


def student(path: Path, sentinel: Path, model: Mapping[str, Any]) -> Path:
    """A config file of open_clip that trusts the Python of a tokenizer's folder beside it."""
    folder = scorer(path.with_suffix(""), sentinel)
    text = {**model["text_cfg"], "hf_tokenizer_name": str(folder), "tokenizer_kwargs": TRUST, "vocab_size": 512}
    path.write_text(json.dumps({**model, "text_cfg": text}))
    return path
