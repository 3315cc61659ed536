"""Storage in a folder: a reader never sees a half-written file, whatever stops its writer."""

from __future__ import annotations

import errno
import logging
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from components.base.errors import PermanentError, TemporaryError
from components.base.printable import printable
from components.base.unread import leave_unread
from components.storage.interface import Entry, below, replaced

log = logging.getLogger(__name__)


class LocalStorage:
    """A folder. Writes go to a hidden temporary file beside the target, then link (create) or rename (write)."""

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root).expanduser().absolute()
        self.uri = str(self.root)

    def read(self, path: str, start: int = 0, length: int | None = None) -> bytes:
        with self.open(path) as file:
            left = max(0, os.fstat(file.fileno()).st_size - start)
            file.seek(start)
            return file.read(left if length is None else min(length, left))  # Python makes room for all it is asked for

    def open(self, path: str, version: str = "") -> BinaryIO:
        target = below(self.root, path)
        try:
            file = open(target, "rb", buffering=1 << 20)  # noqa: SIM115  # the caller closes it
        except OSError as error:
            raise _explain(error, target, "read") from error
        if version and (found := _version(os.fstat(file.fileno()))) != version:
            file.close()
            raise replaced(str(target), version, found)
        return file

    def write(self, path: str, data: bytes) -> None:
        _put(below(self.root, path), lambda file: file.write(data), _replace)

    def create(self, path: str, data: bytes) -> bool:
        target = below(self.root, path)
        if os.path.exists(target):  # not Path.exists, which raises where the folder is closed
            return False
        return _put(target, lambda file: file.write(data), _link)

    def upload(self, source: Path, path: str) -> None:
        with open(source, "rb") as read:
            _put(below(self.root, path), lambda file: shutil.copyfileobj(read, file, 1 << 20), _replace)

    def size(self, path: str) -> int | None:
        stat = _stat(below(self.root, path))
        return None if stat is None else stat.st_size

    def list(self, prefix: str = "") -> Iterator[Entry]:
        parent, slash, _ = prefix.rpartition("/")
        folder = below(self.root, parent) if slash else self.root
        found, lost = [], []
        for inside, names in _folders(folder, self.root):
            found += [
                path
                for path in (f"{inside}{name}" for name in names if not name.startswith(".tmp-"))
                if path.startswith(prefix)
            ]
        for path in sorted(found):
            stat = _stat(self.root / path)  # whatever its name: a file that nobody reads is in nobody's way
            if stat is not None:
                yield Entry(path, stat.st_size, _version(stat))
            elif os.path.islink(self.root / path):
                lost.append(path)
        if lost:
            leave_unread(f"{self.uri}/{prefix}".rstrip("/"), "link that leads nowhere", lost)
            first = f"{printable(lost[0])} to {printable(os.readlink(self.root / lost[0]))}"
            many = "1 link leads nowhere and is" if len(lost) == 1 else f"{len(lost)} links lead nowhere and are"
            log.warning("%s: %s left out; the first is %s", self.uri, many, first)

    def delete(self, path: str) -> None:
        target = below(self.root, path)
        try:
            target.unlink(missing_ok=True)
        except OSError as error:
            raise _explain(error, target, "delete") from error


def _folders(folder: Path, root: Path) -> Iterator[tuple[str, list[str]]]:
    """Yield every folder below `folder`, as its path below the root, with a slash, and its files' names.

    Links are followed once all real folders are listed. No folder comes twice, so links in a circle end.
    """
    seen: set[tuple[int, int]] = set()
    waiting = [folder]
    while waiting:
        links: list[Path] = []
        for start in waiting:
            for parent, folders, names in os.walk(start, onerror=_raise_unless_absent):
                try:
                    stat = os.stat(parent)
                except OSError as error:
                    _raise_unless_absent(error)
                    continue
                if (stat.st_dev, stat.st_ino) in seen:
                    folders.clear()
                    continue
                seen.add((stat.st_dev, stat.st_ino))
                links += (Path(parent, name) for name in sorted(folders) if os.path.islink(os.path.join(parent, name)))
                inside = os.path.relpath(parent, root).replace(os.sep, "/")
                yield "" if inside == "." else f"{inside}/", names
        waiting = links


def _put(target: Path, write: Callable[[BinaryIO], object], name: Callable[[str, Path], bool]) -> bool:
    """Write a hidden file beside `target`, then give it the target's name by calling `name`, and return its answer.

    The file is fsynced first, so that a crash leaves all or nothing. Whatever happens, no hidden file is left.
    """
    path = f"{target.parent}/.tmp-{secrets.token_hex(8)}"
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "xb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        return name(path, target)
    except OSError as error:
        raise _explain(error, target, "write") from error
    finally:
        # A signal's handler raises between two calls, so this must be the first one: `suppress` would be another.
        try:  # noqa: SIM105
            os.unlink(path)
        except OSError:  # there is none: it has the target's name, or could not be made
            pass


def _replace(path: str, target: Path) -> bool:
    os.replace(path, target)
    return True


def _link(path: str, target: Path) -> bool:
    """Link the file to the target's name; return False, with the target unchanged, if the target exists."""
    try:
        os.link(path, target)
    except FileExistsError:
        return False
    return True


def _stat(file: Path) -> os.stat_result | None:
    """Return a file's status; None if there is no such file."""
    try:
        return file.stat() if file.is_file() else None
    except OSError as error:
        raise _explain(error, file, "stat") from error


def _version(stat: os.stat_result) -> str:
    return str(stat.st_mtime_ns)


def _raise_unless_absent(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):
        raise _explain(error, Path(str(error.filename)), "list") from error


def _explain(error: OSError, path: Path, verb: str) -> PermanentError | TemporaryError:
    """Return the error to raise: a full disk or an I/O fault is temporary, a missing file or permission is not."""
    hints = {
        errno.ENOENT: "no file can be made there; choose another storage" if verb == "write" else "no such file",
        errno.ENOTDIR: "a part of the path is a file and no folder",
        errno.EISDIR: "it is a folder and no file",
        errno.EPERM: "the file system lets nobody do that; choose another storage",
        errno.EACCES: "no permission: let this user read and write there",
        errno.EROFS: "the file system is read-only: choose another storage",
        errno.ENOSPC: "the disk is full: free space, then run the same command again (finished work is kept)",
        errno.EDQUOT: "the disk quota is used up: free space, then run the same command again",
    }
    number = error.errno or 0
    passing = number not in hints or number in (errno.ENOSPC, errno.EDQUOT)
    kind = TemporaryError if passing else PermanentError
    return kind(f"cannot {verb} {path}: {hints.get(number, error.strerror or error)}")
