"""The services that a reconciliation uses: the cluster, KFP, storages, the lists of dumps, the clock."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime

from components.storage.interface import Storage
from components.storage.opening import open_storage
from pipelines.kubernetes.cluster import Cluster
from pipelines.operator.runtime.dump_lists import DumpLists
from pipelines.operator.runtime.kfp import Kfp
from pipelines.operator.runtime.settings import Settings

MANY = 256  # storages whose connections are kept


def _now() -> datetime:
    return datetime.now(UTC)


@dataclass
class Dependencies:
    """The services of all reconciliations, used from several threads. A test passes its own."""

    cluster: Cluster
    kfp: Kfp
    settings: Settings
    now: Callable[[], datetime] = _now
    storages: dict[str, Storage] = field(default_factory=dict)
    dumps: DumpLists = field(default_factory=DumpLists)

    def storage(self, uri: str) -> Storage:
        """Return the storage at this address; its connections are kept. Raises PermanentError like open_storage."""
        found = self.storages.get(uri)
        if found is None:
            found = open_storage(uri)
            if len(self.storages) >= MANY:
                self.storages.clear()
            self.storages[uri] = found
        return found
