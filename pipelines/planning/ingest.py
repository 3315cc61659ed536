"""A pool that is still to be downloaded: which files name its images, and what decides its content."""

from __future__ import annotations

from collections.abc import Sequence

from components.base.errors import PermanentError
from components.base.hashing import content_hash
from components.pool.run import Ingest
from components.pool.shards import Pool, load_pool
from components.recipe.recipe import Spec
from components.recipe.sources import CommonCrawl, Download
from components.stages.discover.files import find_dump, list_files
from components.stages.extract.extraction import Extraction, partitions_for
from components.stages.extract.table import find_tables
from components.storage.interface import Storage
from components.storage.opening import open_storage
from components.storage.web import open_source


def plan_ingest(spec: Spec, storage: Storage) -> tuple[Pool, Ingest]:
    """Return the pool as it will be, and the extraction before it.

    A pool is named by what it is made from: two recipes with one `pool.name` never mix their images. Rounds of `retry`
    add shards to a pool, so they are in the name of its manifest.

    Raises:
        PermanentError: no such dump or file.
        TemporaryError: they can't be listed now.
    """
    work, how = _extraction(spec), spec.download or Download()
    decides = [work.folder, how.robots, how.max_bytes, sorted(how.allow_networks)]
    name = f"{spec.pool.name}-{content_hash(decides)}"
    source = open_storage(f"{storage.uri}/pools/{name}")
    pool = load_pool(name, content_hash([name, how.retry]), storage, source)
    return pool, Ingest(work.folder, work.to_json())


def _extraction(spec: Spec) -> Extraction:
    if spec.pool.common_crawl:
        return _of_dump(spec.pool.common_crawl, spec.download.allow_networks if spec.download else ())
    assert spec.pool.urls is not None  # a pool has one source
    try:
        return find_tables(spec.pool.urls)
    except PermanentError as error:
        raise PermanentError(f"spec.pool.urls: {error}") from error


def _of_dump(wanted: CommonCrawl, networks: Sequence[str]) -> Extraction:
    try:
        dump = find_dump(wanted.dump, wanted.index, networks)
        files = list_files(dump, wanted.files, wanted.base, wanted.sample, wanted.seed, networks)
    except PermanentError as error:
        raise PermanentError(f"spec.pool.commonCrawl: {error}") from error
    return Extraction(dump, open_source(wanted.base).uri, tuple(files), wanted.files, partitions_for(len(files)))
