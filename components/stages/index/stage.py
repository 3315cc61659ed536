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
import tarfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, BinaryIO

import pyarrow as pa

from components.base.hashing import content_hash
from components.engine.stage import Batch, ColumnStage, Field, Needs
from components.pool.shards import Shard
from components.pool.specs import ColumnSpec, Content
from components.pool.uids import canonical_uid

IMAGES = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff")
MAX_TEXT = 8192  # bytes; CLIP reads 77 tokens, so more is a scraped page and not an alt text
MAX_JSON = 1 << 20
MAX_IMAGE = (1 << 31) - 1  # what the column of sizes can say
CHUNK = 1 << 20  # bytes that are hashed at a time
TAIL = 1 << 16  # bytes looked at behind the tar's end; writers pad with zeros to 10 kB
DAMAGED = "shard: truncated or corrupt tar"
CUT = "cut off by the end of the tar"


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
    text: bytes | None = None
    json: tuple[int, int] | None = None
    json_digest: str | None = None
    meta: dict[str, Any] = field(default_factory=dict)
    error: str | None = None
    notes: list[str] = field(default_factory=list)


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

    @classmethod
    def make_index(cls) -> ColumnSpec:
        """Return the column that every pool has."""
        return ColumnSpec(cls.name, "shards", cls.version, {})

    def process(self, batch: Batch) -> Mapping[str, Sequence[Any]]:
        assert batch.tar is not None
        samples = list(_scan(batch.tar, batch.shard, batch.counts))
        beside = batch.inputs.get("parquet")
        uids = _compare(samples, beside, batch.counts) if beside is not None else {}
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
        return rows


def _scan(tar: BinaryIO, shard: Shard, counts: dict[str, int]) -> Iterator[Sample]:
    """Yield the samples in the order of their first members.

    webdataset writes the members of one key one after the other; plain tar writes them in any order. So a member
    belongs to the first sample of its key that has none of its kind yet: what comes twice is a sample of its own.
    """
    samples: list[Sample] = []
    by_key: dict[str, tuple[Sample, Sample]] = {}  # first and last of a key
    for member in _members(tar, shard, counts):
        key, extension = _split(member.name)
        kind = "image" if extension in IMAGES else extension
        first, last = by_key.get(key, (None, None))
        sample = next((s for s in (first, last) if s and kind not in s.kinds), None)
        if sample is None:
            sample = Sample(key, error="duplicate key" if first else None)
            samples.append(sample)
            by_key[key] = (first or sample, sample)
        _take(sample, member, kind, tar, shard)
    yield from samples


def _split(name: str) -> tuple[str, str]:
    """Key and extension as webdataset has them: the first dot of the file's name parts them."""
    name = name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace").removeprefix("./")
    folder, slash, file = name.rpartition("/")
    stem, _, extension = file.partition(".")
    return folder + slash + stem, extension.lower()


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
        counts["shard: empty tar" if "empty" in str(error) else DAMAGED] = 1


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
            sample.notes.append(f"over {MAX_TEXT} bytes")
        else:
            sample.text = _read(tar, place)
    elif kind == "json":
        data = _read(tar, place) if member.size <= MAX_JSON else b""
        sample.json = place if member.size <= MAX_JSON else None
        sample.json_digest = hashlib.sha256(data).hexdigest()
        sample.meta = _metadata(data, sample.notes)


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


def _metadata(data: bytes, notes: list[str]) -> dict[str, Any]:
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        notes.append("unreadable json")
        return {}
    return value


def _compare(samples: list[Sample], beside: pa.Table, counts: dict[str, int]) -> dict[str, str]:
    """Count what parquet and tar disagree about; uid by key from the parquet."""
    rows = beside.to_pylist()
    arrived = {str(r["key"]): r for r in rows if r.get("status", "success") == "success"}
    for row in rows:
        if row.get("status", "success") != "success":
            reason = " ".join(str(row.get("error_message") or row["status"]).split())[:80]
            counts[f"download: {reason}"] = counts.get(f"download: {reason}", 0) + 1
    keys = {sample.key for sample in samples}
    for reason, count in (
        ("shard: rows of the parquet that the tar lacks", len(arrived.keys() - keys)),
        ("shard: samples of the tar that the parquet lacks", len(keys - arrived.keys())),
    ):
        if count:
            counts[reason] = count
    uids = {key: str(row["uid"]) for key, row in arrived.items() if row.get("uid")}
    both = [(s.meta["uid"], uids[s.key]) for s in samples if not s.error and s.meta.get("uid") and s.key in uids]
    others = sum(canonical_uid(str(own)) != canonical_uid(other) for own, other in both)
    if others:
        counts["shard: samples whose uid in the parquet is another one"] = others
    return uids


def _uid(sample: Sample, beside: dict[str, str], shard: Shard) -> str:
    """Return the uid of the metadata, else of the parquet, else one derived from the sample's place in the pool."""
    given = sample.meta.get("uid") or beside.get(sample.key)
    if given:
        return canonical_uid(str(given))
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
        "width": _side(sample.meta, "width"),
        "height": _side(sample.meta, "height"),
        "offset": image[0],
        "size": image[1],
        "json_offset": place[0],
        "json_size": place[1],
        "error": error,
        "note": "; ".join(sample.notes) or None,
    }


def _text(sample: Sample) -> str | None:
    if sample.text is None:
        text = sample.meta.get("caption")
        text = text if isinstance(text, str) and len(text) <= MAX_TEXT else None
        if text and not text.isprintable() and any("\ud800" <= c <= "\udfff" for c in text):
            sample.notes.append("not UTF-8")  # half of a pair, which JSON can say
            return None
    else:
        try:
            text = sample.text.decode("utf-8")
        except UnicodeDecodeError:
            sample.notes.append("not UTF-8")
            return None
    text = (text or "").replace("\0", "").strip()
    if not text and not sample.notes:
        sample.notes.append("none")
    return text or None


def _side(meta: dict[str, Any], name: str) -> int | None:
    value = meta.get(f"original_{name}", meta.get(name))
    return value if type(value) is int and 0 < value < 1 << 31 else None  # a bool is an int, too
