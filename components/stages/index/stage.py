"""The index column: one row per sample of the tar, with its raw text and where its image's bytes lie.

The tar is the truth: the parquet beside it only lends uids that the tar lacks, and what differs is counted. A uid that
comes twice in a shard is a row with a reason. In two shards it is two samples: columns are kept by shard, to find the
repeats of 10⁹ uids would take a shuffle, and the training set's record says how many of its uids are `repeated`.

Beside the rows it finds the shard's content, as hashes, so that every byte of the images is read: what other columns
are made of is told by what is in the tar, never by its name, size or time.
"""

from __future__ import annotations

import hashlib
import json
import logging
import tarfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, BinaryIO

from components.base.errors import PermanentError
from components.base.hashing import content_hash
from components.base.printable import printable
from components.engine.stage import Batch, ColumnStage, Field, Needs
from components.pool.members import IMAGES, is_hidden_image, other_kind, split_name
from components.pool.shards import Shard
from components.pool.sidecar import OTHER, SUCCESS, read_beside, reason_of, texts_of
from components.pool.specs import ColumnSpec, Content
from components.pool.texts import EMPTY, MAX_TEXT, OVER, clean_text
from components.pool.uids import canonical_uid, canonical_uids, is_uid
from components.storage.tables import explained

log = logging.getLogger(__name__)

MAX_JSON = 1 << 20
MAX_IMAGE = (1 << 31) - 1  # what the column of sizes can say
CHUNK = 1 << 20  # bytes that are hashed at a time
TAIL = 1 << 16  # bytes looked at behind the tar's end; writers pad with zeros to 10 kB
DAMAGED = "shard: truncated or corrupt tar"
CUT = "cut off by the end of the tar"
HIDDEN = "shard: images not used, as their names have a dot too many"


@dataclass
class Sample:
    """What the tar says about one key."""

    key: str
    kinds: set[str] = field(default_factory=set)
    """Which of image, txt and json the tar has, usable or not."""
    image: tuple[int, int] | None = None
    """Offset and size of the image's bytes."""
    image_digest: str | None = None
    """SHA-256 of them."""
    text: str | bytes | None = None
    """Contents of its .txt, else the caption of the metadata."""
    json: tuple[int, int] | None = None
    json_digest: str | None = None
    uid: str | None = None
    """Canonical uid of the metadata."""
    width: int | None = None
    height: int | None = None
    error: str | None = None
    notes: list[str] = field(default_factory=list)
    hidden: str | None = None
    """Name of a member that is an image by its end only."""


class Hashes:
    """The content of a shard, from its rows in order."""

    def __init__(self) -> None:
        self._images, self._samples = hashlib.sha256(), hashlib.sha256()

    def add(self, sample: Sample, row: Mapping[str, Any]) -> None:
        """Take a sample with its row; where its members lie in the tar is no content."""
        self._images.update(json.dumps([row["uid"], row["error"], sample.image_digest]).encode())
        told = [row[name] for name in ("uid", "key", "text", "width", "height", "note")]
        self._samples.update(json.dumps([*told, sample.json_digest]).encode())

    def found(self) -> Content:
        images = self._images.hexdigest()
        return Content(images[:12], content_hash([images, self._samples.hexdigest()]))


class IndexStage(ColumnStage):
    """Reads a shard once, whole."""

    name = "index"
    summary = "list each shard's samples: uid, raw text, place of the image in the tar"
    reads = ("tar",)
    writes = "uid, raw text, offsets"
    needs = Needs(memory_gib=1)
    provides = "index"
    version = 2
    sample_bytes = 110
    fields: tuple[Field, ...] = (
        Field("key", "string", "the sample's name in the tar"),
        Field("text", "string", "alt text of the image; null: there is none, or it can't be used (see note)"),
        Field("width", "int32", "original width in pixels; null: unknown"),
        Field("height", "int32", "original height in pixels; null: unknown"),
        Field("offset", "int64", "of the image's bytes in the tar; null: no image"),
        Field("size", "int32", "of the image in bytes; null: no image"),
        Field("json_offset", "int64", "of the metadata in the tar; null: none"),
        Field("json_size", "int32", "of the metadata in bytes; null: none"),
        Field("note", "string", "what was wrong with text or metadata of a usable sample; null: nothing"),
    )

    _has_warned = False

    @classmethod
    def make_index(cls) -> ColumnSpec:
        """Return the column that every pool has."""
        return ColumnSpec(cls.name, "shards", cls.version, {})

    def process(self, batch: Batch) -> Mapping[str, Sequence[Any]]:
        assert batch.tar is not None
        samples = list(_scan(batch.tar, batch.shard, batch.counts))
        uids = _compare(samples, batch.beside, batch.shard, batch.counts) if batch.beside is not None else {}
        rows: dict[str, list[Any]] = {name: [] for name in ("uid", "error", *(f.name for f in self.fields))}
        seen: set[str] = set()
        content = Hashes()
        for sample in samples:
            uid = _uid(sample, uids, batch.shard)
            if sample.error is None and uid in seen:
                sample.error = "duplicate uid"
            seen.add(uid)
            row = _row(sample, uid)
            content.add(sample, row)
            for name, value in row.items():
                rows[name].append(value)
        batch.content = content.found()
        batch.counts.update(Counter(f"text: {n}" for s in samples if not s.error for n in s.notes))
        if not samples:
            batch.counts["shard: no samples"] = 1
        if batch.counts.get(HIDDEN) and not self._has_warned:
            self._has_warned = True  # once a task: a pool that is named in this way has thousands of such shards
            first = next(s.hidden for s in samples if s.hidden)
            log.warning(
                "%s: %d images are in no sample, such as %s: a key ends at its name's first dot; rename them",
                batch.shard.tar, batch.counts[HIDDEN], printable(first, 200),
            )  # fmt: skip
        return rows


def _scan(tar: BinaryIO, shard: Shard, counts: dict[str, int]) -> Iterator[Sample]:
    """Yield the samples in the order of their first members.

    webdataset writes the members of one key one after the other; plain tar writes them in any order. So a member
    belongs to the first sample of its key that has none of its kind yet: what comes twice is a sample of its own.
    """
    samples: list[Sample] = []
    by_key: dict[str, tuple[Sample, Sample]] = {}  # first and last of a key
    for member in _members(tar, shard, counts):
        key, extension = split_name(member.name)
        kind = "image" if extension in IMAGES else extension
        first, last = by_key.get(key, (None, None))
        sample = next((s for s in (first, last) if s and kind not in s.kinds), None)
        if sample is None:
            sample = Sample(key, error="duplicate key" if first else None)
            samples.append(sample)
            by_key[key] = (first or sample, sample)
        _take(sample, member, kind, tar, shard)
        if is_hidden_image(extension):
            sample.hidden = member.name
            counts[HIDDEN] = counts.get(HIDDEN, 0) + 1
    yield from samples


def _members(tar: BinaryIO, shard: Shard, counts: dict[str, int]) -> Iterator[tarfile.TarInfo]:
    try:
        with tarfile.open(fileobj=tar, mode="r:", errorlevel=1, encoding="utf-8") as archive:
            while (member := archive.next()) is not None:
                archive.members = []  # type: ignore[attr-defined]  # tarfile remembers every member otherwise
                if member.isfile():
                    yield member
            if not _ends_here(tar, archive.offset, shard.size):
                counts[DAMAGED] = 1
    except (tarfile.TarError, EOFError, ValueError, OverflowError) as error:
        kind = other_kind(tar)
        counts[f"shard: {kind}, no tar" if kind else "shard: empty tar" if "empty" in str(error) else DAMAGED] = 1


def _ends_here(tar: BinaryIO, offset: int, size: int) -> bool:
    """Return whether a tar's end mark is here and nothing behind it: tarfile takes any unreadable block for the end."""
    tar.seek(offset)
    tail = tar.read(max(0, min(TAIL, size - offset)))
    return len(tail) >= tarfile.BLOCKSIZE and not any(tail)


def _take(sample: Sample, member: tarfile.TarInfo, kind: str, tar: BinaryIO, shard: Shard) -> None:
    """Note one member of a sample."""
    place = (member.offset_data, member.size)
    whole = member.offset_data + member.size <= shard.size
    sample.kinds.add(kind)
    if kind == "image":
        if not whole or member.size > MAX_IMAGE:
            sample.error = sample.error or (f"image of over {MAX_IMAGE} bytes" if whole else CUT)
        else:
            sample.image = place
            sample.image_digest = _digest(tar, place)
    elif kind in ("txt", "json") and not whole:
        sample.notes.append(CUT)
    elif kind == "txt":
        if member.size > MAX_TEXT:
            sample.text = b""
            sample.notes.append(OVER)
        else:
            sample.text = _read(tar, place)
    elif kind == "json":
        data = _read(tar, place) if member.size <= MAX_JSON else b""
        sample.json = place if member.size <= MAX_JSON else None
        sample.json_digest = hashlib.sha256(data).hexdigest()
        _take_metadata(sample, data)


def _read(tar: BinaryIO, place: tuple[int, int]) -> bytes:
    tar.seek(place[0])
    return tar.read(place[1])


def _digest(tar: BinaryIO, place: tuple[int, int]) -> str:
    start, left = place
    tar.seek(start)
    digest = hashlib.sha256()
    while left and (chunk := tar.read(min(left, CHUNK))):
        digest.update(chunk)
        left -= len(chunk)
    return digest.hexdigest()


def _take_metadata(sample: Sample, data: bytes) -> None:
    """Keep what is used of a sample's metadata: the rest may be a megabyte a sample."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        sample.notes.append("unreadable json")
        return
    uid, caption = value.get("uid"), value.get("caption")
    sample.uid = canonical_uid(uid) if is_uid(uid) else None
    sample.width, sample.height = _side(value, "width"), _side(value, "height")
    if sample.text is None and isinstance(caption, str):
        sample.text = caption[: MAX_TEXT + 1]  # as long as it needs to be to be too long


def _compare(samples: list[Sample], beside: BinaryIO, shard: Shard, counts: dict[str, int]) -> dict[str, str]:
    """Count what parquet and tar disagree about; return canonical uids by key from the parquet."""
    of_tar: dict[str, str | None] = {}
    for sample in samples:
        of_tar.setdefault(sample.key, None if sample.error else sample.uid)
    found: Counter[str] = Counter()
    uids: dict[str, str] = {}
    arrived = set()
    try:
        with explained(str(shard.parquet)):
            for key, uid, status, message in _rows_beside(beside):
                if status != SUCCESS:
                    found[f"download: {_reason(status, message, shard)}"] += 1
                elif key in of_tar:
                    arrived.add(key)
                    uids |= {key: uid} if uid else {}
                else:
                    found["shard: rows of the parquet that the tar lacks"] += 1
    except PermanentError:
        counts["shard: unreadable parquet"] = 1
        return {}
    found["shard: samples of the tar that the parquet lacks"] = len(of_tar.keys() - arrived)
    others = sum(own is not None and uids.get(key, own) != own for key, own in of_tar.items())
    found["shard: samples whose uid in the parquet is another one"] = others
    counts.update(+found)
    return uids


def _rows_beside(file: BinaryIO) -> Iterator[tuple[str, str | None, str | None, str | None]]:
    """Yield key, canonical uid, status and error message of every row of the parquet."""
    for batch in read_beside(file, ("uid", "status", "error_message")):
        count = len(batch["key"])
        uids = canonical_uids(batch["uid"]).to_pylist() if "uid" in batch else [None] * count
        statuses = texts_of(batch["status"]) if "status" in batch else [SUCCESS] * count
        messages = texts_of(batch["error_message"]) if "error_message" in batch else [None] * count
        yield from zip(map(str, texts_of(batch["key"])), uids, statuses, messages, strict=True)


def _reason(status: str | None, message: str | None, shard: Shard) -> str:
    """Return why a download failed; the words of our own shards are a vocabulary already."""
    if message and not shard.version:
        return message
    if message:
        return reason_of(message)
    return status if status in ("failed_to_download", "failed_to_resize") else OTHER


def _uid(sample: Sample, beside: dict[str, str], shard: Shard) -> str:
    """Return the uid of the metadata, else of the parquet, else one derived from the sample's place in the pool."""
    given = sample.uid or beside.get(sample.key)
    if given:
        return given
    sample.notes.append("no uid: derived from shard and key" if "json" in sample.kinds else "no json: uid derived")
    return canonical_uid(f"{shard.name}/{sample.key}#{content_hash(sample.key)}")


def _row(sample: Sample, uid: str) -> dict[str, Any]:
    text = _text(sample)
    image = sample.image or (None, None)
    place = sample.json or (None, None)
    error = sample.error or (None if sample.image else "no image")
    sample.error = error
    return {
        "uid": uid,
        "key": sample.key,
        "text": text,
        "width": sample.width,
        "height": sample.height,
        "offset": image[0],
        "size": image[1],
        "json_offset": place[0],
        "json_size": place[1],
        "error": error,
        "note": "; ".join(sample.notes) or None,
    }


def _text(sample: Sample) -> str | None:
    text, why_not = clean_text(sample.text or "")
    if why_not and (why_not != EMPTY or not sample.notes):
        sample.notes.append(why_not)
    return text


def _side(meta: dict[str, Any], name: str) -> int | None:
    value = meta.get(f"original_{name}", meta.get(name))
    return value if type(value) is int and 0 < value < 1 << 31 else None  # a bool is an int, too
