"""Checkpoints of a training: which one to resume from, and their copies in a storage that isn't this machine.

open_clip writes the newest under one name, beside it and renamed, after every checkpoint; the last one also under its
number. A copy in the storage carries its number, so that the newest is known without reading it.
"""

from __future__ import annotations

import logging
import os
import re
import threading
import zipfile
from pathlib import Path

from components.base.errors import RecaptionError
from components.storage.interface import Storage

log = logging.getLogger(__name__)

LATEST = "epoch_latest.pt"
_NUMBERED = re.compile(r"epoch_(\d+)\.pt")
_LOOK_EVERY = 5.0  # seconds
_LAST_WORDS = 10.0  # seconds for a copy under way when the training is stopped: spot nodes give 30 in all


def number_of(path: Path) -> int | None:
    """Return how many checkpoint intervals lie behind a checkpoint; None where the file is missing, cut or altered."""
    import torch

    try:
        with zipfile.ZipFile(path) as archive:
            if archive.testzip() is not None:
                return None
        return int(torch.load(path, map_location="cpu", mmap=True, weights_only=True)["epoch"])
    except FileNotFoundError:
        return None
    except Exception as error:  # torch.load raises whatever it stumbles over
        log.warning("%s is no whole checkpoint: %s", path, error)
        return None


def restore(storage: Storage | None, prefix: str, folder: Path) -> int:
    """Put the newest whole checkpoint where open_clip looks for it; return its number, 0 where there is none.

    Args:
        storage: where copies lie below `prefix`; None where `folder` is all there is.
    """
    latest = folder / LATEST
    folder.mkdir(parents=True, exist_ok=True)
    best = number_of(latest) or 0
    if not best:
        latest.unlink(missing_ok=True)  # open_clip would stop at it
    for number, path in sorted(copies(storage, prefix).items(), reverse=True) if storage else ():
        if number <= best:
            break
        download = folder / "download.pt"
        with storage.open(path) as source, open(download, "wb") as target:  # type: ignore[union-attr]
            while chunk := source.read(1 << 24):
                target.write(chunk)
        if number_of(download) == number:
            os.replace(download, latest)
            return number
        log.warning("%s/%s is not a whole checkpoint; using an older one", storage.uri, path)  # type: ignore[union-attr]
    return best


def copies(storage: Storage, prefix: str) -> dict[int, str]:
    """List the checkpoints in the storage: number → path."""
    found = {}
    for entry in storage.list(f"{prefix}/"):
        if match := _NUMBERED.fullmatch(entry.path.rpartition("/")[2]):
            found[int(match[1])] = entry.path
    return found


class Copier:
    """While open, copies every new checkpoint to the storage and deletes the one before it."""

    def __init__(self, storage: Storage, prefix: str, folder: Path, since: int) -> None:
        self.storage, self.prefix, self.latest, self.done = storage, prefix, folder / LATEST, since
        self._over, self._copying = threading.Event(), threading.Lock()
        self._thread = threading.Thread(target=self._run, name="checkpoints", daemon=True)

    def __enter__(self) -> Copier:
        self._seen = self._stamp()  # here, not in the thread, which may start late
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._over.set()
        self._thread.join(None if kind is None else _LAST_WORDS)

    def _run(self) -> None:
        while not self._over.wait(_LOOK_EVERY):
            if self._stamp() != self._seen:
                self._seen = self._stamp()
                try:
                    self.copy()
                except RecaptionError as error:  # a later copy may succeed; for the last one an error is raised
                    log.warning("checkpoint not copied: %s", error)

    def _stamp(self) -> tuple[int, int] | None:
        try:
            status = self.latest.stat()
        except FileNotFoundError:
            return None
        return status.st_ino, status.st_mtime_ns

    def copy(self) -> None:
        """Copy the newest checkpoint, unless it is there."""
        still = self.latest.with_name("upload.pt")  # a second name: the trainer replaces the first one meanwhile
        with self._copying:
            still.unlink(missing_ok=True)
            os.link(self.latest, still)
            try:
                self._upload(still)
            finally:
                still.unlink()

    def _upload(self, checkpoint: Path) -> None:
        number = number_of(checkpoint)
        if number and number > self.done:
            self.storage.upload(checkpoint, f"{self.prefix}/epoch_{number}.pt")
            self.done = number
            for old, path in copies(self.storage, self.prefix).items():
                if old < number:
                    self.storage.delete(path)
