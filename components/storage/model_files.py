"""Which files of a model's folder are loaded: they alone decide what is computed, and so the name of a result.

A folder holds much more: what `hf download` keeps about its downloads, a README, the same weights in other formats.
"""

from __future__ import annotations

import json
from fnmatch import fnmatch
from pathlib import Path
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
    """Return the files of a model's folder that are loaded, sorted; of a folder of no known kind, all but hidden ones.

    Known are open_clip's folders, with an open_clip_config.json, and those of transformers, with a config.json.
    """
    if (folder / OPEN_CLIP_CONFIG).is_file():
        found = _of_open_clip(folder)
    elif (folder / CONFIGS[0]).is_file():
        found = [*_named(folder, (*CONFIGS, *TOKENIZER)), *_weights(folder)]
    else:
        return files_below(folder)
    return sorted({*found})


def files_below(folder: Path) -> list[Path]:
    """Return all files below a folder, sorted, without hidden ones and what lies in hidden folders."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return sorted(file for file in files if not any(p.startswith(".") for p in file.relative_to(folder).parts))


def find_checkpoint(folder: Path) -> Path | None:
    """Return the file of weights in a folder that open_clip would load; None where it has none."""
    there = sorted(path for path in folder.iterdir() if path.suffix in SUFFIXES and path.is_file())
    by_name = {path.name: path for path in there}
    preferred = [by_name[name] for name in CHECKPOINTS if name in by_name]
    others = sorted(there, key=lambda path: path.suffix != SUFFIXES[0])  # safetensors first, else by name
    return next(iter([*preferred, *others]), None)


def _of_open_clip(folder: Path) -> list[Path]:
    checkpoint = find_checkpoint(folder)
    found = [folder / OPEN_CLIP_CONFIG, *([checkpoint] if checkpoint else [])]
    model = read_object(folder / OPEN_CLIP_CONFIG).get("model_cfg")
    text = model.get("text_cfg") if isinstance(model, dict) else None
    if isinstance(text, dict) and text.get("hf_tokenizer_name"):  # else it is open_clip's own, whatever lies there
        found += _named(folder, (CONFIGS[0], *TOKENIZER))
    return found


def _weights(folder: Path) -> list[Path]:
    """Return the weights that transformers would load: one file, or an index and the files that it lists."""
    chosen = read_object(folder / CONFIGS[0]).get("transformers_weights")
    names = [chosen] if isinstance(chosen, str) else [f"{name}{end}" for name in WEIGHTS for end in ("", INDEX)]
    first = next((folder / name for name in names if (folder / name).is_file()), None)
    if first is None:
        return []
    parts = read_object(first).get("weight_map") if first.name.endswith(INDEX) else None
    listed = {*parts.values()} if isinstance(parts, dict) else set()
    return [first, *(folder / str(name) for name in listed if (folder / str(name)).is_file())]


def _named(folder: Path, patterns: tuple[str, ...]) -> list[Path]:
    files = (path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
    return [file for file in files if any(fnmatch(file.name, pattern) for pattern in patterns)]


def read_object(file: Path) -> dict[str, Any]:
    """Return the JSON object in a file; an empty one where there is none: who loads the model says so."""
    try:
        value = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}
