"""Claims: of any number that race, one holds it, in a folder and in a bucket that fails."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from components.storage.claims import claim, claimed_by
from components.storage.interface import Storage
from components.storage.opening import open_storage
from tests.components.storage.gcs_server import BUCKET, Faults, gcs_server

PATH = "runs/medium-blip2-01234567/claim.json"


@pytest.fixture(params=["folder", "bucket", "failing bucket"])
def storage(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Storage]:
    if request.param == "folder":
        yield open_storage(str(tmp_path / "root"))
        return
    with gcs_server(Faults(0.05 if request.param == "failing bucket" else 0.0)) as address:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", address)
        yield open_storage(f"gs://{BUCKET}/root")


def test_the_first_one_holds_it_and_may_ask_again(storage: Storage) -> None:
    assert claimed_by(storage, PATH) is None
    assert claim(storage, PATH, "a") == "a"
    assert claim(storage, PATH, "b") == "a"
    assert claim(storage, PATH, "a") == "a"
    assert json.loads(storage.read(PATH)) == {"by": "a"}


def test_once_given_up_it_can_be_claimed_anew(storage: Storage) -> None:
    claim(storage, PATH, "a")
    storage.delete(PATH)
    assert claim(storage, PATH, "b") == "b"


def test_of_many_that_race_all_name_the_same_one(storage: Storage) -> None:
    claimants = [f"claimant-{i}" for i in range(8)]
    for attempt in range(5):
        path = f"runs/{attempt}/claim.json"
        with ThreadPoolExecutor(len(claimants)) as pool:
            holders = list(pool.map(lambda by, path=path: claim(storage, path, by), claimants))
        assert len(set(holders)) == 1
        assert claimed_by(storage, path) == holders[0]
