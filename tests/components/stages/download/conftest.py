"""Candidates, downloads and what came of them."""

from __future__ import annotations

import socket
import tarfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from components.base.guard import Guard
from components.recipe.sources import Download
from components.stages.download.shard import Candidates, ShardRecord
from components.stages.download.task import download
from components.storage.local import LocalStorage
from tests.components.stages.download.web import Web
from tests.pools import uid

LOOPBACK = ["127.0.0.0/8"]
USUAL = {"connect_timeout": 60.0, "read_timeout": 60.0, "timeout": 120.0, "retries": 0, "per_host_rate": 1000.0}
"""Options of a test: patient, since a loaded machine is slow; a test that waits for a timeout asks for a short one."""


@pytest.fixture
def web() -> Iterator[Web]:
    with Web() as found:
        yield found


def write_candidates(path: Path, urls: Sequence[str | None], first: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [(uid(first + i), url, f"text {first + i}") for i, url in enumerate(urls)]
    columns = list(zip(*rows, strict=True)) if rows else [(), (), ()]
    arrays = [pa.array(column, pa.string()) for column in columns]
    pq.write_table(pa.table(arrays, names=["uid", "url", "text"]), path)
    return path


class Pool:
    """A folder with candidates and shards."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.storage = LocalStorage(folder)

    def download(
        self,
        *shards: Sequence[str | None],
        names: Callable[[], Any] | None = None,
        progress: Any = None,
        **options: Any,
    ) -> list[ShardRecord]:
        todo = []
        for number, urls in enumerate(shards):
            name = f"{number:08d}"
            write_candidates(self.folder / f"candidates/{name}.parquet", urls, number * 10_000)
            todo.append(Candidates(name, f"candidates/{name}.parquet"))
        wanted = Download(**(USUAL | {"allow_networks": LOOPBACK} | options))
        more = {"progress": progress} if progress else {}
        return download(todo, wanted, self.storage, "shards", processes=1, names=names, **more)

    def rows(self, record: ShardRecord) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = pq.read_table(self.folder / record.parquet).to_pylist()
        return rows

    def reasons(self, record: ShardRecord) -> list[str | None]:
        return [row["error_message"] for row in self.rows(record)]

    def members(self, record: ShardRecord) -> dict[str, bytes]:
        with tarfile.open(self.folder / record.tar) as tar:
            return {member.name: tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]


@pytest.fixture
def tried(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """The addresses that sockets were opened for."""
    found: list[tuple[str, int]] = []
    open_socket = Guard.open_socket

    def counted(self: Guard, info: Any) -> socket.socket:
        found.append(info[4][:2])
        return open_socket(self, info)

    monkeypatch.setattr(Guard, "open_socket", counted)
    return found


@pytest.fixture
def pool(tmp_path: Path) -> Pool:
    return Pool(tmp_path)
