"""The index column: one row per sample of the tar, with its raw text and where its image's bytes lie.

The tar is the truth: the parquet beside it only lends uids that the tar lacks, and what differs is counted.
"""

from __future__ import annotations

import json
import tarfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, BinaryIO

import pyarrow as pa

from components.pool.columns import ColumnSpec
from components.pool.shards import Shard, content_hash
from components.pool.stage import Batch, ColumnStage, Field, Needs
from components.pool.uids import canonical_uid

IMAGES = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff")
MAX_TEXT = 8192  # bytes; CLIP reads 77 tokens, so more is a scraped page and not an alt text
MAX_JSON = 1 << 20


@dataclass
class Sample:
    """What the tar says about one key."""

    key: str
    image: tuple[int, int] | None = None
    """Offset and size of the image's bytes."""
    text: bytes | None = None
    json: tuple[int, int] | None = None
    meta: dict[str, Any] = field(default_factory=dict)
    error: str | None = None
    notes: list[str] = field(default_factory=list)


class IndexStage(ColumnStage):
    """Reads headers, texts and metadata of a shard; image bytes are skipped."""

    name = "index"
    summary = "list each shard's samples: uid, raw text, place of the image in the tar"
    reads = ("tar",)
    writes = "uid, raw text, offsets"
    needs = Needs(memory_gib=1)
    version = 1
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
    def make_spec(cls) -> ColumnSpec:
        return ColumnSpec(cls.name, "shards", cls.version, {})

    def process(self, batch: Batch) -> Mapping[str, Sequence[Any]]:
        assert batch.tar is not None
        samples = list(_scan(batch.tar, batch.shard, batch.counts))
        beside = batch.inputs.get("parquet")
        uids = _compare(samples, beside, batch.counts) if beside is not None else {}
        rows: dict[str, list[Any]] = {name: [] for name in ("uid", "error", *(f.name for f in self.fields))}
        seen: set[str] = set()
        for sample in samples:
            uid = _uid(sample, uids, batch.shard)
            if sample.error is None and uid in seen:
                sample.error = "duplicate uid"
            seen.add(uid)
            for name, value in _row(sample, uid).items():
                rows[name].append(value)
        batch.counts.update(Counter(f"text: {n}" for s in samples if not s.error for n in s.notes))
        if not samples:
            batch.counts["shard: no samples"] = 1
        return rows


def _scan(tar: BinaryIO, shard: Shard, counts: dict[str, int]) -> Iterator[Sample]:
    """Samples in the tar's order: members of one key follow each other (webdataset)."""
    sample: Sample | None = None
    seen: set[str] = set()
    for member in _members(tar, counts):
        folder, _, name = member.name.rpartition("/")
        stem, _, extension = name.partition(".")
        key = f"{folder}/{stem}" if folder else stem
        if sample is None or key != sample.key:
            if sample:
                yield sample
            sample = Sample(key, error="duplicate key" if key in seen else None)
            seen.add(key)
        _take(sample, member, extension.lower(), tar, shard)
    if sample:
        yield sample


def _members(tar: BinaryIO, counts: dict[str, int]) -> Iterator[tarfile.TarInfo]:
    try:
        with tarfile.open(fileobj=tar, mode="r:", errorlevel=1) as archive:
            while (member := archive.next()) is not None:
                archive.members = []  # type: ignore[attr-defined]  # tarfile remembers every member otherwise
                if member.isfile():
                    yield member
    except (tarfile.TarError, EOFError, ValueError, OverflowError) as error:
        empty = "empty" in str(error)
        counts["shard: empty tar" if empty else "shard: truncated or corrupt tar"] = 1


def _take(sample: Sample, member: tarfile.TarInfo, extension: str, tar: BinaryIO, shard: Shard) -> None:
    """Note one member of a sample."""
    place = (member.offset_data, member.size)
    whole = member.offset_data + member.size <= shard.size
    if extension in IMAGES:
        if sample.image is not None:
            sample.error = "duplicate key"
        sample.image = place
        if not whole:
            sample.error = "cut off by the end of the tar"
    elif extension == "txt" and whole:
        if member.size > MAX_TEXT:
            sample.text = b""
            sample.notes.append(f"over {MAX_TEXT} bytes")
        else:
            sample.text = _read(tar, place)
    elif extension == "json" and whole:
        sample.json = place
        sample.meta = _metadata(_read(tar, place) if member.size <= MAX_JSON else b"", sample.notes)


def _read(tar: BinaryIO, place: tuple[int, int]) -> bytes:
    tar.seek(place[0])
    return tar.read(place[1])


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
    return {key: str(row["uid"]) for key, row in arrived.items() if row.get("uid")}


def _uid(sample: Sample, beside: dict[str, str], shard: Shard) -> str:
    """From the metadata, else from the parquet, else derived from the sample's place in the pool."""
    given = sample.meta.get("uid") or beside.get(sample.key)
    if given:
        return canonical_uid(str(given))
    sample.notes.append("no uid: derived from shard and key" if sample.json else "no json: uid derived")
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
    return value if isinstance(value, int) and 0 < value < 1 << 31 else None
