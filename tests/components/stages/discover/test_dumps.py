"""Discovery against an index on loopback, and what a schedule may still do."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from components.base.errors import PermanentError, TemporaryError
from components.stages.discover import dumps
from components.stages.discover.dumps import claim_path, list_dumps, unclaimed
from components.storage.claims import claim
from components.storage.local import LocalStorage
from tests.components.storage.web_server import LOOPBACK

# Ids as index.commoncrawl.org/collinfo.json has them, out of order, with the oldest kinds among them.
IDS = ["CC-MAIN-2026-38", "CC-MAIN-2026-43", "CC-MAIN-2013-20", "CC-MAIN-2012", "CC-MAIN-2009-2010", "CC-MAIN-2025-51"]
NEWEST_FIRST = ["CC-MAIN-2026-43", "CC-MAIN-2026-38", "CC-MAIN-2025-51", "CC-MAIN-2013-20"]
INDEX = json.dumps([{"id": i, "name": i, "cdx-api": f"https://index.commoncrawl.org/{i}-index"} for i in IDS])


@contextmanager
def index(*answers: int | None) -> Iterator[tuple[str, list[str]]]:
    """Answers each request with the next status (None: hangs up, 0 and 1: a byte of the body or of the head now and
    then), then with the last one; and the requests' paths."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status = answers[min(len(asked), len(answers) - 1)]
            asked.append(self.path)
            if status is None:
                return
            self.send_response(status if status > 1 else 200)
            self.flush_headers() if status == 1 else self.end_headers()
            with suppress(ConnectionError):
                while status <= 1:
                    self.wfile.write(b" ")
                    time.sleep(0.05)
                self.wfile.write(INDEX.encode() if status == 200 else b"no")

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", asked
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture(autouse=True)
def _no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dumps, "PAUSE", 0.01)


def test_newest_first_from_a_folder_and_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "collinfo.json").write_text(INDEX)
    assert list_dumps(str(tmp_path)) == list_dumps(str(tmp_path / "collinfo.json")) == NEWEST_FIRST


def test_over_http_through_failures() -> None:
    with index(503, None, 429, 200) as (url, asked):
        assert list_dumps(f"{url}/", LOOPBACK) == NEWEST_FIRST
    assert asked == ["/collinfo.json"] * 4


@pytest.mark.parametrize("answer", [500, None])
def test_giving_up_is_temporary_and_bounded(answer: int | None) -> None:
    with index(answer) as (url, asked), pytest.raises(TemporaryError, match=r"after 4 attempts"):
        list_dumps(url, LOOPBACK)
    assert len(asked) == 4


def test_nobody_listening_is_temporary() -> None:
    with index(200) as (url, _):
        pass
    with pytest.raises(TemporaryError, match="refused"):
        list_dumps(url, LOOPBACK)


@pytest.mark.parametrize("part", [0, 1])
def test_an_index_that_never_ends_its_answer_is_temporary(part: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dumps, "ATTEMPTS", 1)
    monkeypatch.setattr(dumps, "DEADLINE", 0.5)
    with index(part) as (url, _), pytest.raises(TemporaryError, match="no end of its answer within 0 s, after 1 att"):
        list_dumps(url, LOOPBACK)


def test_a_large_index_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dumps, "LIMIT", 100)
    (tmp_path / "collinfo.json").write_text(INDEX)
    with index(200) as (url, _):
        for uri in (url, str(tmp_path)):
            with pytest.raises(PermanentError, match="found more than 100 bytes"):
                list_dumps(uri, LOOPBACK)


def test_a_private_index_is_not_asked_unless_it_is_allowed() -> None:
    with index(200) as (url, asked), pytest.raises(PermanentError, match=r"no public address; .*allowNetworks"):
        list_dumps(url)
    assert asked == []


def test_a_password_is_never_said(caplog: pytest.LogCaptureFixture) -> None:
    with index(500) as (url, _), pytest.raises(TemporaryError) as told:
        list_dumps(url.replace("://", "://user:s3cret@"), LOOPBACK)
    assert "again in" in caplog.text
    assert "s3cret" not in caplog.text + str(told.value)


def test_a_wrong_address_is_permanent_and_asked_once() -> None:
    with index(404) as (url, asked), pytest.raises(PermanentError, match=r"404 .*; give the base address"):
        list_dumps(url, LOOPBACK)
    assert len(asked) == 1


@pytest.mark.parametrize("text", ["<html>", "{}x", '{"a": 1}', '["CC-MAIN-2026-43"]', "[1]", "[" * 10_000])
def test_what_is_no_index_is_permanent(tmp_path: Path, text: str) -> None:
    (tmp_path / "collinfo.json").write_text(text)
    with pytest.raises(PermanentError, match="expected a JSON list of objects with `id`"):
        list_dumps(str(tmp_path))


@pytest.mark.parametrize("index", ["http://[bad", f"https://{'a' * 70}.com", "https://exa mple", "http://:x/"])
def test_what_is_no_address_is_permanent(index: str) -> None:
    with pytest.raises(PermanentError, match=r"give the base address of a collinfo\.json"):
        list_dumps(index)


def test_only_the_newest_unless_told_how_far_back(tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path)

    def todo(by: str, oldest: str = "") -> list[str]:
        return list(unclaimed(storage, "weekly", NEWEST_FIRST, by, oldest))

    assert todo("run-1") == NEWEST_FIRST[:1]
    assert todo("run-1", "CC-MAIN-2025-51") == NEWEST_FIRST[:3]
    claim(storage, claim_path("weekly", NEWEST_FIRST[0]), "run-1")
    assert todo("run-2") == []
    assert todo("run-2", "CC-MAIN-2026-01") == NEWEST_FIRST[1:2]
    assert list(unclaimed(storage, "monthly", NEWEST_FIRST, "run-2")) == NEWEST_FIRST[:1]


def test_after_a_crash_the_same_run_gets_its_own_dump_although_a_newer_one_appeared(tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path)
    claim(storage, claim_path("weekly", NEWEST_FIRST[1]), "run-1")
    assert next(unclaimed(storage, "weekly", NEWEST_FIRST, "run-1")) == NEWEST_FIRST[1]
    assert next(unclaimed(storage, "weekly", NEWEST_FIRST, "run-2")) == NEWEST_FIRST[0]
