"""What lies at the gs:// or s3:// address of a model, a file of weights or a folder, as a plan sees it: no download."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO, TypeGuard

from components.base.addresses import parse_address
from components.base.errors import PermanentError
from components.base.hashing import content_hash
from components.storage.hub import LARGEST
from components.storage.interface import Entry, Storage, below
from components.storage.model_files import OPEN_CLIP_CONFIG, loaded_names, parse_object
from components.storage.opening import open_storage

SCHEMES = ("gs://", "s3://")


@dataclass(frozen=True)
class Addressed:
    """The objects that are loaded of an address."""

    address: str
    storage: Storage
    """What lies beside the object, where the address is an object's; else the folder."""
    file: str | None
    """The object's name below `storage`; None where the address is a folder's."""
    entries: tuple[Entry, ...]
    """What is loaded, by name: of a model's folder its files, of a file it and an open_clip_config.json beside it."""

    @cached_property
    def fingerprint(self) -> str:
        """A hash of the objects' names, sizes and versions: an object that is written anew is another model."""
        return content_hash([[entry.path, entry.size, entry.version] for entry in self.entries])

    @property
    def names(self) -> list[str]:
        """The objects' names below `storage`."""
        return [entry.path for entry in self.entries]

    def read_object(self, name: str) -> Mapping[str, Any]:
        """Return the JSON object in a file; an empty one where there is none, or it is too large to be a config."""
        return _read_object(self.storage, name) if name in self.names else {}

    def open(self, name: str) -> BinaryIO:
        """Open a file for reading some of it."""
        [entry] = (entry for entry in self.entries if entry.path == name)
        return self.storage.open(name, entry.version)


def is_address(name: str | None) -> TypeGuard[str]:
    """Return whether a recipe's name of a model or a file is an address in a bucket."""
    return name is not None and name.startswith(SCHEMES)


def look_up(address: str) -> Addressed:
    """List what is loaded of an address.

    Raises:
        PermanentError: nothing is there, it can't be read, or an object's name is no path below a folder.
        TemporaryError: the store doesn't answer.
    """
    try:
        scheme, place = parse_address(address.rstrip("/"))
    except ValueError as error:
        raise PermanentError(f"{address}: {error}") from error
    parent, _, name = place.rpartition("/")
    if parent:
        beside = open_storage(f"{scheme}://{parent}")
        if file := _entry(beside, name):
            config = _entry(beside, OPEN_CLIP_CONFIG)
            found = [file, *([config] if config and name != OPEN_CLIP_CONFIG else [])]
            return Addressed(address, beside, name, tuple(sorted(found, key=lambda entry: entry.path)))
    folder = open_storage(f"{scheme}://{place}")
    listed = (e for e in folder.list() if e.size or not f"/{e.path}".endswith("/"))  # no object that a console made
    there = {entry.path: entry for entry in listed}
    for path in there:
        below(Path(parent), f"{name}/{path}")  # refuses what could leave the folder that it will be fetched into
    if not there:
        raise PermanentError(f"{address}: there is no such object, and none below it; give what is there")
    loaded = loaded_names(there, lambda name: _read_object(folder, name))
    return Addressed(address, folder, None, tuple(there[name] for name in sorted(loaded)))


def _entry(storage: Storage, name: str) -> Entry | None:
    """Return an object with its version; of all that begin with its name it comes first."""
    found = next(iter(storage.list(name)), None)
    return found if found and found.path == name else None


def _read_object(storage: Storage, name: str) -> Mapping[str, Any]:
    data = storage.read(name, 0, LARGEST + 1)
    return parse_object(data) if len(data) <= LARGEST else {}
