"""Files that look like shards or tables and are not read: counted and named, so that nothing is lost in silence."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable

from components.base.printable import printable
from components.base.unread import leave_unread
from components.recipe.sources import is_hidden

LIKE_SHARDS = re.compile(r"\.(tar\.\w{1,5}|tgz|tbz2?|txz|tzst)$", re.IGNORECASE)
LIKE_TABLES = re.compile(
    r"\.((parquet|parq|csv|tsv)\.(?!gz$)\w{1,5}|(parquet|parq)\.gz|(jsonl|ndjson|arrow|feather|orc|avro)(\.\w{1,5})?)$",
    re.IGNORECASE,
)


def say_unread(place: str, paths: Iterable[str], like: re.Pattern[str], what: str, advice: str) -> str:
    """Return a sentence on the files that look like shards or tables and are not read; empty where there are none.

    They are counted for the report of the run that is being planned.

    Args:
        place: address of the folder.
        paths: of all files of a folder, hidden ones as well.
        like: LIKE_SHARDS or LIKE_TABLES.
        what: a word for one of them.
    """
    found = sorted((path, end[0].lower()) for path in paths if not is_hidden(path) and (end := like.search(path)))
    if not found:
        return ""
    for kind in sorted({end for _, end in found}):
        leave_unread(place, f"looks like a {what}: {kind}", [path for path, end in found if end == kind])
    kinds = ", ".join(f"{end} {count}" for end, count in sorted(Counter(end for _, end in found).items()))
    files = f"1 file looks like a {what} and is" if len(found) == 1 else f"{len(found)} files look like {what}s and are"
    return f"{files} not read: {kinds}; the first is {printable(found[0][0], 200)}; {advice}"
