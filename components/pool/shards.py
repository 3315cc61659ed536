"""The pool's shards: which tars there are, in which order, under which manifest."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, astuple, dataclass
from functools import cached_property, partial
from itertools import islice, pairwise
from typing import Any, TypeVar

from components.base.errors import PermanentError
from components.base.hashing import content_hash
from components.pool.unread import LIKE_SHARDS, say_unread
from components.recipe import sources
from components.recipe.sources import Subset, is_hidden, is_table
from components.storage.interface import Storage
from components.storage.opening import open_object, open_storage

log = logging.getLogger(__name__)

T = TypeVar("T")
SHARD = ".tar"
"""End of a shard's name, in capitals as well."""
BESIDE = (".parquet", ".PARQUET", ".parq")  # ends of the name of a shard's metadata, the first that is there
LOOKED = 100_000  # objects searched for a tar: the address may be that of any bucket


@dataclass(frozen=True)
class Shard:
    """One webdataset tar."""

    name: str
    """Path below the pool's folder without its `.tar`, with slashes as dashes: names its columns' files."""
    tar: str
    """Path below the pool's folder."""
    size: int
    """Bytes."""
    parquet: str | None
    """The metadata beside it, if any."""
    state: str
    """Hash of where it lies and of size and version of its files: when it is another one, the shard is indexed anew,
    and the index tells whether anything in it is other than it was."""
    version: str = ""
    """Version of the tar, as its storage lists it; empty where the path has a hash of the content."""


@dataclass(frozen=True)
class Pool:
    """The ordered shards of a pool and where their tars lie."""

    name: str
    source: Storage
    manifest: str
    """Names the ordered shards. Of given shards it is a hash of their names and states: adding or replacing shards
    makes a new manifest. Of shards that are downloaded it is a hash of what they are made from, known before they are
    there."""
    find: Callable[[], tuple[Shard, ...]]

    @cached_property
    def shards(self) -> tuple[Shard, ...]:
        """The shards, in order. Raises PermanentError if they are still to be downloaded."""
        return self.find()

    def save(self, storage: Storage) -> None:
        """Write the pool's manifest to the storage, unless it is there."""
        save_manifest(storage, self, self.shards)

    @property
    def manifest_path(self) -> str:
        return _manifest_path(self.name, self.manifest)


def save_manifest(storage: Storage, pool: Pool, shards: Sequence[Shard], **about: object) -> None:
    """Write the ordered shards, with `about` as further keys, to the pool's manifest, unless it is there."""
    value = {"source": pool.source.uri, **about, "shards": [asdict(s) for s in shards]}
    storage.create(pool.manifest_path, json.dumps(value, indent=1).encode())


def read_json(storage: Storage, path: str, made: Callable[[Any], T]) -> T:
    """Read a JSON value that recaption wrote and return what `made` makes of it.

    Raises:
        PermanentError: the file is no JSON, or not what `made` expects.
    """
    data = storage.read(path)
    try:
        return made(json.loads(data))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        said = f"{type(error).__name__}: {error}"
        raise PermanentError(
            f"{storage.uri}/{path}: isn't what was written there ({said}); delete it and run again"
        ) from error


def load_pool(name: str, manifest: str, storage: Storage, source: Storage) -> Pool:
    """Return the pool of a manifest; the manifest may be written later, before `shards` is read."""
    return Pool(name, source, manifest, partial(_kept, name, manifest, storage))


def _kept(name: str, manifest: str, storage: Storage) -> tuple[Shard, ...]:
    path = _manifest_path(name, manifest)
    if storage.size(path) is None:
        raise PermanentError(
            f"pool {name}: its images are still to be downloaded; `recaption run` on the recipe does that first"
        )
    return read_json(storage, path, lambda value: tuple(Shard(**s) for s in value["shards"]))


def _manifest_path(name: str, manifest: str) -> str:
    return f"pools/{name}/manifests/{manifest}.json"


def list_pool(name: str, source: Storage, subset: Subset | None = None) -> Pool:
    """List the shards of a folder as a pool.

    Raises:
        PermanentError: the folder has no shard, or two tars of one name.
    """
    found = {entry.path: entry for entry in source.list()}
    shards = []
    for path in sorted(filter(is_shard, found)):
        stem, tar = path[: -len(SHARD)], found[path]
        beside = [found[f"{stem}{end}"] for end in BESIDE if f"{stem}{end}" in found][:1]
        state = content_hash([source.uri, *(astuple(entry) for entry in (tar, *beside))])
        parquet = beside[0].path if beside else None
        shards.append(Shard(stem.replace("/", "-"), path, tar.size, parquet, state, tar.version))
    unread = say_unread(source.uri, found, LIKE_SHARDS, "shard", "a shard is a plain .tar, so unpack them to that")
    if not shards:
        there = unread or "give the folder that holds the shards"
        raise PermanentError(f"pool {name}: no .tar in {source.uri}; {there}")
    if unread:
        log.warning("pool %s in %s: %s", name, source.uri, unread)
    if len({s.name for s in shards}) < len(shards):
        raise PermanentError(f"pool {name}: two tars in {source.uri} have one name once / becomes -; rename one")
    return pool_of(name, source, _subset(shards, subset) if subset else shards)


def is_shard(path: str) -> bool:
    """Return whether a file of this name is a shard: hidden files, and those in hidden folders, are not."""
    return path.lower().endswith(SHARD) and not is_hidden(path)


def pool_of(name: str, source: Storage, shards: Sequence[Shard]) -> Pool:
    """Return a pool of these shards."""
    found = tuple(shards)
    return Pool(name, source, content_hash([(s.name, s.state) for s in found]), partial(tuple, found))


def has_begun(pool: sources.Pool) -> bool:
    """Return whether the source holds a shard or a table to make a pool of; always true of a Common Crawl dump."""
    place, counts = (pool.shards, is_shard) if pool.shards is not None else (pool.urls, is_table)
    if place is None:
        return True
    if pool.urls is not None and is_table(place.rpartition("/")[2]):
        storage, name = open_object(place)
        return storage.size(name) is not None
    return any(counts(entry.path) for entry in islice(open_storage(place).list(), LOOKED))


def _subset(shards: list[Shard], subset: Subset) -> list[Shard]:
    if subset.shards > len(shards):
        raise PermanentError(f"spec.pool.subset.shards: asks for {subset.shards}, the pool has {len(shards)}")
    by_hash = sorted(shards, key=lambda s: content_hash([subset.seed, s.name]))
    return sorted(by_hash[: subset.shards], key=lambda s: s.name)


def tasks_of(shards: Sequence[T], count: int) -> list[Sequence[T]]:
    """Cut `shards` into `count` contiguous ranges whose lengths differ by at most one."""
    cuts = [i * len(shards) // max(count, 1) for i in range(count + 1)]
    return [shards[a:b] for a, b in pairwise(cuts)]


def common_start(names: Sequence[str]) -> str:
    """Return the longest prefix of all names; empty where there are none."""
    low, high = min(names, default=""), max(names, default="")
    return low[: next((i for i, (a, b) in enumerate(zip(low, high, strict=False)) if a != b), len(low))]
