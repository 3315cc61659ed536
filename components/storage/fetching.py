"""Fetches what lies at an address onto this machine, once for all its processes, into a folder named by the content.

The cache's folder holds, per address and content, `<hash>/<last part of the address>`. It is made whole or not at all:
files come into `<hash>.part`, of which the one that was begun goes on where a killed process stopped.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from components.base.errors import PermanentError, TemporaryError
from components.base.hashing import content_hash
from components.storage.addressed import Addressed, is_address, look_up
from components.storage.interface import Entry, below

log = logging.getLogger(__name__)

CACHE = "RECAPTION_CACHE"
"""The variable that names the cache's folder."""
CHUNK = 1 << 20  # bytes that are written at once: what a kill can lose
SAID = 10.0  # seconds between two lines of progress
PASSING = (errno.ENOSPC, errno.EDQUOT, errno.EIO)


def cache_folder() -> Path:
    """Return the folder of what is fetched: RECAPTION_CACHE, else recaption's in the user's folder of caches."""
    given = os.environ.get(CACHE)
    return Path(given or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "recaption").expanduser()


def fetched(name: str, fingerprint: str | None = None) -> str:
    """Return what a recipe names as a library loads it: of an address the path of its copy here, else the name itself.

    This is the only place where an address becomes a path.

    Args:
        name: a model, a file or a folder, at a gs:// or s3:// address or anything else.
        fingerprint: that of the address when the run was planned; None takes what is there now.

    Raises:
        PermanentError: something else is there now, or it can't be read, or the cache can't be written.
        TemporaryError: the store or the disk fails; the next call goes on where this one stopped.
    """
    if not is_address(name):
        return name
    found = look_up(name) if fingerprint is None else None
    planned = fingerprint or (found.fingerprint if found else "")
    place = cache_folder() / content_hash([name, planned])
    path = place / name.rstrip("/").rpartition("/")[2]
    if path.exists():
        return str(path)
    with _explained(place), _locked(place.with_suffix(".lock"), name):
        if not path.exists():
            found = found or look_up(name)
            if found.fingerprint != planned:
                raise PermanentError(f"{name}: was changed after this run was planned; run the recipe again")
            copy_to(found, place.with_suffix(".part"))
            os.rename(place.with_suffix(".part"), place)
    return str(path)


def copy_to(found: Addressed, folder: Path) -> Path:
    """Copy into `folder` what is missing there of an address, and return the path of the file or folder.

    Raises:
        PermanentError: an object was replaced since it was looked up.
        TemporaryError: the store fails.
    """
    path = folder / found.address.rstrip("/").rpartition("/")[2]
    root = path.parent if found.file else path
    targets = [(entry, below(root, entry.path)) for entry in found.entries]
    tell = _progress(found)
    for entry, target in targets:
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            begun = folder / ".begun"
            _copy(found, entry, begun, tell)
            os.replace(begun, target)
        else:
            tell(entry.size)
    return path


def _copy(found: Addressed, entry: Entry, begun: Path, tell: Callable[[int], None]) -> None:
    """Append to `begun` what it lacks of an object."""
    with open(begun, "ab") as target:
        if target.tell() > entry.size:
            target.truncate(0)
        start = target.tell()
        tell(start)
        if start < entry.size:
            with found.open(entry.path) as source:
                source.seek(start)
                _pump(source, target, tell)
        target.flush()
        os.fsync(target.fileno())
        if target.tell() != entry.size:
            raise TemporaryError(f"{found.address}: got {target.tell():,} of {entry.size:,} bytes of {entry.path}")


def _pump(source: BinaryIO, target: BinaryIO, tell: Callable[[int], None]) -> None:
    while chunk := source.read(CHUNK):
        target.write(chunk)
        target.flush()
        tell(len(chunk))


def _progress(found: Addressed) -> Callable[[int], None]:
    """Return a function that is told of bytes that are here, and logs at the start, now and then, and at the end."""
    total, began = sum(entry.size for entry in found.entries), time.monotonic()
    here, said = 0, began
    log.info("%s: fetching %d files, %.1f MB", found.address, len(found.entries), total / 1e6)

    def tell(size: int) -> None:
        nonlocal here, said
        here += size
        now = time.monotonic()
        if here >= total > 0 or now > said + SAID:
            said = now
            log.info("%s: %.1f of %.1f MB after %.0f s", found.address, here / 1e6, total / 1e6, now - began)

    return tell


@contextmanager
def _locked(path: Path, name: str) -> Iterator[None]:
    """Hold a lock that ends with this process; wait for it as long as another process fetches the address."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log.info("%s: another process of this machine fetches it; waiting", name)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextmanager
def _explained(place: Path) -> Iterator[None]:
    """Say an error of the disk in one line. Raises TemporaryError for a full disk, else PermanentError."""
    try:
        yield
    except OSError as error:
        kind = TemporaryError if error.errno in PASSING else PermanentError
        raise kind(
            f"{CACHE} {place.parent}: {error.strerror or error}; it must be a folder with room for the models, which "
            f"user {os.getuid()} may write and lock"
        ) from error
