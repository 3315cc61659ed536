"""The identity of a sample: 32 hexadecimal digits, as in DataComp."""

import hashlib
import re

_HEX = re.compile(r"[0-9a-fA-F]{32}")


def canonical_uid(value: str) -> str:
    """Return DataComp's uid in lower case; for any other identity its MD5, so that both sides of a join agree."""
    if _HEX.fullmatch(value):
        return value.lower()
    return hashlib.md5(value.encode("utf-8", "surrogatepass"), usedforsecurity=False).hexdigest()
