"""Code blocks of README.md and docs/: recipes, commands and Python, each with the place where it stands."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from components.recipe.yaml_io import read_yaml
from pipelines.pages.parts import ROOT, pages

OURS = ("Recaption", "RecaptionSchedule")
BLOCK = re.compile(r"^( *)```(\w+)[^\n]*\n(.*?)^\1```$", re.DOTALL | re.MULTILINE)
ENDS = {"|", "||", "&&", "&", ";", ">", "(", ")"}


@dataclass(frozen=True)
class Block:
    """A fenced block of code."""

    page: Path
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks(*languages: str) -> list[Block]:
    """Return the blocks in these languages, of all pages or in the order of a page."""
    return [block for page in pages() for block in blocks_of(page) if block.language in languages]


def blocks_of(page: Path) -> Iterator[Block]:
    """Yield a page's blocks in order."""
    text = page.read_text(encoding="utf-8")
    for found in BLOCK.finditer(text):
        yield Block(page, text.count("\n", 0, found.start()) + 1, found[2], found[3])


def objects() -> Iterator[tuple[Block, dict[str, Any]]]:
    """Yield every object of the YAML blocks; a part of a recipe's spec comes as a whole recipe around it."""
    for block in blocks("yaml"):
        for document in block.text.split("\n---\n"):
            value = read_yaml(document, str(block))
            yield block, value if "kind" in value else around(value)


def recipes() -> Iterator[tuple[Block, dict[str, Any]]]:
    """Yield the Recaptions and RecaptionSchedules of the YAML blocks."""
    for block, value in objects():
        if value["kind"] in OURS:
            yield block, value


def around(part: dict[str, Any]) -> dict[str, Any]:
    """Return a recipe with this part of its spec."""
    base = {
        "storage": "/data/recaption",
        "pool": {"name": "pool", "shards": "/data/pool/shards"},
        "mixtures": [{"name": "raw", "rules": [{"text": "raw"}]}],
    }
    metadata = {"name": "part"}
    return {"apiVersion": "recaption.dev/v1alpha1", "kind": "Recaption", "metadata": metadata, "spec": {**base, **part}}


def commands(block: Block) -> Iterator[list[str]]:
    """Yield the commands of a shell block, each as its words, up to a pipe; of a console block those after `$`."""
    for line in block.text.replace("\\\n", " ").splitlines():
        if block.language == "console":
            if not line.startswith("$ "):
                continue
            line = line[2:]
        lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        words = list(lexer)
        while words:
            end = next((i for i, word in enumerate(words) if word in ENDS), len(words))
            first = next((i for i, word in enumerate(words[:end]) if not re.match(r"\w+=", word)), end)
            if words[first:end]:
                yield words[first:end]
            words = words[end + 1 :]
