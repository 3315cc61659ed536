"""The one hash that names results, and what of a model goes into it.

A result's name is made from what differs from the defaults. So a default never changes its value, and an option that a
later version adds changes no name.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

from pydantic import BaseModel


def content_hash(value: object) -> str:
    """Return 12 hex digits of the SHA-256 of a JSON value: what names columns, mixtures, data sets and models.

    A pydantic model in it stands for what it says, as `said` has it.
    """
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, default=said)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def said(model: BaseModel, *without: str) -> dict[str, Any]:
    """Return what differs from the defaults in a model, as JSON by the names of the YAML; some keys left out."""
    return model.model_dump(mode="json", by_alias=True, exclude_defaults=True, exclude=set(without))
