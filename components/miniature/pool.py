"""Writes the world as others would find it: a pool in DataComp's layout, evaluation sets in clip-benchmark's."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.random import Generator
from PIL import Image

from components.miniature.world import CLASSES, SIDE, Thing, alt_text, imagine, render

BROKEN = 0.003  # share of images that arrive cut off
LOST = 0.05  # share of downloads that fail: the parquet has their rows, the tar no sample
ERRORS = ("HTTP Error 404: Not Found", "<urlopen error timed out>", "HTTP Error 403: Forbidden")
PROMPTS = ("{c}", "an image of {c}", "this shows: {c}")  # none is a caption's own wording
RETRIEVAL = 500  # images, and as many captions


def write_pool(folder: Path, samples: int, shard_size: int, seed: int) -> None:
    """Write shards of about `shard_size` samples: tar, parquet (with the failed downloads) and stats of each."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(seed)
    for shard, start in enumerate(range(0, samples, shard_size)):
        _write_shard(folder, shard, min(shard_size, samples - start), random)


def _write_shard(folder: Path, shard: int, count: int, random: Generator) -> None:
    rows: list[dict[str, Any]] = []
    with tarfile.open(folder / f"{shard:08d}.tar", "w") as tar:
        for i in range(count):
            key, thing = f"{shard:08d}{i:04d}", imagine(random)
            text = alt_text(thing, random)
            row = _row(key, text, random)
            rows.append(row)
            image = _jpeg(thing, random)
            if random.random() < LOST:
                row |= {"status": "failed_to_download", "error_message": str(random.choice(ERRORS))}
                continue
            if random.random() < BROKEN:
                image = image[: len(image) // 2]
            row |= {"sha256": hashlib.sha256(image).hexdigest()}
            members = {"jpg": image, "json": json.dumps(row).encode()}
            if text is not None:
                members["txt"] = text.encode()
            for extension, data in members.items():
                _add(tar, f"{key}.{extension}", data)
    pq.write_table(pa.Table.from_pylist(rows), folder / f"{shard:08d}.parquet")
    success = sum(row["status"] == "success" for row in rows)
    stats = {"count": count, "successes": success, "failed_to_download": count - success}
    (folder / f"{shard:08d}_stats.json").write_text(json.dumps(stats))


def _row(key: str, text: str | None, random: Generator) -> dict[str, Any]:
    """Return a sample's metadata as img2dataset writes it."""
    return {
        "uid": random.bytes(16).hex(),
        "key": key,
        "url": f"https://pictures.example/{key}.jpg",
        "caption": text,
        "status": "success",
        "error_message": None,
        "width": SIDE,
        "height": SIDE,
        "original_width": SIDE,
        "original_height": SIDE,
        "exif": "{}",
        "sha256": None,
    }


def write_evaluation(folder: Path, images: int, seed: int) -> None:
    """Write two zero-shot tasks: `miniature-classes` (40 classes) and `miniature-retrieval`."""
    random = np.random.default_rng(seed)
    classes = [imagine(random) for _ in range(images)]
    _write_task(
        folder / "miniature-classes",
        {"classnames.txt": "\n".join(CLASSES), "zeroshot_classification_templates.txt": "\n".join(PROMPTS)},
        [(_jpeg(t, random), "cls", str(CLASSES.index(t.name))) for t in classes],
    )
    pictures = [imagine(random) for _ in range(RETRIEVAL)]
    _write_task(
        folder / "miniature-retrieval",
        {"dataset_type.txt": "retrieval"},
        [(_jpeg(t, random), "txt", _full(t)) for t in pictures],
    )


def _full(thing: Thing) -> str:
    """Write out everything there is to say, so that a caption tells its image from most others."""
    small = f" with a small {thing.small}" if thing.small else ""
    return f"{thing.colour} {thing.name} {thing.place} of {thing.ground}{small}"


def _write_task(folder: Path, texts: Mapping[str, str], samples: list[tuple[bytes, str, str]]) -> None:
    (folder / "test").mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        (folder / name).write_text(text)
    (folder / "test" / "nshards.txt").write_text("1")
    with tarfile.open(folder / "test" / "0.tar", "w") as tar:
        for i, (image, extension, label) in enumerate(samples):
            _add(tar, f"{i:06d}.jpg", image)
            _add(tar, f"{i:06d}.{extension}", label.encode())


def _jpeg(thing: Thing, random: Generator) -> bytes:
    sink = io.BytesIO()
    Image.fromarray(render(thing, random)).save(sink, "JPEG", quality=92)
    return sink.getvalue()


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))
