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
from tests.components.storage.faulty import serving

# Ids as index.commoncrawl.org/collinfo.json has them, out of order, with the oldest kinds among them.
IDS = ["CC-MAIN-2026-38", "CC-MAIN-2026-43", "CC-MAIN-2013-20", "CC-MAIN-2012", "CC-MAIN-2009-2010", "CC-MAIN-2025-51"]
NEWEST_FIRST = ["CC-MAIN-2026-43", "CC-MAIN-2026-38", "CC-MAIN-2025-51", "CC-MAIN-2013-20"]
INDEX = json.dumps([{"id": i, "name": i, "cdx-api": f"https://index.commoncrawl.org/{i}-index"} for i in IDS])


@contextmanager
def index(*answers: int | None) -> Iterator[tuple[str, list[str]]]:
    """Answers each request with the next status (None: hangs up), then with the last one; and the requests' paths."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status = answers[min(len(asked), len(answers) - 1)]
            asked.append(self.path)
            if status is None:
                return
            self.send_response(status)
            self.end_headers()
            self.wfile.write(INDEX.encode() if status == 200 else b"no")

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
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
        assert list_dumps(f"{url}/") == NEWEST_FIRST
    assert asked == ["/collinfo.json"] * 4


@pytest.mark.parametrize("answer", [500, None])
def test_giving_up_is_temporary_and_bounded(answer: int | None) -> None:
    with index(answer) as (url, asked), pytest.raises(TemporaryError, match=r"after 4 attempts"):
        list_dumps(url)
    assert len(asked) == (4 if answer else 8), "aiohttp itself asks anew, once, whoever hangs up"


class Drip(BaseHTTPRequestHandler):
    """Sends a byte now and then, of its answer or already of its headers, and never comes to an end."""

    where = "body"

    def do_GET(self) -> None:
        self.wfile.write(b"HTTP/1.1 200 OK\r\n")
        self.wfile.write(b"\r\n[" if self.where == "body" else b"X: ")
        with suppress(OSError):
            while True:  # until the client has gone
                time.sleep(0.02)
                self.wfile.write(b"1")

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def dripping(where: str = "body") -> Iterator[str]:
    with serving(type("Bound", (Drip,), {"where": where})) as url:
        yield url


@pytest.mark.parametrize("where", ["body", "headers"])
def test_an_answer_that_drips_without_an_end_is_given_up(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dumps, "TIMEOUT", 0.2)
    monkeypatch.setattr(dumps, "LONGEST", 0.5)
    with dripping(where) as url, pytest.raises(TemporaryError, match=r"no end of its answer within"):
        list_dumps(url)


def test_a_large_index_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dumps, "LIMIT", 100)
    (tmp_path / "collinfo.json").write_text(INDEX)
    with index(200) as (url, _):
        for uri in (url, str(tmp_path)):
            with pytest.raises(PermanentError, match="found more than 100 bytes"):
                list_dumps(uri)


def test_nobody_listening_is_temporary() -> None:
    with index(200) as (url, _):
        pass
    with pytest.raises(TemporaryError, match="Connect call failed"):
        list_dumps(url)


def test_a_wrong_address_is_permanent_and_asked_once() -> None:
    with index(404) as (url, asked), pytest.raises(PermanentError, match=r"404 .*; give the base address"):
        list_dumps(url)
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
