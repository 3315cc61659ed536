"""The buckets that tests write to: Google's and S3's, on servers that fail when `faults` says so."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from components.storage.interface import Storage
from components.storage.opening import open_storage
from tests.components.storage.faulty import Faults
from tests.components.storage.gcs_server import BUCKET, gcs_server
from tests.components.storage.s3_server import s3_environment, s3_server


@pytest.fixture
def faults() -> Faults:
    return Faults()


@pytest.fixture(params=["gs", "s3"])
def bucket(request: pytest.FixtureRequest, faults: Faults, monkeypatch: pytest.MonkeyPatch) -> Iterator[Storage]:
    with gcs_server(faults) if request.param == "gs" else s3_server(faults) as address, s3_environment(address):
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", address)
        yield open_storage(f"{request.param}://{BUCKET}/root")
