"""The checks that every text passes before it is used: an image's own, and one that was made elsewhere."""

from __future__ import annotations

MAX_TEXT = 8192  # bytes; CLIP reads 77 tokens, so more is a scraped page and not an alt text
OVER, NOT_UTF_8, EMPTY = f"over {MAX_TEXT} bytes", "not UTF-8", "none"


def clean_text(given: str | bytes) -> tuple[str | None, str | None]:
    """Return a text as it is used and None, or None and why it can't be.

    Left out are zero bytes, a mark of byte order and white space around the text.
    """
    if len(given) > MAX_TEXT:
        return None, OVER
    try:
        data = given.encode() if isinstance(given, str) else given
        text = data.decode()
    except UnicodeError:  # also half of a surrogate pair, which JSON can say
        return None, NOT_UTF_8
    if len(data) > MAX_TEXT:
        return None, OVER
    text = text.replace("\0", "").strip().removeprefix("\ufeff").strip()
    return (text, None) if text else (None, EMPTY)
