"""Writes known.json, the list of open_clip's models: `python -m components.models.list_known`."""

from __future__ import annotations

import json
import re
from typing import Any

import open_clip
from open_clip.pretrained import _PRETRAINED
from open_clip.transform import PreprocessCfg

from components.models.known import LIST

HASHED = re.compile(r"-[0-9a-f]{8}\.")  # in a file's name: no other file has it by chance, as it may have ViT-B-32.pt
PREPARED = ("mean", "std", "interpolation", "resize_mode")


def describe_models() -> dict[str, dict[str, Any]]:
    """Return what is known of open_clip's models, as known.json has it."""
    return {name: _describe(name, open_clip.get_model_config(name)) for name in open_clip.list_models()}


def _describe(name: str, config: dict[str, Any]) -> dict[str, Any]:
    tags = _PRETRAINED.get(name, {})
    plain = {key: getattr(PreprocessCfg(), key) for key in PREPARED}

    def is_special(tag: dict[str, Any]) -> bool:
        prepared = {key: tag.get(key, plain[key]) for key in PREPARED}
        return prepared != plain or bool(tag.get("quick_gelu")) != bool(config.get("quick_gelu"))

    return {
        "captions": "multimodal_cfg" in config,
        "tags": [*tags],
        "special": [key for key, tag in tags.items() if is_special(tag)],
        "files": {
            file: key for key, tag in tags.items() if HASHED.search(file := tag.get("url", "").rpartition("/")[2])
        },
    }


def written() -> str:
    """Return the text of known.json: a line for each model."""
    lines = (f"{json.dumps(name)}: {json.dumps(value)}" for name, value in describe_models().items())
    return "{\n" + ",\n".join(lines) + "\n}\n"


if __name__ == "__main__":
    LIST.write_text(written(), encoding="utf-8")
