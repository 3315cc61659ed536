"""Reading from a mirror that misbehaves: bounded attempts, by ranges, one version of an object."""

from __future__ import annotations

import random
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import trustme

from components.base.errors import PermanentError, TemporaryError
from components.storage import ranged_reader, retry
from components.storage.web import open_source
from tests.components.stages.download.web import Answer, Web
from tests.components.storage.web_server import LOOPBACK, mirror

DATA = random.Random(0).randbytes(1_000_000)


@pytest.fixture(autouse=True)
def _small_and_quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranged_reader, "FIRST", 50_000)
    monkeypatch.setattr(ranged_reader, "CHUNK", 100_000)
    monkeypatch.setattr(retry, "DEADLINE", 60.0)


def test_reading_whole_and_in_ranges() -> None:
    with mirror({"a/b": DATA}) as served:
        source = open_source(served.url + "/", LOOPBACK)
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
        source = open_source(served.url, LOOPBACK)
        assert source.read("empty") == b""
        with source.open("x") as file:
            file.seek(400_000)
            assert file.read() == DATA[400_000:]


@pytest.mark.parametrize("fault", [500, 429, "hang up", "cut"])
def test_failures_pass_and_only_what_is_missing_is_asked_again(fault: str | int) -> None:
    with mirror({"x": DATA}) as served:
        with open_source(served.url, LOOPBACK).open("x") as file:
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
        open_source(url, LOOPBACK).read("x")


def test_what_is_no_http_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry, "DEADLINE", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            with suppress(OSError):  # the server is closed
                while True:
                    with server.accept()[0] as connection:
                        connection.sendall(b"-ERR secret\r\n")

        threading.Thread(target=answer, daemon=True).start()
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(TemporaryError, match=r"gave up after 0 s: an answer that is not HTTP$"):
            open_source(url, LOOPBACK).read("x")


def test_first_requests_that_fail_at_a_server_without_ranges() -> None:
    with mirror({"x": DATA}, faults=[503, "hang up", "cut"], ranges=False) as served:
        assert open_source(served.url, LOOPBACK).read("x") == DATA


def test_slow_down_is_honoured() -> None:
    with mirror({"x": b"abc"}, faults=["slow"]) as served:
        began = time.monotonic()
        assert open_source(served.url, LOOPBACK).read("x") == b"abc"
    assert time.monotonic() - began >= 1
    assert len(served.requests) == 3


@pytest.mark.parametrize("status", [404, 403])
def test_what_is_not_there_is_permanent_and_asked_for_once(status: int) -> None:
    with mirror({}, faults=[status]) as served, pytest.raises(PermanentError, match=f"{status} .*no such file"):
        open_source(served.url, LOOPBACK).read("x")
    assert len(served.requests) == 1


def test_giving_up_is_temporary(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry, "DEADLINE", 1.0)
    with mirror({}, faults=[500] * 1000) as served, pytest.raises(TemporaryError, match="gave up after 1 s: 500 "):
        open_source(served.url, LOOPBACK).read("x")


def test_an_object_that_is_replaced_is_never_mixed() -> None:
    with mirror({"x": DATA}) as served, open_source(served.url, LOOPBACK).open("x") as file:
        file.read(10)
        served.etag = '"2"'
        with pytest.raises(TemporaryError, match="replaced"):
            file.read()


@contextmanager
def redirecting(url: str, status: int = 302) -> Iterator[str]:
    """A server that sends whoever asks to another address."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.send_header("Location", url)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.9.9.9", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield f"http://127.9.9.9:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


PRIVATE = ["http://127.0.0.1", "http://[::1]:80", "http://localhost", "http://2130706433", "https://169.254.169.254"]


@pytest.mark.parametrize("url", PRIVATE)
def test_what_is_private_is_not_asked(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    connected: list[object] = []
    monkeypatch.setattr(socket.socket, "connect", lambda _, address: connected.append(address))
    with pytest.raises(PermanentError, match=r"has no public address; .*spec\.download\.allowNetworks"):
        open_source(url).read("x")
    assert not connected


def test_a_redirect_is_guarded_as_any_address() -> None:
    """The first server may be asked; it sends us to another one, which may not."""
    with mirror({"x": DATA}) as secret, redirecting(f"{secret.url}/x") as url:
        with pytest.raises(PermanentError, match="has no public address") as told:
            open_source(url, ["127.9.9.9/32"]).read("x")
        assert open_source(url, LOOPBACK).read("x") == DATA
    assert len(secret.requests) > 1
    assert secret.url not in str(told.value)
    with redirecting("file:///etc/passwd") as url, pytest.raises(PermanentError, match="No connection adapters"):
        open_source(url, LOOPBACK).read("x")


def test_of_several_addresses_of_a_host_the_one_that_answers_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    with mirror({"x": DATA}) as served:
        port = int(served.url.rpartition(":")[2])
        known = ["10.0.0.1", "127.0.0.2", "127.0.0.1"]  # refused, nobody there, the server
        found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in known]
        look_up = socket.getaddrinfo
        monkeypatch.setattr(
            socket, "getaddrinfo", lambda host, *a, **k: found if host == "m.test" else look_up(host, *a, **k)
        )
        assert open_source(f"http://m.test:{port}", LOOPBACK).read("x") == DATA


def test_by_tls_the_certificate_is_the_hosts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry, "DEADLINE", 0.1)
    ca, context = trustme.CA(), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ca.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / "ca.pem"))
    ca.issue_cert("localhost").configure_cert(context)
    with Web(tls=context) as served:
        served.pages["/x"] = Answer(DATA)
        assert open_source(served.url(host="localhost"), [*LOOPBACK, "::1/128"]).read("x") == DATA
        with pytest.raises(TemporaryError, match="CERTIFICATE_VERIFY_FAILED"):
            open_source(served.url(), LOOPBACK).read("x")


def test_a_password_is_used_and_never_said(caplog: pytest.LogCaptureFixture) -> None:
    with mirror({"x": DATA}, faults=[503]) as served:
        source = open_source(served.url.replace("://", "://user:s3cret@"), LOOPBACK)
        assert source.read("x") == DATA
        with pytest.raises(PermanentError, match=f"cannot read {served.url}/y: 404") as told:
            source.read("y")
    assert "trying again" in caplog.text
    assert "s3cret" not in caplog.text + str(told.value)


def test_folders_too(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(DATA)
    assert open_source(str(tmp_path)).read("x") == DATA
