"""What the shards of a pool contain, in one file: it names what is made of them, and spares a read per shard."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from components.pool.columns import ALL, Columns
from components.pool.shards import Shard, read_json
from components.pool.specs import ColumnSpec, Content
from components.storage.interface import Storage

Contents = Mapping[str, Content]
"""Number of images and of samples by shard's name, in the pool's order."""


def read_contents(storage: Storage, path: str) -> Contents | None:
    """Read the contents kept at this path; None where there is no such file."""
    return read_json(storage, path, _contents) if storage.size(path) is not None else None


def collect_contents(columns: Columns, index: ColumnSpec, shards: Sequence[Shard]) -> Contents | None:
    """Collect the contents from the index's records; None where a shard isn't indexed as it lies there now."""
    if not all(ALL in columns.parts(index, shard) for shard in shards):
        return None
    columns.read_records(index, shards)
    found = {shard.name: columns.record(index, shard, ALL).content for shard in shards}
    return {name: content for name, content in found.items() if content is not None}


def write_contents(storage: Storage, path: str, contents: Contents) -> None:
    """Write the file, unless it is there."""
    value = {name: [content.images, content.samples] for name, content in contents.items()}
    storage.create(path, json.dumps(value, separators=(",", ":")).encode())


def _contents(value: Mapping[str, Any]) -> Contents:
    return {name: Content(images, samples) for name, (images, samples) in value.items()}
