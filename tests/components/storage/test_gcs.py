"""What is gs:// alone: the test's server is as strict as Google's where it matters, and errors are one clear line."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import google.auth
import google.auth.exceptions as auth
import pytest
import requests
from google.cloud import storage as google_storage

from components.base.errors import PermanentError, TemporaryError
from components.storage import multipart, retry
from components.storage.gcs import GcsStorage
from tests.components.storage.faulty import Faults
from tests.components.storage.gcs_server import BUCKET, gcs_server


@pytest.fixture
def storage(faults: Faults, monkeypatch: pytest.MonkeyPatch) -> Iterator[GcsStorage]:
    with gcs_server(faults) as address:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", address)
        yield GcsStorage(BUCKET, "root")


def test_the_server_enforces_preconditions(storage: GcsStorage) -> None:
    """Of the emulator itself this is not true: a race test against it would prove nothing."""
    url = f"{os.environ['STORAGE_EMULATOR_HOST']}/upload/storage/v1/b/{BUCKET}/o"
    query = {"uploadType": "media", "name": "x", "ifGenerationMatch": "0"}
    codes = [requests.post(url, params=query, data=body, timeout=60).status_code for body in (b"a", b"b")]
    assert codes == [200, 412]
    with ThreadPoolExecutor(8) as pool:
        again = {**query, "name": "y"}
        codes = list(pool.map(lambda _: requests.post(url, params=again, data=b"c", timeout=60).status_code, range(8)))
    assert sorted(codes) == [200] + [412] * 7


def test_the_server_has_one_generation_at_a_time(storage: GcsStorage) -> None:
    """Nor is this true of the emulator: it gives today's bytes for any generation."""
    storage.write("x", b"1")
    url = f"{os.environ['STORAGE_EMULATOR_HOST']}/storage/v1/b/{BUCKET}/o/root%2Fx"
    first = {"generation": requests.get(url, timeout=60).json()["generation"]}
    assert requests.get(url, params={**first, "alt": "media"}, timeout=60).content == b"1"
    storage.write("x", b"2")
    assert requests.get(url, params={**first, "alt": "media"}, timeout=60).status_code == 404


def test_the_server_wants_parts_in_order(storage: GcsStorage) -> None:
    url = f"{os.environ['STORAGE_EMULATOR_HOST']}/{BUCKET}/x"
    upload = requests.post(f"{url}?uploads", timeout=60).text.partition("<UploadId>")[2].partition("<")[0]
    for number in (1, 2):
        requests.put(url, params={"uploadId": upload, "partNumber": f"{number}"}, data=f"{number}", timeout=60)
    body = "<PartNumber>2</PartNumber><PartNumber>1</PartNumber>"
    assert requests.post(url, params={"uploadId": upload}, data=body, timeout=60).status_code == 400


def test_a_file_that_changes_while_it_is_uploaded(
    storage: GcsStorage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each part was whole, and yet the object is neither the old file nor the new one."""
    monkeypatch.setattr(multipart, "PART", 1 << 18)
    monkeypatch.setattr(multipart, "LARGE", 1 << 18)
    (tmp_path / "file").write_bytes(bytes(1 << 20))
    found = storage._found

    def change(path: str, verb: str) -> object:
        (tmp_path / "file").write_bytes(b"1" * (1 << 20))
        return found(path, verb)

    monkeypatch.setattr(storage, "_found", change)
    with pytest.raises(TemporaryError, match=r"cannot write .*x: has CRC32C .*, expected .*: did .*file change"):
        storage.upload(tmp_path / "file", "x")


@pytest.mark.parametrize(("code", "message"), [
    (403, "no permission: give this identity storage.objectUser on the bucket"),
    (400, "400 "),
])  # fmt: skip
def test_refused_is_permanent(storage: GcsStorage, faults: Faults, tmp_path: Path, code: int, message: str) -> None:
    faults.share, faults.kinds = 1.0, (code,)
    (tmp_path / "file").write_bytes(b"1")
    calls = (
        lambda: storage.read("x"),
        lambda: storage.open("x"),
        lambda: storage.size("x"),
        lambda: storage.write("x", b"1"),
        lambda: storage.create("x", b"1"),
        lambda: storage.upload(tmp_path / "file", "x"),
        lambda: storage.delete("x"),
        lambda: list(storage.list()),
    )
    for call in calls:
        with pytest.raises(PermanentError, match=rf"^cannot \w+ gs://bucket/root/x?: .*{message}"):
            call()


def test_no_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*_: object, **__: object) -> None:
        raise auth.DefaultCredentialsError("none")

    monkeypatch.delenv("STORAGE_EMULATOR_HOST", raising=False)
    monkeypatch.setattr(google.auth, "default", none)
    with pytest.raises(PermanentError, match=r"gs://bucket: no Google Cloud credentials; use Workload Identity"):
        GcsStorage(BUCKET, "").read("x")


class Metadata(google.auth.credentials.Credentials):
    """Workload Identity: a token comes from the pod's metadata server, which may not be there yet."""

    def __init__(self, error: Exception, fails: int) -> None:
        super().__init__()
        self.error, self.fails = error, fails

    def refresh(self, request: object) -> None:
        self.fails -= 1
        if self.fails >= 0:
            raise auth.RefreshError("no answer") from self.error
        self.token = "token"


def with_credentials(storage: GcsStorage, credentials: Metadata) -> GcsStorage:
    """A client that asks for tokens, in place of the emulator's."""
    options = {"api_endpoint": os.environ["STORAGE_EMULATOR_HOST"]}
    client = google_storage.Client(project="p", credentials=credentials, client_options=options)
    storage._made = os.getpid(), client.bucket(BUCKET)
    return storage


def test_a_metadata_server_that_starts_late(storage: GcsStorage, caplog: pytest.LogCaptureFixture) -> None:
    storage.write("x", b"1")
    late = Metadata(auth.TransportError("connection refused"), fails=2)
    with caplog.at_level(logging.WARNING):
        assert with_credentials(storage, late).read("x") == b"1"
    assert "read gs://bucket/root/x: no answer; trying again" in caplog.text


def test_an_account_that_is_not_bound(storage: GcsStorage) -> None:
    refused = Metadata(ValueError("403"), fails=99)
    with pytest.raises(PermanentError, match=r"no token from Google Cloud .* bound by Workload Identity\?"):
        with_credentials(storage, refused).read("x")


def test_the_pauses_between_attempts_are_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """google.api_core's Retry: evenly from 0 up to a bound that doubles, so that workers don't come back together."""
    pauses: list[float] = []
    monkeypatch.setattr("time.sleep", pauses.append)
    for _ in range(200):
        failures = iter([ConnectionError(), ConnectionError(), ConnectionError(), None])

        def attempt(failures: Iterator[Exception | None] = failures) -> int:
            if error := next(failures):
                raise error
            return 1

        assert retry.attempted(attempt, "read x", lambda error: True) == 1
    for number, bound in enumerate((0.5, 1.0, 2.0)):
        drawn = pauses[number::3]
        assert 0 <= min(drawn) < 0.1 * bound
        assert 0.9 * bound < max(drawn) <= bound
