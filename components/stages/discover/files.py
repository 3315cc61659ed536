"""The files of a dump that are extracted: all that Common Crawl lists, or a sample by seed."""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Sequence
from typing import Literal

from components.base.errors import PermanentError
from components.base.hashing import content_hash
from components.recipe.sources import BASE, INDEX
from components.stages.discover.dumps import DUMP, list_dumps
from components.storage.web import open_source

LATEST = "latest"
LIMIT = 64 << 20  # bytes of a list; the real ones have some 10 MB

# What a list that can't be read is; never some of its bytes, since its address may be anybody's
UNREADABLE: dict[type[Exception], str] = {
    EOFError: "a file that is cut off",
    UnicodeDecodeError: "no text",
    zlib.error: "a damaged file",
    OSError: "no gzip, or a damaged file",
}

Kind = Literal["wat", "warc"]


def find_dump(dump: str = LATEST, index: str = INDEX, allow_networks: Sequence[str] = ()) -> str:
    """Return the dump that a recipe names: `latest`, or an id, which needn't be in the index.

    Raises:
        PermanentError: no such id, or an index without dumps.
        TemporaryError: the index can't be reached.
    """
    if dump != LATEST:
        dump = dump.upper()  # in the names of a schedule's recipe it is in lower case
        if not DUMP.fullmatch(dump):
            raise PermanentError(f"dump {dump}: expected {LATEST}, or an id such as CC-MAIN-2026-43")
        return dump
    dumps = list_dumps(index, allow_networks)
    if not dumps:
        raise PermanentError(f"dumps {index}: lists none; give a dump's id instead of {LATEST}")
    return dumps[0]


def list_files(
    dump: str,
    kind: Kind = "wat",
    base: str = BASE,
    sample: int | None = None,
    seed: int = 0,
    allow_networks: Sequence[str] = (),
) -> list[str]:
    """List the paths of a dump's files below `base`, in the dump's order.

    Args:
        sample: Number of files; those with the lowest hash of (seed, path), so a larger sample contains a smaller one.

    Raises:
        PermanentError: there is no such list, or fewer files than the sample asks for.
        TemporaryError: it can't be reached.
    """
    path = f"crawl-data/{dump}/{kind}.paths.gz"
    data = open_source(base, allow_networks).read(path, 0, LIMIT + 1)
    try:
        text = "" if len(data) > LIMIT else gzip.GzipFile(fileobj=io.BytesIO(data)).read(LIMIT + 1).decode()
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        found = next(said for kind, said in UNREADABLE.items() if isinstance(error, kind))
        raise PermanentError(f"{base}/{path}: found {found}; expected gzipped lines, a path on each") from error
    if max(len(data), len(text)) > LIMIT:
        raise PermanentError(
            f"{base}/{path}: has more than {LIMIT:,} bytes unpacked, so it is no list of a dump's files"
        )
    files = list(dict.fromkeys(line.strip() for line in text.splitlines() if line.strip()))
    if not files:
        raise PermanentError(f"{base}/{path}: lists no file")
    if sample is None:
        return files
    if not 1 <= sample <= len(files):
        raise PermanentError(f"{base}/{path}: a sample of {sample} files was asked for, the dump has {len(files)}")
    chosen = set(sorted(files, key=lambda file: content_hash([seed, file]))[:sample])
    return [file for file in files if file in chosen]
