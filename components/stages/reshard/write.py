"""One tar of the training set, made in a process of its own from nothing but names: independent, resumable."""

from __future__ import annotations

import json
import os
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing import parent_process
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.compute as pc

from components.base.errors import PermanentError, TemporaryError
from components.engine.images import ImageError
from components.engine.stage import arrow_type
from components.pool.columns import Columns, align
from components.pool.shards import Shard
from components.pool.specs import ColumnSpec
from components.pool.tar import BLOCK, TarWriter
from components.stages.reshard.layout import Segment, read_selection, tar_name
from components.storage.commit import DONE, DoneRecord, commit
from components.storage.interface import Storage
from components.storage.opening import open_storage

INDEX_FIELDS = ("text", "offset", "size", "json_offset", "json_size", "error")


@dataclass(frozen=True)
class TarRecord(DoneRecord):
    """What one finished tar is; its `.done.json`, and its entry in dataset.json."""

    name: str
    samples: int
    bytes: int
    sha256: str
    sources: Mapping[str, int]
    """Number of pairs by the text they got."""
    formats: Mapping[str, int]
    """Number of pairs by the image's extension."""

    @property
    def data(self) -> Mapping[str, int]:
        return {self.name: self.bytes}


@dataclass(frozen=True)
class DatasetJob:
    """Where the tars of one data set are read from and written to: the same for every tar."""

    storage: str
    pool: str
    source: str
    """The folder of the pool's own tars."""
    index: ColumnSpec
    mixture: str
    dataset: str
    blur: tuple[ColumnSpec, ...] = ()
    """Columns of boxes that are blurred in the images."""


class Resharder:
    """Writes tars. One per process: it keeps connections and the index's listing."""

    def __init__(self, job: DatasetJob) -> None:
        self.job = job
        self.storage, self.source = open_storage(job.storage), open_storage(job.source)
        self.columns = Columns(self.storage, job.pool)

    def write(self, number: int, segments: Sequence[Segment]) -> TarRecord:
        """Make one tar and its record; the bytes depend on the selection and the pool only."""
        sources: Counter[str] = Counter()
        formats: Counter[str] = Counter()
        with tempfile.NamedTemporaryFile(prefix="reshard-", suffix=".tar", buffering=1 << 20) as file:
            try:
                tar = TarWriter(file)
                for i, (row, members) in enumerate(self._samples(segments)):
                    tar.add(f"{number:08d}{i:04d}", members)
                    sources[row["source"]] += 1
                    formats[members[0][0]] += 1
                tar.finish()
                file.flush()
            except OSError as error:
                raise TemporaryError(f"{file.name}: {error.strerror or error}; free space, or set TMPDIR") from error
            name = tar_name(number)
            record = TarRecord(name, sources.total(), tar.size, tar.sha256, _sorted(sources), _sorted(formats))
            self.storage.upload(Path(file.name), f"{self.job.dataset}/{name}")
        return _commit(self.storage, f"{self.job.dataset}/{done_name(number)}", record)

    def _samples(self, segments: Sequence[Segment]) -> Iterator[tuple[dict[str, Any], list[tuple[str, Any]]]]:
        for segment in segments:
            shard = segment.selection.shard
            found = self.source.size(shard.tar)
            if found != shard.size:
                raise _changed(shard, f"has {found or 0} bytes, {shard.size} when it was indexed")
            with self.source.open(shard.tar, shard.version) as tar:
                for row in self._rows(segment):
                    yield row, _members(tar, shard, row)

    def _rows(self, segment: Segment) -> list[dict[str, Any]]:
        """Return the selected rows with their places in the tar, in the tar's order, so that it is read forwards."""
        shard = segment.selection.shard
        chosen = read_selection(self.storage, self.job.mixture, segment.selection, ("uid", "text", "rule", "source"))
        chosen = chosen.slice(segment.start, segment.stop - segment.start)
        index = self.columns.read(self.job.index, shard, INDEX_FIELDS)
        index = index.filter(pc.is_null(index.column("error"))).rename_columns({"text": "caption"})
        at = pc.index_in(chosen.column("uid"), value_set=index.column("uid").combine_chunks())
        if at.null_count:
            uid = chosen.column("uid").filter(pc.is_null(at))[0].as_py()
            raise PermanentError(
                f"{self.job.mixture}/{shard.name}.parquet: uid {uid} is no usable sample of shard {shard.name}; "
                "the mixture was made from another index: delete it and run mix again"
            )
        places = index.take(at)
        for name in ("caption", "offset", "size", "json_offset", "json_size"):
            chosen = chosen.append_column(name, places.column(name))
        if self.job.blur:
            chosen = chosen.append_column("boxes", self._boxes(shard, chosen.column("uid").combine_chunks()))
        order = pa.table({"offset": chosen.column("offset"), "row": pa.array(range(chosen.num_rows))})
        rows: list[dict[str, Any]] = chosen.take(
            pc.sort_indices(order, sort_keys=[("offset", "ascending"), ("row", "ascending")])
        ).to_pylist()
        return rows

    def _boxes(self, shard: Shard, uids: pa.Array) -> pa.Array:
        """Return the boxes of each sample, joined from all columns in their order."""
        columns = [
            align(self.columns.read(spec, shard, ["boxes"]), uids).column("boxes").to_pylist() for spec in self.job.blur
        ]
        return pa.array(
            [[box for boxes in row for box in boxes] for row in zip(*columns, strict=True)], arrow_type("boxes")
        )


def done_name(number: int) -> str:
    return f"{number:08d}{DONE}"


def _members(tar: BinaryIO, shard: Shard, row: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Return extension and bytes of image, metadata and text, read in the tar's order."""
    places = {"image": (row["offset"], row["size"])}
    if row["json_offset"] is not None:
        places["json"] = (row["json_offset"], row["json_size"])
    found = {
        name: _read(tar, shard, row["uid"], *place) for name, place in sorted(places.items(), key=lambda item: item[1])
    }
    image = found["image"]
    if row.get("boxes"):
        image = _blurred(image, shard, row)
    return [
        (_extension(image), image),
        ("json", _metadata(found.get("json"), row)),
        ("txt", row["text"].encode()),
    ]


def _blurred(image: memoryview, shard: Shard, row: Mapping[str, Any]) -> memoryview:
    from components.stages.reshard.blur import blurred  # OpenCV, which most training sets don't need

    try:
        return memoryview(blurred(bytes(image), row["boxes"]))
    except ImageError as error:
        raise PermanentError(f"shard {shard.tar}: uid {row['uid']}: {error}, but its faces were found") from error


def _read(tar: BinaryIO, shard: Shard, uid: str, offset: int, size: int) -> memoryview:
    """Read a member's bytes and check the header before them: a tar changed in place must not go unnoticed."""
    tar.seek(offset - BLOCK)
    block = memoryview(tar.read(BLOCK + size))
    if len(block) < BLOCK + size:
        raise _changed(shard, f"ends before byte {offset + size}, where uid {uid} should end")
    try:
        found = int(bytes(block[124:136]).strip(b"\0 ") or b"0", 8)
    except ValueError:
        found = -1
    if found != size:
        raise _changed(shard, f"has no member of {size} bytes at byte {offset}, where uid {uid} should be")
    return block[BLOCK:]


def _changed(shard: Shard, what: str) -> PermanentError:
    return PermanentError(
        f"shard {shard.tar}: {what}; the tar was changed after it was indexed: run the recipe again, which notices"
    )


def _extension(image: memoryview) -> str:
    """Name the image's format by its content, as one that open_clip looks for; other formats are called jpg."""
    start = bytes(image[:12])
    if start.startswith(b"\x89PNG"):
        return "png"
    if start.startswith(b"RIFF") and start.endswith(b"WEBP"):
        return "webp"
    return "jpg"


def _metadata(original: memoryview | None, row: Mapping[str, Any]) -> bytes:
    """Return the sample's own metadata with its uid, the text's source, and the text that came with the image."""
    value: Any = None
    if original is not None:
        try:
            value = json.loads(bytes(original))
        except (ValueError, RecursionError):
            value = None  # counted when the shard was indexed
    fields = value if isinstance(value, dict) else {}
    fields.setdefault("caption", row["caption"])
    fields |= {"uid": row["uid"], "source": row["source"], "rule": row["rule"]}
    if "boxes" in row:
        fields["face_bboxes"] = row["boxes"]  # DataComp's name
    return json.dumps(fields, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "backslashreplace")


def _sorted(counts: Counter[str]) -> dict[str, int]:
    return dict(sorted(counts.items()))


def _commit(storage: Storage, path: str, record: TarRecord) -> TarRecord:
    """Commit the tar's record; where another writer was first, its record stands, and both wrote the same bytes."""
    standing = commit(storage, path, record)
    if standing.sha256 != record.sha256:
        raise PermanentError(
            f"{path}: was made of other bytes ({standing.sha256[:12]}, now {record.sha256[:12]}); the pool's images or "
            "the mixture changed in between: delete this data set and run again"
        )
    return standing


_resharder: Resharder


def begin(job: DatasetJob) -> None:
    """Set a worker process up; it ends when its parent is gone, however that died."""
    global _resharder  # noqa: PLW0603  # what a process pool's initializer is for
    pa.set_cpu_count(1)
    threading.Thread(target=_follow_parent, daemon=True).start()
    _resharder = Resharder(job)


def _follow_parent() -> None:
    parent = parent_process()
    if parent:
        parent.join()
        os._exit(1)


def write_tar(number: int, segments: Sequence[Segment]) -> TarRecord:
    """Write one tar, in a process that `begin` has set up."""
    return _resharder.write(number, segments)
