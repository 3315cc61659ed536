"""What a reconciliation may touch: the cluster, KFP, storages, the lists of dumps, the clock. A test brings its own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime

from components.pool.storage import Storage, open_storage
from pipelines.fanout.cluster import Cluster
from pipelines.operator.dumplists import DumpLists
from pipelines.operator.kfp import Kfp
from pipelines.operator.settings import Settings


def _now() -> datetime:
    return datetime.now(UTC)


@dataclass
class World:
    """Shared by all reconciliations, from several threads."""

    cluster: Cluster
    kfp: Kfp
    settings: Settings
    now: Callable[[], datetime] = _now
    storages: dict[str, Storage] = field(default_factory=dict)
    dumps: DumpLists = field(default_factory=DumpLists)

    def storage(self, uri: str) -> Storage:
        """The storage at this address; its connections are kept. Raises PermanentError like open_storage."""
        if uri not in self.storages:
            self.storages[uri] = open_storage(uri)
        return self.storages[uri]
