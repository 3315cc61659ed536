"""Which files of a model's folder are loaded: they alone decide what is computed, and so the name of a result.

A folder holds much more: what `hf download` keeps about its downloads, a README, the same weights in other formats.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from typing import Any

OPEN_CLIP_CONFIG = "open_clip_config.json"
WEIGHTS = ("model.safetensors", "pytorch_model.bin")  # of transformers, in its order; each may be cut into parts
INDEX = ".index.json"  # ends the name of the list of such parts
CONFIGS = ("config.json", "generation_config.json", "preprocessor_config.json", "processor_config.json")
TOKENIZER = (
    *("tokenizer*.json", "special_tokens_map.json", "added_tokens.json", "vocab*", "merges.txt", "dict.txt"),
    *("*.model", "*.spm", "*.bpe", "*.codes", "*.tiktoken"),
)
CHECKPOINTS = (  # of open_clip, in its order; then any other of these suffixes
    *("open_clip_model.safetensors", "open_clip_pytorch_model.safetensors"),
    *("open_clip_pytorch_model.bin", "open_clip_pytorch_model.pth"),
    *("model.safetensors", "pytorch_model.bin", "pytorch_model.pth", "model.pth"),
)
SUFFIXES = (".safetensors", ".bin", ".pth")


def loaded_files(folder: Path) -> list[Path]:
    """Return the files of a model's folder that are loaded, sorted; see `loaded_names`."""
    names = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    return sorted(folder / name for name in loaded_names(names, lambda name: read_object(folder / name)))


def loaded_names(names: Collection[str], read: Callable[[str], Mapping[str, Any]]) -> set[str]:
    """Return which files of a model are loaded; of a folder of no known kind, all but hidden ones.

    Known are open_clip's folders, with an open_clip_config.json, and those of transformers, with a config.json.

    Args:
        names: the files in the model's folder and below it, as paths with `/`.
        read: returns the JSON object in one of these files.
    """
    if OPEN_CLIP_CONFIG in names:
        return _of_open_clip(names, read)
    if CONFIGS[0] in names:
        return {*_named(names, (*CONFIGS, *TOKENIZER)), *_weights(names, read)}
    return {name for name in names if not any(part.startswith(".") for part in name.split("/"))}


def files_below(folder: Path) -> list[Path]:
    """Return all files below a folder, sorted, without hidden ones and what lies in hidden folders."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return sorted(file for file in files if not any(p.startswith(".") for p in file.relative_to(folder).parts))


def find_checkpoint(folder: Path) -> Path | None:
    """Return the file of weights in a folder that open_clip would load; None where it has none."""
    found = checkpoint_among([path.name for path in folder.iterdir() if path.is_file()])
    return folder / found if found else None


def checkpoint_among(names: Collection[str]) -> str | None:
    """Return the file of weights that open_clip would load, out of the files of a folder; None where there is none."""
    there = sorted(name for name in names if "/" not in name and PurePosixPath(name).suffix in SUFFIXES)
    preferred = [name for name in CHECKPOINTS if name in there]
    others = sorted(there, key=lambda name: not name.endswith(SUFFIXES[0]))  # safetensors first, else by name
    return next(iter([*preferred, *others]), None)


def _of_open_clip(names: Collection[str], read: Callable[[str], Mapping[str, Any]]) -> set[str]:
    checkpoint = checkpoint_among(names)
    found = {OPEN_CLIP_CONFIG, *([checkpoint] if checkpoint else [])}
    model = read(OPEN_CLIP_CONFIG).get("model_cfg")
    text = model.get("text_cfg") if isinstance(model, dict) else None
    if isinstance(text, dict) and text.get("hf_tokenizer_name"):  # else it is open_clip's own, whatever lies there
        found |= _named(names, (CONFIGS[0], *TOKENIZER))
    return found


def _weights(names: Collection[str], read: Callable[[str], Mapping[str, Any]]) -> set[str]:
    """Return the weights that transformers would load: one file, or an index and the files that it lists."""
    chosen = read(CONFIGS[0]).get("transformers_weights")
    possible = [chosen] if isinstance(chosen, str) else [f"{name}{end}" for name in WEIGHTS for end in ("", INDEX)]
    first = next((name for name in possible if name in names), None)
    if first is None:
        return set()
    parts = read(first).get("weight_map") if first.endswith(INDEX) else None
    listed = {str(part) for part in parts.values()} if isinstance(parts, dict) else set()
    return {first, *(listed & {*names})}


def _named(names: Collection[str], patterns: tuple[str, ...]) -> set[str]:
    visible = (name for name in names if "/" not in name and not name.startswith("."))
    return {name for name in visible if any(fnmatch(name, pattern) for pattern in patterns)}


def read_object(file: Path) -> dict[str, Any]:
    """Return the JSON object in a file; an empty one where there is none: who loads the model says so."""
    try:
        return parse_object(file.read_bytes())
    except OSError:
        return {}


def parse_object(data: bytes) -> dict[str, Any]:
    """Return the JSON object in these bytes; an empty one where they are none: who loads the model says so."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}
