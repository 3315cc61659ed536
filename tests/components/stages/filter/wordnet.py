"""A WordNet of a few words, in its own files' format; lemmas and offsets as in WordNet 3.0 where it has them."""

from __future__ import annotations

from pathlib import Path

LICENSE = "  1 This software and database is being provided to you\n  2 WordNet {version} Copyright 2006\n"
INDEX = {
    "noun": ["dog n 2 1 @ 2 1 02084071 10114209", "wolf n 1 2 @ ~ 1 1 02114100", "church n 1 1 @ 1 0 08081668",
             "run n 1 1 @ 1 1 00556313", "bus n 1 1 @ 1 1 02924116", "kiss n 1 1 @ 1 0 00139919"],
    "verb": ["run v 1 1 @ 1 1 01926311", "walk v 1 1 @ 1 1 01904930", "bake v 1 0 1 1 00319886"],
    "adj": ["red a 1 1 & 1 1 00381097"],
    "adv": ["fast r 1 0 1 1 00086000"],
}  # fmt: skip
IRREGULAR = {"noun": ["wolves wolf"], "verb": ["ran run"], "adj": [], "adv": []}


def write_wordnet(folder: Path, version: str = "3.0") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for part, lines in INDEX.items():
        head = LICENSE.format(version=version)
        (folder / f"index.{part}").write_text(head + "".join(f"{line}  \n" for line in lines))
        (folder / f"{part}.exc").write_text("".join(f"{line}\n" for line in IRREGULAR[part]))
    return folder
