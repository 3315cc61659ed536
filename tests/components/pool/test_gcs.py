"""gs:// against a strict emulator that fails on purpose: nothing lost, nothing twice."""

from __future__ import annotations

import os
import pickle
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import requests

from components.index.stage import IndexStage
from components.pool import gcs, recipe
from components.pool.columns import Columns
from components.pool.errors import PermanentError, TemporaryError
from components.pool.gcs import GcsStorage
from components.pool.shards import list_pool
from components.pool.worker import run_task
from tests.components.pool.gcs_server import BUCKET, Faults, gcs_server
from tests.components.pool.stages import Brightness
from tests.pools import write_shard


@pytest.fixture
def faults() -> Faults:
    return Faults()


@pytest.fixture
def storage(faults: Faults, monkeypatch: pytest.MonkeyPatch) -> Iterator[GcsStorage]:
    with gcs_server(faults) as address:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", address)
        yield GcsStorage(BUCKET, "root")


def test_the_server_enforces_preconditions(storage: GcsStorage) -> None:
    """Of the emulator itself this is not true: a race test against it would prove nothing."""
    url = f"{os.environ['STORAGE_EMULATOR_HOST']}/upload/storage/v1/b/{BUCKET}/o"
    query = {"uploadType": "media", "name": "x", "ifGenerationMatch": "0"}
    codes = [requests.post(url, params=query, data=body, timeout=5).status_code for body in (b"a", b"b")]
    assert codes == [200, 412]
    with ThreadPoolExecutor(8) as pool:
        again = {**query, "name": "y"}
        codes = list(pool.map(lambda _: requests.post(url, params=again, data=b"c", timeout=5).status_code, range(8)))
    assert sorted(codes) == [200] + [412] * 7


@pytest.mark.slow
def test_faults_lose_nothing_and_repeat_nothing(storage: GcsStorage, faults: Faults) -> None:
    faults.share = 0.05
    names = [f"{i:04d}" for i in range(300)]

    def work(name: str) -> tuple[bool, bool, bytes]:
        created = storage.create(name, name.encode() * 100)
        again = storage.create(name, b"another")
        storage.write(f"w/{name}", name.encode())
        return created, again, storage.read(name)

    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(work, names))
    assert results == [(True, False, name.encode() * 100) for name in names]
    assert [e.path for e in storage.list()] == [*names, *(f"w/{name}" for name in names)]
    assert set(faults.done) == {"unavailable", "busy", "reset", "lost answer", "cut short", "slow"}


def test_giving_up_is_temporary(
    storage: GcsStorage, faults: Faults, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(gcs, "DEADLINE", 1.0)
    faults.share = 1.0
    with pytest.raises(TemporaryError, match=r"cannot write gs://bucket/root/x: gave up after 1 s"):
        storage.write("x", b"1")
    assert "trying again" in caplog.text


def test_a_bucket_that_is_not_there(storage: GcsStorage) -> None:
    with pytest.raises(PermanentError, match="gs://nowhere/x: no such object or bucket"):
        GcsStorage("nowhere", "").write("x", b"1")


def test_a_storage_travels_to_another_process(storage: GcsStorage) -> None:
    storage.write("x", b"1")
    assert pickle.loads(pickle.dumps(storage)).read("x") == b"1"


@pytest.mark.slow
def test_a_pool_in_a_bucket(storage: GcsStorage, faults: Faults, tmp_path: Path) -> None:
    for shard in range(3):
        path = write_shard(tmp_path, shard, 20)
        storage.upload(path, f"shards/{path.name}")
    faults.share = 0.05
    source = GcsStorage(BUCKET, "root/shards")
    pool, columns = list_pool(recipe.Pool(name="p", shards=source.uri), source), Columns(storage, "p")
    index = IndexStage.make_spec()
    assert run_task(IndexStage(index), pool, pool.shards, columns).samples == 60
    spec = Brightness.make_spec(index)
    assert run_task(Brightness(spec), pool, pool.shards, columns, decoders=0).samples == 60
    fresh = Columns(GcsStorage(BUCKET, "root"), "p")
    assert [fresh.read(spec, s).num_rows for s in pool.shards] == [20, 20, 20]
