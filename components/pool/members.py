"""The names of a tar's members, as webdataset has them: a sample's key ends at the first dot of the file's name."""

from __future__ import annotations

import tarfile
from collections import Counter
from typing import BinaryIO

from components.base.printable import printable

IMAGES = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff")
LOOKED = 10_000  # members whose names are looked at
SHOWN = 5  # endings that are named
HEADS = {  # how files begin that are no tars, whatever their names
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"PK\x03\x04": "a zip",
    b"version https://git-lfs": "a pointer of git-lfs",
    b"<": "a page of HTML or XML",
}


def split_name(name: str) -> tuple[str, str]:
    """Return key and extension: the first dot of the file's name parts them."""
    name = name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace").removeprefix("./")
    folder, slash, file = name.rpartition("/")
    stem, _, extension = file.partition(".")
    return folder + slash + stem, extension.lower()


def is_hidden_image(extension: str) -> bool:
    """Return whether a member is an image that no sample has, as its name has a dot too many."""
    return "." in extension and extension.rpartition(".")[2] in IMAGES


def other_kind(file: BinaryIO) -> str | None:
    """Return what an open file is, by its first bytes, if that is another thing than a tar; None if it isn't known."""
    file.seek(0)
    start = file.read(32)
    return next((kind for head, kind in HEADS.items() if start.startswith(head)), None)


def describe_members(file: BinaryIO) -> str:
    """Say which endings the members of a tar have, the most frequent first, or what the file is instead."""
    if kind := other_kind(file):
        return f"is {kind}"
    endings: Counter[str] = Counter()
    file.seek(0)
    try:
        with tarfile.open(fileobj=file, mode="r:", encoding="utf-8") as archive:
            while endings.total() < LOOKED and (member := archive.next()) is not None:
                archive.members = []  # type: ignore[attr-defined]  # tarfile remembers every member otherwise
                if member.isfile():
                    endings[split_name(member.name)[1]] += 1
    except (tarfile.TarError, EOFError, ValueError, OverflowError):
        pass
    if not endings:
        return "has no members that can be read"
    said = [f"{'.' + printable(end, 40) if end else 'no ending'} ({n:,})" for end, n in endings.most_common(SHOWN)]
    more = f" and {len(endings) - SHOWN} other endings" if len(endings) > SHOWN else ""
    return f"has members that end in {', '.join(said)}{more}"
