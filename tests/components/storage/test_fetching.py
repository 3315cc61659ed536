"""Models at an address: fetched once per machine, by content, whatever is killed meanwhile or changed later."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest

from components.base.errors import PermanentError
from components.storage.addressed import look_up
from components.storage.fetching import fetched
from components.storage.fingerprint import model_fingerprint, path_fingerprint
from components.storage.interface import Storage
from tests.components.storage.faulty import Faults

MODEL = {
    "config.json": json.dumps({"model_type": "blip"}).encode(),
    "model.safetensors": bytes(range(256)) * 300,
    "tokenizer.json": b"{}",
}
LOADED_BESIDE_NOTHING = {"README.md": b"# A model", "pytorch_model.bin": b"the same as a pickle", ".git/HEAD": b"ref"}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RECAPTION_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def put(bucket: Storage, files: dict[str, bytes], folder: str = "models/blip") -> str:
    for name, data in files.items():
        bucket.write(f"{folder}/{name}", data)
    return f"{bucket.uri}/{folder}"


def content(folder: str) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in Path(folder).rglob("*") if p.is_file()}


def test_of_a_models_folder_the_files_that_are_loaded_are_fetched(bucket: Storage) -> None:
    address = put(bucket, {**MODEL, **LOADED_BESIDE_NOTHING})
    path = fetched(address, look_up(address).fingerprint)
    assert Path(path).name == "blip"
    assert content(path) == MODEL
    assert content(fetched(f"{address}/")) == MODEL


def test_a_name_that_is_no_address_stays(tmp_path: Path, cache: Path) -> None:
    for name in ("ViT-L-14", "Salesforce/blip2-opt-2.7b", str(tmp_path), f"local-dir:{tmp_path}"):
        assert fetched(name, "whatever") == name
    assert not cache.exists()


@pytest.mark.parametrize("bucket", ["gs"], indirect=True)
def test_a_file_of_weights_brings_the_config_beside_it(bucket: Storage) -> None:
    there = {"weights.pt": b"weights", "open_clip_config.json": b"{}", "weights.pt.md5": b"0"}
    path = Path(fetched(f"{put(bucket, there)}/weights.pt"))
    assert path.read_bytes() == b"weights"
    assert sorted(file.name for file in path.parent.iterdir()) == ["open_clip_config.json", "weights.pt"]


def test_another_object_is_another_model(bucket: Storage) -> None:
    address = put(bucket, MODEL)
    first = model_fingerprint(address)
    put(bucket, {"README.md": b"# Another"})
    assert path_fingerprint(address, "weights") == first
    put(bucket, {"tokenizer.json": b"[]"})
    assert model_fingerprint(address) != first


@pytest.mark.parametrize("bucket", ["gs"], indirect=True)
def test_what_was_planned_is_loaded_or_nothing(bucket: Storage) -> None:
    address = put(bucket, MODEL)
    planned = look_up(address).fingerprint
    kept = fetched(address, planned)
    put(bucket, {"tokenizer.json": b"[]"})
    assert content(fetched(address, planned)) == MODEL  # this machine has it still
    assert content(fetched(address)) == {**MODEL, "tokenizer.json": b"[]"} != content(kept)
    with pytest.raises(PermanentError, match=r"models/blip: was changed after this run was planned; run the recipe a"):
        fetched(address, "another")


@pytest.mark.parametrize("bucket", ["gs"], indirect=True)
@pytest.mark.parametrize(
    ("address", "expected"),
    [("models/none", "there is no such object, and none below it"), ("models/bli", "there is no such object")],
)
def test_nothing_at_an_address_is_one_line(bucket: Storage, address: str, expected: str) -> None:
    put(bucket, MODEL)
    with pytest.raises(PermanentError, match=f"spec.scorer.model: {bucket.uri}/{address}: {expected}"):
        model_fingerprint(f"{bucket.uri}/{address}", None, "spec.scorer.model")


@pytest.mark.parametrize("bucket", ["gs"], indirect=True)
def test_a_cache_that_cant_be_written_is_one_line(
    bucket: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("RECAPTION_CACHE", str(tmp_path / "file"))
    address = put(bucket, MODEL)
    with pytest.raises(PermanentError, match=f"RECAPTION_CACHE {tmp_path}/file: .*; it must be a folder with room"):
        fetched(address)


HALF = 2 << 20  # bytes
FETCH = """
import logging, sys
from components.storage.fetching import fetched
logging.basicConfig(level=logging.INFO, format="%(message)s")
print(fetched(sys.argv[1]))
"""


@pytest.mark.parametrize("bucket", ["s3"], indirect=True)
def test_two_processes_fetch_once_and_a_killed_one_is_taken_over(
    bucket: Storage, faults: Faults, cache: Path, tmp_path: Path
) -> None:
    """The first has half of a file when it is killed; the second, which waited for it, fetches the other half."""
    weights = bytes(range(256)) * (2 * HALF // 256)
    address = put(bucket, {"weights.pt": weights}, "heads") + "/weights.pt"
    fetches: list[tuple[int, int]] = []

    def is_late(request: BaseHTTPRequestHandler) -> bool:
        found = re.fullmatch(r"bytes=(\d+)-(\d+)", request.headers.get("Range", ""))
        if found:
            fetches.append((int(found[1]), int(found[2]) + 1))
        return found is not None and int(found[1]) >= HALF

    faults.only, faults.kinds, faults.share = is_late, ("unavailable",), 1.0
    with open(tmp_path / "first", "w") as out, open(tmp_path / "second", "w") as other:
        first = subprocess.Popen([sys.executable, "-c", FETCH, address], stdout=out, stderr=out)
        wait(lambda: any(file.stat().st_size >= HALF // 2 for file in cache.rglob(".begun")), first)
        second = subprocess.Popen([sys.executable, "-c", FETCH, address], stdout=other, stderr=other)
        wait(lambda: "another process of this machine fetches it" in (tmp_path / "second").read_text(), second)
    first.send_signal(signal.SIGKILL)
    first.wait()
    [begun] = cache.rglob(".begun")
    had = begun.stat().st_size
    faults.share, faults.done = 0.0, Counter()
    fetches.clear()
    assert second.wait(60) == 0, (tmp_path / "second").read_text()
    path = Path((tmp_path / "second").read_text().splitlines()[-1])
    assert path.read_bytes() == weights
    assert min(start for start, _ in fetches) >= had > 0
    before = faults.requests
    assert fetched(address, look_up(address).fingerprint) == str(path)
    assert faults.requests - before <= 3  # what is looked up, and no bytes


def wait(until: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
    for _ in range(1200):
        if until():
            return
        assert process.poll() is None
        time.sleep(0.05)
    raise AssertionError("nothing happened for a minute")
