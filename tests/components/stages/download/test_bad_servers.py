"""A server that misbehaves on purpose: every candidate ends as a row with its reason, and soon."""

from __future__ import annotations

import asyncio
import gzip
import io
import ssl
import struct
import zlib
from pathlib import Path
from typing import Any

import pytest
import trustme
from PIL import Image

from components.stages.download.reasons import REASONS
from tests.components.stages.download import web as misbehave
from tests.components.stages.download.conftest import Pool
from tests.components.stages.download.web import Answer, Blackhole, Web
from tests.pools import encode, jpeg

SVG = b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>'


def huge_png() -> bytes:
    """A header of 40,000 × 40,000 pixels and little else."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 40_000, 40_000, 8, 2, 0, 0, 0)
    pixels = zlib.compress(bytes(100_000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


BOMB = gzip.compress(bytes(50 << 20))
PAGES = {
    "endless": (misbehave.endless, "too_large"),
    "endless-head": (misbehave.endless_head, "bad_response"),
    "announced": (Answer(b"", headers={"Content-Length": "99999999"}), "too_large"),
    "cut-short": (misbehave.cut_short, "incomplete"),
    "longer": (Answer(jpeg(), headers={"Content-Length": "100"}), "bad_response"),
    "reset": (misbehave.reset, "reset"),
    "reset-within": (misbehave.reset_within, "incomplete"),
    "no-http": (misbehave.no_http, "bad_response"),
    "bad-header": (Answer(jpeg(), headers={"X\0Y": "z"}), "bad_response"),
    "gzip-bomb": (Answer(BOMB, headers={"Content-Encoding": "gzip"}), "too_large"),
    "gzip-broken": (Answer(b"\x1f\x8bnot gzip", headers={"Content-Encoding": "gzip"}), "encoding"),
    "brotli": (Answer(jpeg(), headers={"Content-Encoding": "br"}), "encoding"),
    "gzip": (Answer(gzip.compress(jpeg()), headers={"Content-Encoding": "gzip"}), None),
    "twice": (Answer(gzip.compress(zlib.compress(jpeg())), headers={"Content-Encoding": "deflate, gzip"}), None),
    "thrice": (Answer(jpeg(), headers={"Content-Encoding": "gzip, gzip, gzip"}), "encoding"),
    **{  # no encodings: browsers take the answer as it is
        f"encoding-{i}": (Answer(jpeg(), headers={"Content-Encoding": name}), None)
        for i, name in enumerate(("UTF-8", "none", "binary", "identity", "utf-8, Identity", "\xff", "image/jpeg"))
    },
    "brotli-and-more": (Answer(jpeg(), headers={"Content-Encoding": "br, utf-8"}), "encoding"),
    "long-header": (Answer(jpeg(), headers={"Content-Security-Policy": "x" * 30_000}), None),
    "too-long-header": (Answer(jpeg(), headers={"Content-Security-Policy": "x" * 40_000}), "bad_response"),
    "many-headers": (Answer(jpeg(), headers={f"X-{i}": "x" * 500 for i in range(100)}), None),
    "deflate": (Answer(zlib.compress(jpeg()), headers={"Content-Encoding": "deflate"}), None),
    "html": (Answer(b"<html>not an image</html>"), "not_image"),
    "svg": (Answer(SVG, headers={"Content-Type": "image/svg+xml"}), "not_image"),
    "empty": (Answer(b""), "empty"),
    "huge": (Answer(huge_png()), "too_many_pixels"),
    "pixel": (Answer(encode(Image.new("RGB", (1, 1)), "GIF")), "too_small"),
    "half": (Answer(jpeg(size=(400, 300))[:3000]), "truncated"),
    "loop": (Answer(status=302, headers={"Location": "/loop"}), "redirects"),
    "nowhere": (Answer(status=302), "redirects"),
    "to-ftp": (Answer(status=301, headers={"Location": "ftp://example.org/a.jpg"}), "bad_url"),
    "relative": (Answer(status=307, headers={"Location": "good"}), None),
    "good": (Answer(jpeg()), None),
    "opted-out": (Answer(jpeg(), headers={"X-Robots-Tag": "noai, max-snippet:-1"}), "opted_out"),
    "404-noindex": (Answer(status=404, headers={"X-Robots-Tag": "noindex"}), "http_404"),
    **{
        str(status): (Answer(b"" if status in (204, 304) else b"<html>", status), reason)
        for status, reason in {
            **{204: "http_other", 206: "http_other", 304: "http_other", 401: "http_403", 403: "http_403"},
            **{404: "http_404", 410: "http_404", 418: "http_4xx", 429: "http_429", 451: "http_403"},
            **{500: "http_5xx", 503: "http_5xx", 999: "http_5xx"},
        }.items()
    },
}


def test_every_misbehaviour_has_its_reason(web: Web, pool: Pool) -> None:
    web.pages = {f"/{name}": page for name, (page, _) in PAGES.items()}
    (record,) = pool.download([web.url(f"/{name}") for name in PAGES], max_bytes=1 << 20)
    found = dict(zip(PAGES, pool.reasons(record), strict=True))
    assert found == {name: reason for name, (_, reason) in PAGES.items()}
    assert record.samples + sum(record.failures.values()) == record.candidates == len(PAGES)
    for row in pool.rows(record):
        reason = row["error_message"]
        failed = "failed_to_resize" if reason and REASONS[reason].resize else "failed_to_download"
        assert row["status"] == (failed if reason else "success")
        assert (row["sha256"] is None) == (reason is not None)


@pytest.mark.parametrize(
    ("location", "path"),
    [
        (b"/caf\xe9.jpg?\xfc", "/caf%E9.jpg?%FC"),
        ("/café.jpg".encode(), "/caf%C3%A9.jpg"),
        ("/é".encode() + b"\xe9%41%e9", "/%C3%A9%E9A%E9"),
        (b"/a b.jpg", "/a%20b.jpg"),
    ],
)
def test_bytes_in_a_redirect_are_encoded_as_they_are(web: Web, pool: Pool, location: bytes, path: str) -> None:
    """As browsers do."""

    async def redirect(writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 302 Found\r\nContent-Length: 0\r\nLocation: " + location + b"\r\n\r\n")
        await writer.drain()

    web.pages = {"/": redirect, path: Answer(jpeg())}
    (record,) = pool.download([web.url()])
    assert [request.path for request in web.requests] == ["/", path]
    assert record.samples == 1


def test_a_host_that_does_not_answer(pool: Pool, tried: list[Any]) -> None:
    with Web() as gone:
        pass
    with Blackhole("127.0.0.1") as hole:
        urls = [f"http://127.0.0.1:{hole.port}/{i}.jpg" for i in range(50)]
        (record,) = pool.download([*urls, gone.url("/refused.jpg")], connect_timeout=0.5)
    assert record.failures == {"connect": 51}
    assert [address[1] for address in tried].count(hole.port) == 2  # then the host is closed


def test_a_server_that_is_too_slow(web: Web, pool: Pool) -> None:
    web.pages = {"/silent": misbehave.silent, "/drip": misbehave.drip, "/": Answer(jpeg())}
    (record,) = pool.download([web.url("/silent")], read_timeout=0.5)
    assert pool.reasons(record) == ["timeout"]
    (record,) = Pool(pool.folder / "drip").download([web.url("/drip")], timeout=2.0)
    assert record.failures == {"timeout": 1}


def test_tls_that_never_comes(web: Web, pool: Pool) -> None:
    (record,) = pool.download([f"https://127.0.0.1:{web.port}/"], connect_timeout=0.5)
    assert pool.reasons(record) == ["connect"]


def test_tls(pool: Pool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A certificate must be of somebody known, and the host's."""
    ca = trustme.CA()
    ca.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    with served(ca, "127.0.0.1") as good, served(ca, "other.test") as other, served(trustme.CA(), "127.0.0.1") as own:
        (record,) = pool.download([good.url(), other.url(), own.url()])
        assert pool.reasons(record) == [None, "tls", "tls"]
        assert [len(web.requests) for web in (good, other, own)] == [1, 0, 0]


def served(ca: trustme.CA, name: str) -> Web:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ca.issue_cert(name).configure_cert(context)
    web = Web(tls=context)
    web.pages["/"] = Answer(jpeg())
    return web


def test_the_client_is_honest_and_asks_for_what_it_can_read(
    web: Web, pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    web.pages["/"] = Answer(jpeg(), headers={"Set-Cookie": "a=b"})
    pool.download([web.url()] * 2, contact="https://example.org/bot")
    for request in web.requests:
        assert request.headers["user-agent"].startswith("recaption/")
        assert request.headers["user-agent"].endswith(" (+https://example.org/bot)")
        assert request.headers["accept-encoding"] == "identity"
        assert not {"cookie", "referer", "authorization"} & request.headers.keys()
    assert len(web.requests) == 2


def test_images_are_what_was_sent(web: Web, pool: Pool) -> None:
    web.pages["/"] = Answer(jpeg(7, (1000, 500)))
    (record,) = pool.download([web.url()])
    image = Image.open(io.BytesIO(pool.members(record)["000000000000.jpg"]))
    assert (image.size, image.format) == ((512, 256), "JPEG")
