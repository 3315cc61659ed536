"""The identity of a sample: 32 hexadecimal digits, as in DataComp."""

from __future__ import annotations

import hashlib
import math
import re
from decimal import Decimal
from uuid import UUID

import pyarrow as pa
import pyarrow.compute as pc

_DIGITS = re.compile(r"[0-9a-f]{32}|[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
_NUMBER = re.compile(r"[1-9][0-9]{19,38}")
_ALL_HEX, _ALL_DASHED = r"\A[0-9a-fA-F]{32}\z", r"\A[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}\z"
_BYTES = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view, pa.types.is_fixed_size_binary)
_TEXTS = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)


def is_uid(value: object) -> bool:
    """Return whether a value names a sample: text that isn't blank, a whole number, a UUID, or bytes."""
    if isinstance(value, str | bytes):
        return bool(value.strip())
    if isinstance(value, float | Decimal):
        return math.isfinite(value) and value == int(value)
    return isinstance(value, int | UUID) and not isinstance(value, bool)


def canonical_uid(value: object) -> str:
    """Return the one form that an identity has here, so that both sides of a join agree.

    A UUID is its 32 digits in lower case, whether it comes with dashes, braces or capitals, as 16 bytes, or as a number
    from 2⁶⁴ on. Any other identity is the MD5 of its text; a number's text are its decimal digits.

    Args:
        value: one that `is_uid`.
    """
    if isinstance(value, UUID):
        return value.hex
    if isinstance(value, bytes):
        text = value.decode("utf-8", "surrogateescape")
        if len(value) == 16 and not text.isprintable():
            return value.hex()
    else:
        text = str(int(value) if isinstance(value, float | Decimal) else value)
    bare = text.strip().lower().removeprefix("urn:uuid:")
    bare = bare[1:-1] if bare.startswith("{") and bare.endswith("}") else bare
    if _DIGITS.fullmatch(bare):
        return bare.replace("-", "")
    if _NUMBER.fullmatch(bare) and 1 << 64 <= int(bare) < 1 << 128:
        return f"{int(bare):032x}"
    return hashlib.md5(text.encode("utf-8", "surrogatepass"), usedforsecurity=False).hexdigest()


def canonical_uids(column: pa.Array) -> pa.Array:
    """Return a column of a table as canonical uids; null where there is no uid.

    Raises:
        ValueError: its type can't hold uids.
    """
    if isinstance(column, pa.ExtensionArray):
        column = column.storage
    kind = column.type
    if pa.types.is_dictionary(kind):
        return canonical_uids(column.dictionary).take(column.indices)
    if pa.types.is_null(kind):
        return column.cast(pa.string())
    if not (any(is_a(kind) for is_a in (*_TEXTS, *_BYTES)) or pa.types.is_integer(kind) or pa.types.is_decimal(kind)):
        raise ValueError(f"uid has dtype {kind}, expected text, a whole number or bytes")
    if any(is_a(kind) for is_a in _TEXTS):
        column = column.cast(pa.binary())  # nobody has checked that it is UTF-8
    found = _at_once(column)
    if found is not None:
        return found
    return pa.array([canonical_uid(v) if is_uid(v) else None for v in column.to_pylist()], pa.string())


def _at_once(column: pa.Array) -> pa.Array | None:
    """Return a column of nothing but UUIDs as text, in one go; None if it is something else."""
    try:
        texts = column.cast(pa.string())
    except pa.ArrowException:
        return None
    if _all_match(texts, _ALL_HEX):
        return pc.ascii_lower(texts)
    return pc.ascii_lower(pc.replace_substring(texts, "-", "")) if _all_match(texts, _ALL_DASHED) else None


def _all_match(texts: pa.Array, pattern: str) -> bool:
    return pc.all(pc.match_substring_regex(texts, pattern)).as_py() is not False
