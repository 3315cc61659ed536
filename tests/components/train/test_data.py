"""The loader on a bucket: what fails for a while must not end the training for good."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from open_clip_train.data import SharedEpoch

from components.pool import ahead, attempts
from components.pool.errors import TemporaryError
from components.pool.storage import open_storage
from components.train.data import TrainingSet
from tests.components.pool.faulty import Faults
from tests.components.pool.gcs_server import BUCKET, gcs_server
from tests.components.pool.s3_server import s3_environment, s3_server
from tests.pools import jpeg, write_tar


@pytest.mark.parametrize("scheme", ["gs", "s3"])
def test_a_bucket_that_goes_away_in_a_tar(scheme: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attempts, "DEADLINE", 1.0)
    monkeypatch.setattr(ahead, "FIRST", 1 << 14)
    faults = Faults()
    with gcs_server(faults) if scheme == "gs" else s3_server(faults) as address, s3_environment(address):
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", address)
        storage = open_storage(f"{scheme}://{BUCKET}/set")
        samples = {f"{n:05d}": {"jpg": jpeg(n) + os.urandom(40_000), "txt": b"a text"} for n in range(40)}
        storage.upload(write_tar(tmp_path / "0.tar", samples), "0.tar")
        storage.write("dataset.json", json.dumps({"shards": [{"name": "0.tar", "samples": 40}]}).encode())
        data = TrainingSet(
            storage.uri, 10, 4, (0, 0), SharedEpoch(0), lambda image: torch.zeros(1), lambda text: torch.zeros(1, 1)
        )
        assert len(list(data)) == 10
        faults.share, faults.kinds = 1.0, ("unavailable",)
        faults.only = lambda request: "0.tar" in request.path and bool(request.headers.get("Range"))
        where = rf"training set {scheme}://bucket/set/0\.tar after \d+ samples"
        with pytest.raises(TemporaryError, match=rf"^{where}: cannot read .*0\.tar: gave up after 1 s: .*$") as told:
            list(data)
        assert "<_io" not in str(told.value)
