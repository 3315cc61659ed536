"""A storage's interface: named bytes in a folder or a bucket, with the two writes that the commit protocol needs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

from components.base.errors import PermanentError


@dataclass(frozen=True)
class Entry:
    """One object: its path below the storage root and its size in bytes."""

    path: str
    size: int
    version: str = ""
    """Changes whenever the object is written: a file's time of modification in nanoseconds, an object's generation
    (gs://) or ETag (s3://). Another version means that the bytes may differ, not that they do."""


class Storage(Protocol):
    """Objects below one root. Paths are relative, with `/`; a reader never sees a half-written object.

    Every method raises PermanentError for what a retry cannot mend (no such object, no permission) and
    TemporaryError for what it can (after its own bounded retries).
    """

    uri: str

    def read(self, path: str, start: int = 0, length: int | None = None) -> bytes:
        """Read bytes of one object, to its end if `length` is None. A range past the end is cut short."""

    def open(self, path: str, version: str = "") -> BinaryIO:
        """Open a seekable reader that fetches ahead, for reading forward with skips.

        It reads one version of the object. If the object is replaced, reading bytes that are not fetched yet raises
        TemporaryError.

        Args:
            version: the version to read, as `list` gave it; any other is a PermanentError. Empty for the one there.
        """

    def write(self, path: str, data: bytes) -> None:
        """Create or replace an object, atomically."""

    def create(self, path: str, data: bytes) -> bool:
        """Create an object only if it is absent; return False, and change nothing, if it exists."""

    def upload(self, source: Path, path: str) -> None:
        """Create or replace an object with a local file's bytes, atomically."""

    def size(self, path: str) -> int | None:
        """Return the object's size in bytes; None if there is no such object."""

    def list(self, prefix: str = "") -> Iterator[Entry]:
        """List the objects whose path starts with `prefix`, in lexicographic order."""

    def delete(self, path: str) -> None:
        """Delete an object; do nothing if it is already gone."""


def below(folder: Path, path: str) -> Path:
    """Return the file of this name in a folder, whoever made the name: a listing, a record, a recipe.

    Raises:
        PermanentError: the name could mean a file that is not in the folder.
    """
    if not {"", ".", ".."}.isdisjoint(path.split("/")) or "\\" in path or "\0" in path:
        raise PermanentError(
            f"the name {path!r} has an empty part, a part `.` or `..`, a backslash or a zero byte, so it is not a path "
            f"below {folder}; rename the file or object"
        )
    return folder / path


def replaced(name: str, expected: str, found: str) -> PermanentError:
    """Return the error of an object that is not of the version that was asked for."""
    return PermanentError(
        f"cannot read {name}: it was replaced after this run was planned (version {expected}, now {found}); run the "
        "recipe again, which looks at what has changed"
    )
