"""JSON files that are small where recaption wrote them: whoever else writes there can't fill a reader's memory."""

from __future__ import annotations

import json
from typing import Any

from components.base.errors import PermanentError
from components.storage.interface import Storage

MOST = 1 << 20
"""Bytes: a status.json of 300 stages, each with twenty reasons, has half of them. As Python's objects they may take
fifty times as much."""


def read_small_json(storage: Storage, path: str, most: int = MOST) -> Any:
    """Read a JSON file of at most so many bytes; None if there is none.

    Raises:
        PermanentError: the file is larger.
        ValueError: the file is no JSON.
    """
    size = storage.size(path)
    return None if size is None else parse_small_json(storage.read(path, 0, most + 1), f"{storage.uri}/{path}", most)


def parse_small_json(data: bytes, where: str, most: int) -> Any:
    """Parse the JSON of a file that was read up to one byte more than it may have. Raises like read_small_json."""
    if len(data) > most:
        raise PermanentError(
            f"{where}: found more than {most:,} bytes; recaption writes fewer there: delete it, and see what else "
            "writes to this storage"
        )
    try:
        return json.loads(data)
    except RecursionError as error:
        raise ValueError("brackets in brackets, hundreds deep") from error
