"""What is s3:// alone: conditions, stores that ignore them, endpoints, and errors that are one clear line."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import botocore.session
import pytest
from botocore.exceptions import ClientError

from components.base.errors import PermanentError
from components.storage import multipart, s3
from components.storage.s3 import S3Storage
from pipelines.kubernetes.secrets import SECRET_KEYS
from tests.components.storage.faulty import Faults
from tests.components.storage.s3_server import BUCKET, ENVIRONMENT, Secret, s3_environment, s3_server


@pytest.fixture
def address(faults: Faults) -> Iterator[str]:
    with s3_server(faults) as address, s3_environment(address):
        yield address


@pytest.fixture
def storage(address: str) -> S3Storage:
    return S3Storage(BUCKET, "root")


def creations(name: str, count: int) -> list[int]:
    """Statuses of so many conditional PUTs at once, by another client than ours."""
    client = botocore.session.get_session().create_client("s3")

    def create(_: int) -> int:
        try:
            answer = client.put_object(Bucket=BUCKET, Key=name, Body=b"1", IfNoneMatch="*")
        except ClientError as error:
            answer = error.response
        return int(answer["ResponseMetadata"]["HTTPStatusCode"])

    with ThreadPoolExecutor(count) as pool:
        return sorted(pool.map(create, range(count)))


@pytest.mark.usefixtures("address")
def test_the_server_enforces_conditions() -> None:
    assert creations("x", 8) == [200] + [412] * 7


def test_a_store_that_ignores_conditions_is_refused() -> None:
    """Two workers could both commit there."""
    with s3_server(conditions=False) as address, s3_environment(address):
        assert creations("x", 3) == [200] * 3
        storage = S3Storage(BUCKET, "")
        with pytest.raises(PermanentError, match=r"s3://bucket: this store ignores `If-None-Match: \*`"):
            storage.create("claim", b"1")


def test_a_store_is_tried_once(storage: S3Storage, faults: Faults) -> None:
    assert storage.create("a", b"1")
    before = faults.requests
    assert S3Storage(BUCKET, "elsewhere").create("b", b"1")
    assert faults.requests - before == 1


def test_any_name_is_kept(storage: S3Storage) -> None:
    names = ["a b", "a+b", "a%20b", "ä/ö", "a?b#c", "x=1&y"]
    for name in names:
        storage.write(name, name.encode())
    assert {e.path: storage.read(e.path).decode() for e in storage.list()} == {name: name for name in names}


@pytest.mark.parametrize(("code", "message"), [
    (401, "no permission"),
    (403, "no permission: allow this identity s3:ListBucket on the bucket and s3:GetObject"),
    (501, "this store lacks what is needed"),
    (400, "400"),
])  # fmt: skip
def test_refused_is_permanent(storage: S3Storage, faults: Faults, tmp_path: Path, code: int, message: str) -> None:
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
        with pytest.raises(PermanentError, match=rf"^cannot \w+ s3://bucket/root/x?: .*{message}"):
            call()


@pytest.mark.parametrize("code", ["BadDigest", "RequestTimeout", "IncompleteBody", "ConditionalRequestConflict"])
def test_passing_errors_with_other_statuses(code: str) -> None:
    answer = {"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": 400}}
    assert s3._passing(ClientError(answer, "PutObject"))
    assert not s3._passing(ClientError({**answer, "Error": {"Code": "InvalidArgument"}}, "PutObject"))


def test_no_credentials(address: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ENVIRONMENT:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    with pytest.raises(PermanentError, match=r"cannot read s3://bucket/x: no AWS credentials .*service account a role"):
        S3Storage(BUCKET, "").read("x")


@pytest.fixture
def secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Secret:
    """Return the mounted Secret, which nobody has made yet, of a process that has no other credentials."""
    for name in (*ENVIRONMENT, "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("RECAPTION_SECRET_FOLDER", str(tmp_path / "secret"))
    return Secret(tmp_path / "secret")


def test_a_secret_that_comes_later_or_changes_is_read_anew(secret: Secret, faults: Faults) -> None:
    signatures: list[str] = []
    faults.only = lambda request: bool(signatures.append(request.headers["Authorization"]))
    with s3_server(faults) as address:
        storage = S3Storage(BUCKET, "")
        with pytest.raises(PermanentError, match=r"no AWS credentials .*AWS_ACCESS_KEY_ID.* Secret"):
            storage.size("x")
        keys = {"AWS_ACCESS_KEY_ID": "first", "AWS_SECRET_ACCESS_KEY": "test", "AWS_REGION": "eu-north-1"}
        secret.mount({**keys, "AWS_ENDPOINT_URL": f"{address}\n"})
        assert storage.size("x") is None
        secret.mount({**keys, "AWS_ENDPOINT_URL": address, "AWS_ACCESS_KEY_ID": "second"})
        assert storage.size("x") is None
    assert [signature.split("Credential=")[1].split("/")[0:3:2] for signature in signatures] == [
        ["first", "eu-north-1"],
        ["second", "eu-north-1"],
    ]


def test_every_variable_for_a_storage_can_stand_in_a_secret() -> None:
    assert {*s3.VARIABLES, "HF_TOKEN"} == set(SECRET_KEYS)


def test_bytes_are_checked_where_they_arrive(storage: S3Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every body goes with its Content-MD5, in one piece or in parts."""
    sent: list[dict[str, object]] = []
    call = storage._call

    def watch(method: str, path: str | None, **arguments: object) -> object:
        if "Body" in arguments:
            sent.append(arguments)
        return call(method, path, **arguments)

    monkeypatch.setattr(storage, "_call", watch)
    storage.write("x", b"1")
    storage.create("y", b"1")
    monkeypatch.setattr(multipart, "PART", 1 << 18)
    monkeypatch.setattr(multipart, "LARGE", 1 << 18)
    storage.upload(Path(s3.__file__), "z")
    assert len(sent) >= 3
    assert all(s3._md5(arguments["Body"]) == arguments["ContentMD5"] for arguments in sent)  # type: ignore[arg-type]


def test_without_s3fs() -> None:
    """The remedy is named, in one line, and only by who wants s3://."""
    code = (
        "import sys; sys.modules['s3fs'] = None\n"
        "from components.storage.opening import open_storage\n"
        "open_storage('gs://bucket/x'); open_storage('/x')\n"
        "try: open_storage('s3://bucket/x')\n"
        "except Exception as error: print(type(error).__name__, error)"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert told.startswith("PermanentError s3:// needs s3fs (")
    assert told.endswith("pip install 'recaption[s3]'\n")
    assert told.count("\n") == 1
