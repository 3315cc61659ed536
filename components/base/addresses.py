"""Addresses of storages: a folder, gs://bucket/path or s3://bucket/path."""

from __future__ import annotations

import re

_LOGIN = re.compile(r"(?<=://)[^/?#\s]*@")


def parse_address(uri: str) -> tuple[str, str]:
    """Return the scheme (file for a folder) and what comes after it. Raises ValueError, which says what is wrong."""
    scheme, found, place = uri.partition("://")
    if not found and uri.startswith(("gs:", "s3:")):
        raise ValueError(f"expected {uri[:2]}://bucket/path")
    if not found:
        return "file", uri
    if scheme not in ("file", "gs", "s3"):
        raise ValueError(f"scheme {scheme}:// is not supported; give a folder, gs://bucket/path or s3://bucket/path")
    if scheme != "file" and (not place or place.startswith("/")):
        raise ValueError(f"has no bucket; give {scheme}://bucket/path")
    return scheme, place


def without_login(text: str) -> str:
    """Return a text without the user and the password of any address in it: https://user:password@host."""
    return _LOGIN.sub("", text)
