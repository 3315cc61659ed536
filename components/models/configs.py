"""open_clip's model configs, completed: the tokenizer and the text tower that one names are local folders, checked."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import open_clip

from components.base.errors import PermanentError
from components.models.files import local_files, refuse_code
from components.models.loading import loading


def completed(
    config: Mapping[str, Any], what: str, tokenizer: Path | None = None, weights: bool = False
) -> dict[str, Any]:
    """Return the config with local folders in place of the hub's names, so that open_clip loads nothing unchecked.

    Args:
        config: what lies below model_cfg in an open_clip_config.json.
        what: begins the messages.
        tokenizer: a checked folder; None is the one that the config names.
        weights: whether weights of a text tower from the hub are needed: where training begins with them.

    Raises:
        PermanentError: it names code, or a vision tower that is not timm's own.
        Exception: whatever the hub's client raises; see `loading`.
    """
    refuse_code(config, f"{what}: its config")
    tower = config["vision_cfg"].get("timm_model_name") or ""
    if ":" in tower:
        raise PermanentError(
            f"{what}: vision_cfg.timm_model_name is {tower}; expected a name of timm.list_models(), without a place"
        )
    text = dict(config["text_cfg"])
    if text.get("hf_tokenizer_name"):
        text["hf_tokenizer_name"] = str(tokenizer or local_files(text["hf_tokenizer_name"], what))
        text["tokenizer_kwargs"] = {**(text.get("tokenizer_kwargs") or {}), "trust_remote_code": False}
    if text.get("hf_model_name"):
        text["hf_model_name"] = str(local_files(text["hf_model_name"], what, weights=weights))
    return {**config, "text_cfg": text}


def trainable(name: str, config: Mapping[str, Any] | None, what: str) -> dict[str, Any]:
    """Return the completed config to train from nothing: this one, or open_clip's of this name.

    Raises:
        PermanentError: as `completed`, or open_clip has no such model.
        TemporaryError: the hub can't be reached.
    """
    if config is None and name in open_clip.list_models():
        config = open_clip.get_model_config(name)
    if config is None:
        raise PermanentError(f"{what}: expected a name of open_clip.list_models(), or the path of a model config .json")
    with loading(what):
        return completed(config, what, weights=True)


def register(name: str, config: Mapping[str, Any]) -> None:
    """Make open_clip know a config under this name.

    Use it before the next registration: at each, open_clip reads the configs that it brings again.
    """
    with TemporaryDirectory(prefix="model-") as folder:
        path = Path(folder) / f"{name}.json"
        path.write_text(json.dumps(config), encoding="utf-8")
        open_clip.add_model_config(path)
