"""Pools that tests write: real tars in DataComp's layout, member by member."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from components.engine.worker import run_task
from components.pool.columns import Columns
from components.pool.shards import Pool, list_pool
from components.pool.specs import ColumnSpec
from components.stages.index.stage import IndexStage
from components.storage.local import LocalStorage


def jpeg(seed: int = 0, size: tuple[int, int] = (40, 30), **options: Any) -> bytes:
    """A small JPEG whose pixels depend on the seed."""
    pixels = np.random.default_rng(seed).integers(0, 255, (size[1] // 10 + 1, size[0] // 10 + 1, 3), dtype=np.uint8)
    return encode(Image.fromarray(pixels).resize(size), "JPEG", **options)


def encode(image: Image.Image, format: str, **options: Any) -> bytes:
    sink = io.BytesIO()
    image.save(sink, format, **options)
    return sink.getvalue()


def uid(number: int) -> str:
    return f"{number:032x}"


def sample(number: int, text: str | None = None, **members: bytes | None) -> dict[str, bytes]:
    """Members of one whole sample; a keyword replaces one, None leaves it out."""
    text = f"photo number {number}" if text is None else text
    whole: dict[str, bytes | None] = {
        "jpg": jpeg(number),
        "txt": text.encode(),
        "json": json.dumps({"uid": uid(number), "caption": text, "width": 40, "height": 30}).encode(),
    }
    return {name: data for name, data in (whole | members).items() if data is not None}


def write_tar(
    path: Path, samples: Mapping[str, Mapping[str, bytes]] | Iterable[tuple[str, Mapping[str, bytes]]]
) -> Path:
    """A webdataset tar of (key, members); the same key may come twice."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pairs = samples.items() if isinstance(samples, Mapping) else samples
    with tarfile.open(path, "w") as tar:
        for key, members in pairs:
            for extension, data in members.items():
                info = tarfile.TarInfo(f"{key}.{extension}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return path


def write_shard(folder: Path, shard: int, count: int, start: int | None = None) -> Path:
    """One shard of plain samples with uids counted on over the shards."""
    first = shard * count if start is None else start
    return write_tar(folder / f"{shard:08d}.tar", {f"{shard:08d}{i:04d}": sample(first + i) for i in range(count)})


def open_pool(folder: Path, name: str = "test") -> Pool:
    return list_pool(name, LocalStorage(folder))


def indexed(folder: Path, storage: Path) -> tuple[Pool, Columns, ColumnSpec]:
    """The pool in `folder` with its index computed under `storage`."""
    pool, columns, index = open_pool(folder), Columns(LocalStorage(storage), "test"), IndexStage.make_index()
    run_task(IndexStage(index), pool, pool.shards, columns)
    return pool, columns, index
