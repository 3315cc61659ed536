"""Fingerprints of models outside the storage: two of one name may differ in content."""

from __future__ import annotations

import hashlib
from pathlib import Path

from components.base.errors import PermanentError
from components.storage.addressed import is_address, look_up
from components.storage.hub import COMMIT, commit_of
from components.storage.model_files import OPEN_CLIP_CONFIG, files_below, loaded_files


def model_fingerprint(model: str, revision: str | None = None, where: str = "model") -> str:
    """Return a hash of the files of a local model that are loaded; for a model of a hub, its name and commit.

    At an address it is a hash of the names, sizes and versions of the objects that are loaded. Where neither the hub
    nor its cache says which commit a revision is, the revision stands for it.

    Args:
        model: a folder or file, `local-dir:<folder>`, a gs:// or s3:// address, or a hub or open_clip name.
        where: the key of the recipe, for the message.

    Raises:
        PermanentError: it is written as a path or an address and nothing is there.
    """
    if is_address(model):
        return _at(model, where)
    name = model.removeprefix("local-dir:")
    path = Path(name).expanduser()
    if path.is_file():  # a config beside weights says how they are run
        return _digest([file for file in (path, path.parent / OPEN_CLIP_CONFIG) if file.is_file()], path.parent)
    if path.is_dir():
        return _digest(loaded_files(path), path)
    if model != name or name.startswith(("/", "./", "../", "~")):
        raise PermanentError(f"{where}: {name} does not exist; give a folder, a file or a model's name")
    return f"{model}@{commit_of(model, revision) or revision or 'main'}"


def commit_in(fingerprint: str) -> str | None:
    """Return the commit in the fingerprint of a hub's model; None where it has none."""
    commit = fingerprint.rpartition("@")[2]
    return commit if "@" in fingerprint and COMMIT.fullmatch(commit) else None


def absence(path: str) -> str | None:
    """Say that nothing is at a path or an address, or why it can't be read; None where something is there."""
    try:
        if is_address(path):
            look_up(path)
        elif not Path(path).expanduser().exists():
            return f"{path} does not exist; give a file or folder of this machine, or an address"
    except PermanentError as error:
        return str(error)
    return None


def path_fingerprint(path: str, where: str) -> str:
    """Return a hash of a local file, or of a folder's files but hidden ones; at an address as `model_fingerprint`.

    Args:
        where: the key of the recipe, for the message.

    Raises:
        PermanentError: nothing is there.
    """
    if is_address(path):
        return _at(path, where)
    if said := absence(path):
        raise PermanentError(f"{where}: {said}")
    found = Path(path).expanduser()
    if found.is_file():
        return _digest([found], found.parent)
    return _digest(files_below(found), found)


def _at(address: str, where: str) -> str:
    """Return the fingerprint of an address. Raises PermanentError: nothing is there, or it can't be read."""
    try:
        return look_up(address).fingerprint
    except PermanentError as error:
        raise PermanentError(f"{where}: {error}") from error


def _digest(files: list[Path], root: Path) -> str:
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.relative_to(root)}\0{file.stat().st_size}\0".encode())
        with open(file, "rb") as data:
            while chunk := data.read(1 << 20):
                digest.update(chunk)
    return digest.hexdigest()[:32]
