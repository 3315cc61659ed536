"""What a storage can do: named bytes in a folder or a bucket, with the two writes the commit protocol needs."""

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
    (gs://) or ETag (s3://). It tells that there is something to look at anew, not that the bytes are others."""


class Storage(Protocol):
    """Objects below one root. Paths are relative, with `/`; a reader never sees a half-written object.

    Every method raises PermanentError for what a retry cannot mend (no such object, no permission) and
    TemporaryError for what it can (after its own bounded retries).
    """

    uri: str

    def read(self, path: str, start: int = 0, length: int | None = None) -> bytes:
        """Bytes of one object; `length` None reads to its end. A range past the end is cut short."""

    def open(self, path: str, version: str = "") -> BinaryIO:
        """A seekable reader that fetches ahead, for forward reading with skips. It sees one version of the object:
        replacing it meanwhile is a TemporaryError where bytes of another one would be needed.

        Args:
            version: the only one wanted, as `list` gave it: another one is a PermanentError. Empty: any.
        """

    def write(self, path: str, data: bytes) -> None:
        """Create or replace, atomically."""

    def create(self, path: str, data: bytes) -> bool:
        """Create only if absent. False, and nothing changed, when the object exists."""

    def upload(self, source: Path, path: str) -> None:
        """Create or replace from a local file, atomically."""

    def size(self, path: str) -> int | None:
        """Bytes, or None when there is no such object."""

    def list(self, prefix: str = "") -> Iterator[Entry]:
        """Objects whose path starts with `prefix`, in lexicographic order."""

    def delete(self, path: str) -> None:
        """Remove; no error when it is already gone."""


def below(folder: Path, path: str) -> Path:
    """Return the file of this name in a folder, whoever made the name: a listing, a record, a recipe.

    Raises:
        PermanentError: the name could mean a file that is not in the folder.
    """
    if not {"", ".", ".."}.isdisjoint(path.split("/")) or "\\" in path or "\0" in path:
        raise PermanentError(
            f"the name {path!r} has an empty part, a part `.` or `..`, a backslash or a zero byte, and so is no path "
            f"below {folder}; rename what it names"
        )
    return folder / path


def replaced(name: str, expected: str, found: str) -> PermanentError:
    """Return the error of an object that is not of the version that was asked for."""
    return PermanentError(
        f"cannot read {name}: it was replaced after this run was planned (version {expected}, now {found}); run the "
        "recipe again, which looks at what has changed"
    )
