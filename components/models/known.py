"""What open_clip's models are, known without open_clip: plans are made where it isn't installed.

`python -m components.models.list_known` writes the list.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import BinaryIO
from zipfile import BadZipFile, ZipFile

from components.base.errors import PermanentError
from components.storage.addressed import is_address, look_up
from components.storage.model_files import OPEN_CLIP_CONFIG, read_object

LIST = Path(__file__).with_name("known.json")


@dataclass(frozen=True)
class KnownModel:
    """An architecture of open_clip, and the weights that are published for it."""

    captions: bool
    """Whether it has a text decoder: a CoCa."""
    tags: tuple[str, ...]
    """The names of its weights."""
    special: tuple[str, ...]
    """Tags whose weights don't give their scores by the architecture alone: trained with QuickGELU, or with images
    prepared otherwise."""
    files: Mapping[str, str]
    """Tag by the name of the file that is published, where a hash is in it."""


@cache
def known_models() -> Mapping[str, KnownModel]:
    """Return open_clip's models by their names."""
    return {name: KnownModel(**value) for name, value in json.loads(LIST.read_text(encoding="utf-8")).items()}


def tag_of(model: str, weights: str) -> str | None:
    """Return the tag that is meant by a recipe's weights, as open_clip reads it; None where the model has no such."""
    name, known = weights.lower().replace("-", "_"), known_models().get(model)
    return name if known and name in known.tags else None


def published_tag(model: str, checkpoint: Path) -> str | None:
    """Return the tag whose file this is, by its name."""
    known = known_models().get(model)
    return known.files.get(checkpoint.name) if known else None


def doubt(model: str, weights: str | None) -> str | None:
    """Say what is not known of a checkpoint file, for a plan and a log; None where nothing is in doubt.

    A file of weights doesn't say with which activation it was trained, nor how its images were prepared.

    Raises:
        PermanentError: it is an archive of TorchScript.
    """
    path, known = Path(weights or "").expanduser(), known_models().get(model)
    if weights is not None and is_address(weights):
        found = look_up(weights)
        if found.file is None:
            return None
        with found.open(found.file) as opened:
            _refuse_script(opened, weights)
        config = found.read_object(OPEN_CLIP_CONFIG)
    elif weights is not None and path.is_file():
        refuse_script(path)
        config = read_object(path.parent / OPEN_CLIP_CONFIG)
    else:
        return None
    if known is None or not known.special or config.get("model_cfg") or published_tag(model, path):
        return None
    quick = f"; with QuickGELU the model is {model}-quickgelu" if f"{model}-quickgelu" in known_models() else ""
    return (
        f"weights {weights}: nothing says how they were trained, so they are run with {model}'s activation and CLIP's "
        f"mean and deviation; weights such as {', '.join(known.special)} would give other scores than theirs: put "
        f"their {OPEN_CLIP_CONFIG} beside the file, or give the tag{quick}"
    )


def refuse_script(checkpoint: Path) -> None:
    """Raise PermanentError for a program with weights in it, as OpenAI publishes them."""
    with open(checkpoint, "rb") as opened:
        _refuse_script(opened, str(checkpoint))


def _refuse_script(opened: BinaryIO, weights: str) -> None:
    if any("/code/" in name for name in _members(opened)):
        raise PermanentError(
            f"weights {weights}: is an archive of TorchScript, which is a program; give the tag (OpenAI's is "
            "openai), or a file with a state dict"
        )


def _members(archive: BinaryIO) -> list[str]:
    """Return the names in a zip file, such as torch writes; none where it is no such file."""
    try:
        with ZipFile(archive) as found:
            return found.namelist()
    except BadZipFile:
        return []
