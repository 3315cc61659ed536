"""The pool's shards: which tars there are, in which order, under which manifest."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import pairwise

from components.pool import recipe
from components.pool.errors import PermanentError
from components.pool.storage import Storage


@dataclass(frozen=True)
class Shard:
    """One webdataset tar."""

    name: str
    """Its path below the pool's folder without `.tar`, slashes as dashes: the stem of its columns' files."""
    tar: str
    """Path below the pool's folder."""
    size: int
    """Bytes: columns remember it, so that a tar that was replaced is noticed."""
    parquet: str | None
    """The metadata beside it, if any."""


@dataclass(frozen=True)
class Pool:
    """The ordered shards of a pool and where their tars lie."""

    name: str
    source: Storage
    shards: tuple[Shard, ...]

    @cached_property
    def manifest(self) -> str:
        """Hash of the ordered shards: adding shards makes a new manifest, and so new mixtures."""
        return content_hash([(s.name, s.size) for s in self.shards])

    def save(self, storage: Storage) -> None:
        """Keep the manifest under the storage, once."""
        value = {"source": self.source.uri, "shards": [asdict(s) for s in self.shards]}
        storage.create(self.manifest_path, json.dumps(value, indent=1).encode())

    @property
    def manifest_path(self) -> str:
        return f"pools/{self.name}/manifests/{self.manifest}.json"


def load_pool(name: str, manifest: str, storage: Storage, source: Storage) -> Pool:
    """The pool as it was when `save` kept that manifest."""
    value = json.loads(storage.read(f"pools/{name}/manifests/{manifest}.json"))
    return Pool(name, source, tuple(Shard(**s) for s in value["shards"]))


def list_pool(pool: recipe.Pool, source: Storage) -> Pool:
    """List the shards that lie there now.

    Raises:
        PermanentError: no shard there, or two tars of one name.
    """
    sizes = {entry.path: entry.size for entry in source.list()}
    shards = []
    for path in sorted(p for p in sizes if p.endswith(".tar")):
        stem = path.removesuffix(".tar")
        parquet = f"{stem}.parquet" if f"{stem}.parquet" in sizes else None
        shards.append(Shard(stem.replace("/", "-"), path, sizes[path], parquet))
    if not shards:
        raise PermanentError(f"pool {pool.name}: no .tar in {source.uri}; give the folder that holds the shards")
    if len({s.name for s in shards}) < len(shards):
        raise PermanentError(f"pool {pool.name}: two tars in {source.uri} have one name once / becomes -; rename one")
    if pool.subset:
        shards = _subset(shards, pool.subset)
    return Pool(pool.name, source, tuple(shards))


def _subset(shards: list[Shard], subset: recipe.Subset) -> list[Shard]:
    if subset.shards > len(shards):
        raise PermanentError(f"spec.pool.subset.shards: asks for {subset.shards}, the pool has {len(shards)}")
    by_hash = sorted(shards, key=lambda s: content_hash([subset.seed, s.name]))
    return sorted(by_hash[: subset.shards], key=lambda s: s.name)


def tasks_of(shards: Sequence[Shard], count: int) -> list[Sequence[Shard]]:
    """Cut into `count` contiguous ranges whose lengths differ by at most one."""
    cuts = [i * len(shards) // count for i in range(count + 1)]
    return [shards[a:b] for a, b in pairwise(cuts)]


def common_start(names: Sequence[str]) -> str:
    """With what all of them start; nothing where there are none."""
    low, high = min(names, default=""), max(names, default="")
    return low[: next((i for i, (a, b) in enumerate(zip(low, high, strict=False)) if a != b), len(low))]


def content_hash(value: object) -> str:
    """12 hex digits of the SHA-256 of a JSON value: what names columns, mixtures, data sets and models."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:12]
