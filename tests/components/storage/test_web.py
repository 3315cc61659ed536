"""Reading from a mirror that misbehaves: bounded attempts, by ranges, one version of an object."""

from __future__ import annotations

import random
import socket
import time
from pathlib import Path

import pytest

from components.base.errors import PermanentError, TemporaryError
from components.storage import ranged_reader, retry
from components.storage.web import open_source
from tests.components.storage.web_server import mirror

DATA = random.Random(0).randbytes(1_000_000)


@pytest.fixture(autouse=True)
def _small_and_quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranged_reader, "FIRST", 50_000)
    monkeypatch.setattr(ranged_reader, "CHUNK", 100_000)
    monkeypatch.setattr(retry, "DEADLINE", 60.0)


def test_reading_whole_and_in_ranges() -> None:
    with mirror({"a/b": DATA}) as served:
        source = open_source(served.url + "/")
        assert source.read("a/b") == DATA
        assert source.read("a/b", 999_990, 100) == DATA[999_990:]
        assert source.read("a/b", 10, 0) == b""
        with source.open("a/b") as file:
            file.seek(500_000)
            assert file.read(10) == DATA[500_000:500_010]
    assert all(asked for _, asked in served.requests)


@pytest.mark.parametrize("ranges", [True, False])
def test_an_empty_object_and_a_server_without_ranges(ranges: bool) -> None:
    with mirror({"x": DATA, "empty": b""}, ranges=ranges) as served:
        source = open_source(served.url)
        assert source.read("empty") == b""
        with source.open("x") as file:
            file.seek(400_000)
            assert file.read() == DATA[400_000:]


@pytest.mark.parametrize("fault", [500, 429, "hang up", "cut"])
def test_failures_pass_and_only_what_is_missing_is_asked_again(fault: str | int) -> None:
    with mirror({"x": DATA}) as served:
        with open_source(served.url).open("x") as file:
            start = file.read(60_000)
            served.faults += [fault]
            assert start + file.read() == DATA
        wanted = sum(int(a.split("-")[1]) - int(a.split("-")[0][6:]) + 1 for _, a in served.requests if a)
    assert wanted < len(DATA) + 3 * 100_000


def test_a_mirror_that_is_away_is_named_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry, "DEADLINE", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as free:
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    with pytest.raises(
        TemporaryError, match=rf"^cannot read {url}/x: gave up after 0 s: \[Errno \d+\] Connection refused$"
    ):
        open_source(url).read("x")


def test_first_requests_that_fail_at_a_server_without_ranges() -> None:
    with mirror({"x": DATA}, faults=[503, "hang up", "cut"], ranges=False) as served:
        assert open_source(served.url).read("x") == DATA


def test_slow_down_is_honoured() -> None:
    with mirror({"x": b"abc"}, faults=["slow"]) as served:
        began = time.monotonic()
        assert open_source(served.url).read("x") == b"abc"
    assert time.monotonic() - began >= 1
    assert len(served.requests) == 3


@pytest.mark.parametrize("status", [404, 403])
def test_what_is_not_there_is_permanent_and_asked_for_once(status: int) -> None:
    with mirror({}, faults=[status]) as served, pytest.raises(PermanentError, match=f"{status} .*no such file"):
        open_source(served.url).read("x")
    assert len(served.requests) == 1


def test_giving_up_is_temporary(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry, "DEADLINE", 1.0)
    with mirror({}, faults=[500] * 1000) as served, pytest.raises(TemporaryError, match="gave up after 1 s: 500 "):
        open_source(served.url).read("x")


def test_an_object_that_is_replaced_is_never_mixed() -> None:
    with mirror({"x": DATA}) as served, open_source(served.url).open("x") as file:
        file.read(10)
        served.etag = '"2"'
        with pytest.raises(TemporaryError, match="replaced"):
            file.read()


def test_folders_too(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(DATA)
    assert open_source(str(tmp_path)).read("x") == DATA
