"""Fingerprints of models outside the storage: two of one name may differ in content."""

from __future__ import annotations

import hashlib
from pathlib import Path

from components.base.errors import PermanentError


def model_fingerprint(model: str, revision: str | None = None, where: str = "model") -> str:
    """Return a hash of a local model's files; for a model of a hub, its name and revision.

    Args:
        model: a folder or file, `local-dir:<folder>`, or a hub or open_clip name.
        where: the key of the recipe, for the message.

    Raises:
        PermanentError: it is written as a path and nothing is there.
    """
    name = model.removeprefix("local-dir:")
    path = Path(name).expanduser()
    if path.is_file():
        return _digest([path], path.parent)
    if path.is_dir():
        return _digest(sorted(p for p in path.rglob("*") if p.is_file()), path)
    if model != name or name.startswith(("/", "./", "../", "~")):
        raise PermanentError(f"{where}: {name} does not exist; give a folder, a file or a model's name")
    return f"{model}@{revision or 'main'}"


def path_fingerprint(path: str, where: str) -> str:
    """Return a hash of a local file or folder.

    Args:
        where: the key of the recipe, for the message.

    Raises:
        PermanentError: nothing is there.
    """
    found = Path(path).expanduser()
    if not found.exists():
        raise PermanentError(f"{where}: {path} does not exist; give a file or folder of this machine")
    if found.is_file():
        return _digest([found], found.parent)
    return _digest(sorted(p for p in found.rglob("*") if p.is_file()), found)


def _digest(files: list[Path], root: Path) -> str:
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.relative_to(root)}\0{file.stat().st_size}\0".encode())
        with open(file, "rb") as data:
            while chunk := data.read(1 << 20):
                digest.update(chunk)
    return digest.hexdigest()[:32]
