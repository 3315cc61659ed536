"""A model's files on this machine, looked through before a library reads them, because no model may bring code.

transformers runs Python that lies in a model's folder or repository, or asks on the terminal whether it may, where a
JSON file there says so; open_clip hands such a wish on. Therefore libraries are only given local folders in which no
JSON file has one of these keys.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download, snapshot_download
from huggingface_hub.errors import EntryNotFoundError

from components.base.errors import PermanentError
from components.models.names import model_folder
from components.storage.model_files import INDEX, WEIGHTS

CODE = ("trust_remote_code", "auto_map", "custom_pipelines", "auto_mapping")  # the last is peft's: a module to import
KERNELS = ("attn_implementation", "_attn_implementation", "experts_implementation")  # org/name: a hub's kernel
ADAPTER = "adapter_config.json"  # with peft installed, transformers loads the model that it names
CONFIGS = ("*.json", "*.jinja", "*.txt", "*.model", "*.spm", "*.bpe", "*.codes", "*.vocab", "*.tiktoken")


def local_files(model: str, what: str, revision: str | None = None, weights: bool = False) -> Path:
    """Return the folder with the files of a model of transformers: its configs, its tokenizer, perhaps its weights.

    Args:
        model: a folder, or an id of the hub, from which the files are fetched.
        what: begins the messages.
        weights: whether weights are fetched, too; a folder's are there anyway.

    Raises:
        PermanentError: a file names code, or the folder isn't there.
        Exception: whatever the hub's client raises; see `loading`.
    """
    here = model_folder(model)
    if here:
        return checked_folder(here, what)
    folder = hub_files(model, what, revision)
    if weights:
        _fetch_weights(model, folder)
    return folder


def hub_files(repository: str, what: str, revision: str | None = None) -> Path:
    """Fetch all files of a repository but weights and code into the hub's cache, and return their checked folder.

    The folder's name is the commit. Raises as `local_files`.
    """
    folder = snapshot_download(repository, revision=revision, allow_patterns=list(CONFIGS))
    return checked_folder(Path(folder), what)


def checked_folder(folder: Path, what: str) -> Path:
    """Return the folder, in which no JSON file names code. Raises PermanentError for one that does."""
    if (folder / ADAPTER).is_file():
        raise PermanentError(f"{what}: has {ADAPTER}; merge the adapter into its model, and give that")
    for file in sorted(folder.rglob("*.json")):
        try:
            value = json.loads(file.read_bytes())
        except RecursionError as error:
            raise PermanentError(f"{what}: {file.relative_to(folder)} is nested too deeply") from error
        except ValueError:  # a library that reads it says so, with the same parser
            continue
        refuse_code(value, f"{what}: {file.relative_to(folder)}")
    return folder


def refuse_code(value: object, where: str) -> None:
    """Raise PermanentError for a JSON value that names code at any depth; `where` begins the message."""
    found = _code_in(value)
    if found:
        raise PermanentError(
            f"{where} has {found}; recaption runs no code that a model brings: remove that key, or give a model that "
            "needs none"
        )


def _code_in(value: object) -> str | None:
    """Return the path of a key that names code."""
    left: list[tuple[tuple[Any, ...], Any]] = []  # each with its path, as (path of what it is in, key)
    if isinstance(value, (dict, list)):
        left.append(((), value))
    while left:  # not by recursion: a file decides how deep it goes
        path, inner = left.pop()
        if isinstance(inner, dict):
            found = [key for key in CODE if inner.get(key)] + [key for key in KERNELS if "/" in str(inner.get(key))]
            if found:
                return _written((path, found[0]))
        items = inner.items() if isinstance(inner, dict) else enumerate(inner)
        left += [((path, key), item) for key, item in items if isinstance(item, (dict, list))]
    return None


def _written(path: tuple[Any, ...]) -> str:
    text = ""
    while path:
        path, key = path
        text = f"[{key}]{text}" if isinstance(key, int) else f".{key}{text}"
    return text.lstrip(".")


def _fetch_weights(repository: str, folder: Path) -> None:
    """Fetch what transformers would load, into the folder of the same commit."""
    missing: Exception | None = None
    for name in WEIGHTS:
        try:
            hf_hub_download(repository, name, revision=folder.name)
            return
        except EntryNotFoundError as error:
            missing = error
        index = folder / f"{name}{INDEX}"
        if index.is_file():
            parts = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
            snapshot_download(repository, revision=folder.name, allow_patterns=parts)
            return
    assert missing
    raise missing
