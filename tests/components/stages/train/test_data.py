"""The loader on a bucket: what fails for a while must not end the training for good."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
import torch
from open_clip_train.data import SharedEpoch

from components.base.errors import PermanentError, TemporaryError
from components.stages.train import data
from components.stages.train.data import TrainingSet, WholeLoader, get_data
from components.storage import ranged_reader, retry
from components.storage.opening import open_storage
from tests.components.storage.faulty import Faults
from tests.components.storage.gcs_server import BUCKET, gcs_server
from tests.components.storage.s3_server import s3_environment, s3_server
from tests.pools import jpeg, write_tar


@pytest.mark.parametrize("scheme", ["gs", "s3"])
def test_a_bucket_that_goes_away_in_a_tar(scheme: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry, "DEADLINE", 1.0)
    monkeypatch.setattr(ranged_reader, "FIRST", 1 << 14)
    faults = Faults()
    with gcs_server(faults) if scheme == "gs" else s3_server(faults) as address, s3_environment(address):
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", address)
        storage = open_storage(f"{scheme}://{BUCKET}/set")
        samples = {f"{n:05d}": {"jpg": jpeg(n) + os.urandom(40_000), "txt": b"a text"} for n in range(40)}
        storage.upload(write_tar(tmp_path / "0.tar", samples), "0.tar")
        storage.write("dataset.json", json.dumps({"shards": [{"name": "0.tar", "samples": 40}]}).encode())
        training = TrainingSet(
            storage.uri, 10, 4, (0, 0), SharedEpoch(0), lambda image: torch.zeros(1), lambda text: torch.zeros(1, 1)
        )
        assert len(list(training)) == 10
        faults.share, faults.kinds = 1.0, ("unavailable",)
        faults.only = lambda request: "0.tar" in request.path and bool(request.headers.get("Range"))
        where = rf"training set {scheme}://bucket/set/0\.tar after \d+ samples"
        with pytest.raises(TemporaryError, match=rf"^{where}: cannot read .*0\.tar: gave up after 1 s: .*$") as told:
            list(training)
        assert "<_io" not in str(told.value)


def loader_of(tmp_path: Path, workers: int, batches: int = 3) -> WholeLoader:
    samples = {f"{n:05d}": {"jpg": jpeg(n), "txt": b"a text"} for n in range(8)}
    write_tar(tmp_path / "set" / "0.tar", samples)
    (tmp_path / "set" / "dataset.json").write_text(json.dumps({"shards": [{"name": "0.tar", "samples": 8}]}))
    args = SimpleNamespace(
        train_num_samples=4 * batches, batch_size=4, world_size=1, rank=0, seed=0, workers=workers,
        train_data=str(tmp_path / "set"),
    )  # fmt: skip
    found = get_data(args, (lambda image: torch.zeros(1 << 16), None), 0, lambda text: torch.zeros(1, 1))
    return cast(WholeLoader, found["train"].dataloader)


@pytest.fixture
def long_temp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in which Python can't make the socket by which a process hands a tensor over."""
    folder = tmp_path / ("long" * 25)
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


@pytest.mark.parametrize("workers", [0, 1])
def test_every_batch_arrives(tmp_path: Path, workers: int) -> None:
    loader = loader_of(tmp_path, workers)
    assert [len(list(loader)) for _ in range(2)] == [3, 3]


def test_too_long_a_path_for_the_loading_processes_is_refused(tmp_path: Path, long_temp: Path) -> None:
    assert len(list(loader_of(tmp_path, 0))) == 3
    with pytest.raises(PermanentError, match=rf"TMPDIR {long_temp}: has more than 75 characters"):
        loader_of(tmp_path, 1)


def test_batches_that_a_loading_process_loses_are_no_end_of_an_epoch(
    tmp_path: Path, long_temp: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Torch prints a traceback and goes on: a training of no batch at all once ended well."""
    monkeypatch.setattr(data, "LONGEST_TEMP", 1000)
    with pytest.raises(TemporaryError, match=r"^0 of 1 batches arrived from the loading processes"):
        list(loader_of(tmp_path, 1, batches=1))
    assert "AF_UNIX path too long" in capfd.readouterr().err
