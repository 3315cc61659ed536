"""URL resolution against urljoin and RFC 3986, and what is dropped for which reason."""

from __future__ import annotations

import hashlib
from urllib.parse import urljoin

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from components.stages.extract import text_rules
from components.stages.extract.text_rules import Image, Page, candidate, clean_text, resolve, uid_of

PAGE = Page("https://site.example/blog/post.html?x=1")

# RFC 3986, 5.4: base http://a/b/c/d;p?q; fragments are dropped here, and what stays in the page is itself
RFC_3986 = {
    "g": "http://a/b/c/g", "./g": "http://a/b/c/g", "g/": "http://a/b/c/g/", "/g": "http://a/g", "//g": "http://g",
    "?y": "http://a/b/c/d;p?y", "g?y": "http://a/b/c/g?y", "g#s": "http://a/b/c/g", "g?y#s": "http://a/b/c/g?y",
    ";x": "http://a/b/c/;x", "g;x": "http://a/b/c/g;x", "g;x?y#s": "http://a/b/c/g;x?y", ".": "http://a/b/c/",
    "./": "http://a/b/c/", "..": "http://a/b/", "../": "http://a/b/", "../g": "http://a/b/g", "../..": "http://a/",
    "../../": "http://a/", "../../g": "http://a/g", "../../../g": "http://a/g", "/./g": "http://a/g",
    "/../g": "http://a/g", "g.": "http://a/b/c/g.", "..g": "http://a/b/c/..g", "./../g": "http://a/b/g",
    "./g/.": "http://a/b/c/g/", "g/./h": "http://a/b/c/g/h", "g/../h": "http://a/b/c/h",
}  # fmt: skip


@pytest.mark.parametrize(("url", "expected"), RFC_3986.items())
def test_rfc_3986(url: str, expected: str) -> None:
    assert resolve(Page("http://a/b/c/d;p?q"), url) == expected


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("https://cdn.example/a b.jpg", "https://cdn.example/a b.jpg"),
        ("HTTPS://CDN.example/A.jpg", "https://CDN.example/A.jpg"),
        ("HTTP://cdn.example/A.jpg", "http://cdn.example/A.jpg"),
        ("//cdn.example/a.jpg", "https://cdn.example/a.jpg"),
        (" \n/a.jpg\t", "https://site.example/a.jpg"),
        ("/a\n.jpg", "https://site.example/a.jpg"),
        ("images\\a.jpg", "https://site.example/blog/images/a.jpg"),
        ("\\\\cdn.example\\a.jpg", "https://cdn.example/a.jpg"),
        ("/a.jpg?p=x\\y", "https://site.example/a.jpg?p=x\\y"),
        ("/a.php?w=1&amp;h=2", "https://site.example/a.php?w=1&h=2"),
        ("/a.php?w=1&copy=2&lt=3", "https://site.example/a.php?w=1&copy=2&lt=3"),
        ("/übersicht/bär.jpg", "https://site.example/übersicht/bär.jpg"),
        ("https://cdn.example/a.jpg#top", "https://cdn.example/a.jpg"),
        ("", text_rules.NO_URL),
        ("  ", text_rules.NO_URL),
        ("#top", text_rules.NO_URL),
        ("data:image/gif;base64,R0lGODlhAQABAAAAACw=", text_rules.DATA_URI),
        ("DATA:image/png,x", text_rules.DATA_URI),
        ("blob:https://site.example/1", text_rules.OTHER_SCHEME),
        ("file:///C:/a.jpg", text_rules.OTHER_SCHEME),
        ("javascript:void(0)", text_rules.OTHER_SCHEME),
        ("c:\\a.jpg", text_rules.OTHER_SCHEME),
        ("http:///a.jpg", text_rules.BAD_URL),
        ("https://", text_rules.BAD_URL),
        ("http://[::1/a.jpg", "http://[::1/a.jpg"),  # absolute ones stay as they are: the downloader refuses it
        ("//[::1/a.jpg", text_rules.BAD_URL),
        ("/a\ufffd.jpg", text_rules.BAD_URL),
        ("/" + "a" * text_rules.MOST_URL, text_rules.LONG_URL),
    ],
)
def test_urls(url: str, expected: str) -> None:
    assert resolve(PAGE, url) == expected


@pytest.mark.parametrize(
    ("base", "expected"),
    [
        (None, "https://site.example/blog/a.jpg"),
        ("https://cdn.example/x/y", "https://cdn.example/x/a.jpg"),
        ("/root/", "https://site.example/root/a.jpg"),
        (" ../ ", "https://site.example/a.jpg"),
        ("//cdn.example/", "https://cdn.example/a.jpg"),
        ("", "https://site.example/blog/a.jpg"),
        ("about:blank", "https://site.example/blog/a.jpg"),
        ("http://[broken", "https://site.example/blog/a.jpg"),
    ],
)
def test_the_base_of_a_page(base: str | None, expected: str) -> None:
    assert resolve(Page(PAGE.url, base), "a.jpg") == expected


segments = st.text("ab.:@!$,=~-_%20é", max_size=4)
relative = st.builds(
    lambda start, parts, query: start + "/".join(parts) + query,
    st.sampled_from(["", "/", "./", "../", "//h.example/", "../../", "?"]),
    st.lists(st.one_of(segments, st.sampled_from([".", "..", "..."])), max_size=5),
    st.sampled_from(["", "?q", "?a=/../b", "?a=b?c", "?."]),
)
bases = st.sampled_from(
    ["https://h.example", "http://h.example/a/b/c?d=e/f", "https://u@h.example:8080/a/../b/", "http://h/a;b/c;d#e/f"]
)


@given(bases, relative)
def test_relative_urls_are_joined_as_urljoin_does(base: str, url: str) -> None:
    ours = resolve(Page(base), url)
    assume(ours.startswith("http"))
    assert ours == urljoin(base, url)


LONG = "x" * 5000


@pytest.mark.parametrize(
    ("base", "url", "expected"),
    [
        (f"http://h/{LONG}/", "a.jpg", text_rules.LONG_URL),
        (f"http://h/{LONG}/", "/a.jpg", "http://h/a.jpg"),
        (f"http://h/{LONG}/", "//other/a.jpg", "http://other/a.jpg"),
        (f"http://h/b/{LONG}", "a.jpg", "http://h/b/a.jpg"),
        (f"http://h/b?{LONG}/", "a.jpg", "http://h/a.jpg"),
        (f"http://h?{LONG}/", "a.jpg", "http://h/a.jpg"),
        (f"http://{LONG}/", "/a.jpg", text_rules.LONG_URL),
    ],
)
def test_a_long_base(base: str, url: str, expected: str) -> None:
    assert resolve(Page("https://h.example/", base), url) == expected


def test_a_long_base_is_not_read_again_for_every_image(monkeypatch: pytest.MonkeyPatch) -> None:
    """A page of 5 MiB took three hours."""
    joined: list[str] = []
    monkeypatch.setattr(text_rules, "urljoin", lambda base, url: joined.append(base) or urljoin(base, url))
    page = Page("https://h.example/", f"http://h/{'a/' * 32_000}")
    assert {resolve(page, f"{i}.jpg") for i in range(100)} == {text_rules.LONG_URL}
    assert sum(map(len, joined)) < 1000


@given(st.text(), st.text(), st.text())
def test_every_url_is_absolute_or_has_a_reason(url: str, base: str, page: str) -> None:
    found = resolve(Page("https://h.example/" + page, base), url)
    reasons = {text_rules.NO_URL, text_rules.DATA_URI, text_rules.BAD_URL, text_rules.OTHER_SCHEME, text_rules.LONG_URL}
    assert found in reasons or found.startswith(("http://", "https://"))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Tom &amp; Jerry", "Tom & Jerry"),
        ("&#8220;x&#x201d; &eacute;", "“x” é"),
        ("a&ampb AT&T; &nosuch;", "a&ampb AT&T; &nosuch;"),
        ("  two\n\tlines  here ", "two lines here"),
        ("nul\x00led\x1b", "nul led"),
        ("no\u00a0break", "no break"),
        ("&nbsp;", ""),
        ("Ã¼ber", "Ã¼ber"),
        ("brok\ufffden", "brok\ufffden"),
        ("👩\u200d🚀", "👩\u200d🚀"),
    ],
)
def test_texts(text: str, expected: str) -> None:
    assert clean_text(text) == expected


@given(st.text())
def test_a_cleaned_text_has_one_form(text: str) -> None:
    found = clean_text(text)
    assert found == " ".join(found.split())
    assert not any(c < " " for c in found)


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (Image("/a.jpg", "a cat"), ("https://site.example/a.jpg", "a cat")),
        (Image("/a.jpg", None), text_rules.NO_TEXT),
        (Image("/a.jpg", " \n"), text_rules.NO_TEXT),
        (Image(None, "a cat"), text_rules.NO_URL),
        (Image("/a.gif", "a cat", pixel=True), text_rules.PIXEL),
        (Image("/a.jpg", "x" * text_rules.MOST_TEXT), ("https://site.example/a.jpg", "x" * text_rules.MOST_TEXT)),
        (Image("/a.jpg", "x" * (text_rules.MOST_TEXT + 1)), text_rules.LONG_TEXT),
    ],
)
def test_candidates(image: Image, expected: tuple[str, str] | str) -> None:
    assert candidate(PAGE, image) == expected


def test_the_uid_is_that_of_cc2dataset() -> None:
    url, text = "https://cdn.example/a.jpg", "a cat"
    assert uid_of(url, text).hex() == hashlib.md5((text + url).encode()).hexdigest()
