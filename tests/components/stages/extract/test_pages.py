"""Images of WAT records and of HTML pages: what is read, and that nothing a page holds stops the reading."""

from __future__ import annotations

import gzip
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from selectolax.lexbor import LexborHTMLParser

from components.stages.extract import page, text_rules, wat
from components.stages.extract.page import parse_srcset
from components.stages.extract.records import NO_IMAGE, UNREADABLE, WarcRecord
from components.stages.extract.tags import read_tags
from components.stages.extract.text_rules import LONG_URL, NO_TEXT, Image, Page, candidate, unescape
from tests.components.stages.extract.archives import envelope, img, wat_page

URL = "https://site.example/blog/"


def of_wat(content: bytes) -> Any:
    return wat.images_of(WarcRecord(URL, content))


def of_html(body: bytes | str, mime: str = "text/html") -> list[Image]:
    data = body.encode() if isinstance(body, str) else body
    found = page.images_of(WarcRecord(URL, f"HTTP/1.1 200 OK\r\ncontent-type: {mime}\r\n\r\n".encode() + data))
    return [] if found == NO_IMAGE else found[1]  # type: ignore[return-value]


def test_a_wat_record() -> None:
    links = [
        {"path": "A@/href", "url": "/b.html", "text": "b", "alt": "no image"},
        img("/a.jpg", "a cat", title="title"),
        {"path": "IMG@/longdesc", "url": "/a.txt"},
        img("b.jpg"),
        img(alt="an image without src"),
        {"path": "STYLE/#text", "href": "/c.gif"},
    ]
    where, images = of_wat(wat_page(URL, links, {"Base": "/root/", "Metas": [{"name": "a", "content": "b"}]}))
    assert where.start == "https://site.example/root/"
    assert images == [Image("/a.jpg", "a cat"), Image("b.jpg", None), Image(None, "an image without src")]


@pytest.mark.parametrize(
    "content",
    [
        envelope(URL, {"HTTP-Request-Metadata": {}}, "request"),
        envelope(URL, {"HTTP-Response-Metadata": {"Headers": {}}}),
        wat_page(URL, [{"path": "A@/href", "url": "/b", "text": '"IMG@/src"'}]),
        wat_page(URL, []),
        b"",
    ],
)
def test_wat_records_without_images(content: bytes) -> None:
    assert of_wat(content) == NO_IMAGE


@pytest.mark.parametrize(
    "content",
    [
        wat_page(URL, [img("/a.jpg", "a")])[:-20],
        b'{"path":"IMG@/src"',
        b'["IMG@/src"]',
        b'{"Envelope": 1, "x": "IMG@/src"}',
        b'{"IMG@": 1}',
        wat_page(URL, [{"path": "IMG@/src", "url": 1}]),
        b'"IMG@' + b"[" * 100_000,
        b'{"Envelope":' * 50_000 + b'"IMG@',
    ],
)
def test_unreadable_wat_records(content: bytes) -> None:
    assert of_wat(content) == UNREADABLE


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        (b"caf\xc3\xa9", "café"),
        (b"caf\xe9", "caf\ufffd"),  # Latin-1 where UTF-8 should be
        (rb"\ud83d\ude00", "😀"),
        (rb"half \ud83d", "half \ufffd"),
        (rb"half \ude00 x", "half \ufffd x"),
        (b"tab\there", "tab\there"),  # JSON would have it escaped
    ],
)
def test_broken_characters_cost_no_page(raw: bytes, text: str) -> None:
    content = wat_page(URL, [img("/a.jpg", "TEXT")]).replace(b"TEXT", raw)
    _, images = of_wat(content)
    assert images == [Image("/a.jpg", text)]


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(), lambda x: st.lists(x) | st.dictionaries(
    st.sampled_from(["Envelope", "Payload-Metadata", "HTTP-Response-Metadata", "HTML-Metadata", "Links", "Head", "Base",
                     "path", "url", "alt"]), x), max_leaves=20))  # fmt: skip
def test_any_json_is_read_or_unreadable(value: Any) -> None:
    found = of_wat(b'{"x":"IMG@/src",' + json.dumps({"Envelope": value}).encode()[1:])
    assert found in (NO_IMAGE, UNREADABLE) or found[1]


def test_a_broken_record_is_mended_only_where_it_is_not_too_large(monkeypatch: pytest.MonkeyPatch) -> None:
    content = wat_page(URL, [img("/a.jpg", "a")]).replace(b'"a"', b'"\xff"')
    assert len(of_wat(content)[1]) == 1
    monkeypatch.setattr(wat, "MOST_MENDED", len(content) - 1)
    assert of_wat(content) == UNREADABLE


def test_an_html_page() -> None:
    body = """<!doctype html><head><base href="/root/"><base href="/second/"></head>
    <img src="a.jpg" alt="Tom &amp; Jerry"><IMG SRC=b.jpg ALT='b'><noscript><img src="c.jpg" alt="c"></noscript>
    <img src="data:image/gif;base64,R0lG" data-src="lazy.jpg" alt="lazy"><img alt="nothing"><img src alt>
    <img src="p.gif" width="1" height=" 1px " alt="pixel"><img src="w.gif" width="1" height="200" alt="line">"""
    found = page.images_of(WarcRecord(URL, b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n\r\n" + body.encode()))
    assert not isinstance(found, str)
    assert found[0].start == "https://site.example/root/"
    assert found[1] == [
        Image("a.jpg", "Tom &amp; Jerry"), Image("b.jpg", "b"), Image("c.jpg", "c"), Image("lazy.jpg", "lazy"),
        Image(None, "nothing"), Image("", ""), Image("p.gif", "pixel", pixel=True), Image("w.gif", "line"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("tag", "url"),
    [
        ('<img src="s.jpg" srcset="a.jpg 300w, b.jpg 1200w">', "b.jpg"),
        ('<img src="s.jpg" data-srcset="a.jpg, b.jpg 2x">', "b.jpg"),
        ('<img src="s.jpg" srcset="" data-original="o.jpg">', "o.jpg"),
        ('<picture><source srcset="big.webp 900w"><source srcset="a.jpg 30w"><img src="s.jpg"></picture>', "big.webp"),
        ('<img src="s.jpg" srcset="data:image/gif;base64,AA==">', "s.jpg"),
        ('<img src="s.jpg" data-src="">', "s.jpg"),
    ],
)
def test_the_largest_url_of_an_image(tag: str, url: str) -> None:
    assert [image.url for image in of_html(tag)] == [url]


def test_a_source_of_many_images_is_resolved_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A picture that nobody closes, with a URL of megabytes: a page of 5 MiB took hours."""
    resolved: list[str] = []
    unescape = text_rules.unescape
    monkeypatch.setattr(text_rules, "unescape", lambda text: resolved.append(text) or unescape(text))
    long = "http://h/" + "x" * 5000
    body = f"<picture><source srcset='{long} 9w'>" + "<img src=b alt=>" * 50 + "</picture><img src=f alt=>"
    where = Page(URL)
    assert [candidate(where, image) for image in of_html(body)] == [LONG_URL] * 50 + [NO_TEXT]
    assert resolved.count(long) == 1


# HTML, "parse a srcset attribute"
@pytest.mark.parametrize(
    ("srcset", "url"),
    [
        ("a.jpg", "a.jpg"),
        ("a.jpg 1x, b.jpg 1200w", "b.jpg"),
        ("a.jpg 1x, b.jpg 2.5x,c.jpg", "b.jpg"),
        ("https://x/w_1,h_2/a.jpg 100w, https://x/w_5,h_2/a.jpg 500w", "https://x/w_5,h_2/a.jpg"),
        ("a,b.jpg 2x", "a,b.jpg"),
        (" , a.jpg , ", "a.jpg"),
        ("a.jpg 1.5x 20h, b.jpg 640w 480h", "b.jpg"),
        ("a.jpg 1x, b.jpg 1x", "a.jpg"),
        ("a.jpg 1e9w, b.jpg infx, c.jpg 2x", "c.jpg"),
        ("data:image/gif;base64,AAA= 1w, z.png 2w", "z.png"),
        (" ,, ", None),
        ("", None),
    ],
)
def test_srcset(srcset: str, url: str | None) -> None:
    assert [image.url for image in of_html(f'<img srcset="{srcset}">')] == [url]


@pytest.mark.parametrize("piece", ["a", ",", " ", "a ,", "a b", "a 1", "1", "1.", "a 1w, "])
def test_a_long_srcset_takes_no_quadratic_time(piece: str) -> None:
    list(parse_srcset("a " + piece * 200_000))  # minutes if it did: the time limit of a test


@pytest.mark.parametrize(
    "piece",
    ["<div>", "<img ", "<a ", "<!--", "<!-", "<", "</", "<a b=\"", "<img a='", "<script>", "<title><a>", "<b a=1>",
     "<i><p>", "<picture>", "<!", "x", "<source srcset='a 2x'>"],
)  # fmt: skip
def test_a_page_that_is_made_to_be_slow_is_not(piece: str) -> None:
    assert of_html("<img src=a>" + piece * 200_000)[0] == Image("a", None)


@pytest.mark.parametrize("piece", ["a=1 ", "a = ", " ", "=", "a ", "/", "a=' ' "])
def test_a_tag_that_is_made_to_be_slow_is_not(piece: str) -> None:
    assert of_html("<img src=a " + piece * 200_000 + ">")[0].url == "a"


html = st.recursive(
    st.text("ab<&\"'= \n").map(lambda text: text.replace("<", "< "))
    | st.sampled_from(["<!-- <img src=x> -->", "<!---->", "<!doctype html>", "<script>'<img src=y>'</script>", "<br/>",
                       "<title><img src=z></title>", "<style>a > b {}</style>", "<!-- > -- <img> --!>",
                       "<input alt='>'>"])
    | st.builds(
        lambda name, attributes, end: f"<{name}{''.join(attributes)}{end}",
        st.sampled_from(["img", "IMG", "Img", "imgx", "image-x", "img-x", "source", "base"]),
        st.lists(st.sampled_from([" src=a", " SRC='b c'", ' src="c>d"', " alt", " alt=''", " alt = \"x\ny\"", "/src=e",
                                  " data-x=<img", " alt=a/b", " alt='&amp;lt;'", "\nsrc=f", ' alt="<img src=q>"'])),
        st.sampled_from([">", " >", " />", "\n>"]),
    ),
    lambda inner: st.builds(
        lambda name, parts: f"<{name} title='<img src=t>'>{''.join(parts)}</{name}>",
        st.sampled_from(["div", "p", "picture", "noscript", "a", "span"]), st.lists(inner, max_size=4)),
    max_leaves=12,
)  # fmt: skip


@given(st.lists(html, max_size=5).map("".join))
@settings(deadline=None)
def test_the_tags_are_those_that_a_parser_finds(body: str) -> None:
    text = f"<!doctype html><body>{body}</body>"
    ours = [{n: unescape(v) for n, v in attributes.items()} for name, attributes in read_tags(text) if name == "img"]
    nodes = LexborHTMLParser(text).css("img")
    assert ours == [{n: v or "" for n, v in node.attributes.items()} for node in nodes]


@pytest.mark.parametrize(
    ("body", "mime", "text"),
    [
        ("<img alt='é'>".encode(), "text/html; charset=utf-8", "é"),
        ("<img alt='é'>".encode("latin-1"), 'text/html; charset="ISO-8859-1"', "é"),
        ("<img alt='“é”'>".encode("cp1252"), "text/html; charset=latin1", "“é”"),  # the web's latin1 is windows-1252
        ("<meta charset=shift_jis><img alt='猫'>".encode("shift_jis"), "text/html", "猫"),
        ('<meta http-equiv=x content="text/html; charset=gb2312"><img alt="猫">'.encode("gbk"), "text/html", "猫"),
        ("<img alt='é'>".encode("utf-8-sig"), "text/html; charset=latin1", "é"),
        ("<img alt='é'>".encode(), "text/html", "é"),
        ("<img alt='é'>".encode("latin-1"), "text/html; charset=nonsense", "é"),
        ("<img alt='é'>".encode("latin-1"), "text/html; charset=utf-8", "\ufffd"),
    ],
)
def test_charsets(body: bytes, mime: str, text: str) -> None:
    assert [image.text for image in of_html(body, mime)] == [text]


def test_pages_that_are_none() -> None:
    assert page.images_of(WarcRecord(URL, b"")) == UNREADABLE
    assert page.images_of(WarcRecord(URL, b"HTTP/1.1 200 OK\r\n\r\n" + gzip.compress(b"<img>"))) == UNREADABLE
    assert page.images_of(WarcRecord(URL, b"HTTP/1.1 200 OK\r\n\r\n<p>text")) == NO_IMAGE
    assert page.images_of(WarcRecord(URL, b"HTTP/1.1 200 OK\r\n\r\n<!-- <img src=a> -->")) == NO_IMAGE


@given(st.lists(st.one_of(st.binary(max_size=30), st.sampled_from(
    [b"<img ", b"src=", b"srcset='", b"data-src=x ", b"alt=", b"<picture>", b"<source srcset=", b"'", b">", b"</",
     b"<base href="]
))))  # fmt: skip
def test_any_bytes_are_read(parts: list[bytes]) -> None:
    of_html(b"".join(parts))
