"""The one hash that names results."""

from __future__ import annotations

import hashlib
import json


def content_hash(value: object) -> str:
    """Return 12 hex digits of the SHA-256 of a JSON value: what names columns, mixtures, data sets and models."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:12]
