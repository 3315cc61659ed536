"""Counts the docstrings of functions that open with a fragment ("Of...", "Whether...", "The...") instead of a verb.

`python -m tests.lint.docstrings [FOLDER ...]` fails where they are 3 % or more of a repository's docstrings. A property
may open with the name of what it is; a class is a noun phrase and isn't looked at. ruff's D401 is no substitute: it
passes "Of", "Whether", "One", "How", "(B, 3) float32" and every noun, and it knows no share, so one exception fails it.
"""

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

FOLDERS = ["components", "pipelines"]
MOST = 0.03  # kopf and datatrove have 1 %
PROPERTIES = {"property", "cached_property", "setter"}
NOUN_PHRASES = {"a", "all", "an", "each", "every", "metadata", "number", "one", "the", "whether"}  # a property's
VERBS = {"Embed", "Focus", "Shed"}

# No verb begins like this: words that join, point, ask or count, and the nouns that a description starts with.
_WORDS = """
    a about above after again all also alternatively always an and another any anew around as at because before below
    between both but by can could does down during each either else empty enough entry even every everybody everyone
    everything exact exactly few false finished for from half he here his how i if in inside into is it its less made
    many may maybe me mean metadata might more most must my name's neither never new newest next no nobody none nor
    not nothing number of off offset often old on once one only or other our out over part per plain possible quick
    same second several shall she should since so some somebody someone something sometimes standard such than that
    the their them then there these they this those though three through to two under unless unsigned until up upon
    us very was we were what whatever when whenever where wherever whether which whichever while who whoever whole
    whom whose why will with within without would yes you your zero"""
NO_VERBS = frozenset(_WORDS.split())


class Docstring(NamedTuple):
    """Where a function's docstring stands, and its first line."""

    path: Path
    line: int
    opening: str
    of_property: bool


def read_docstrings(path: Path) -> Iterator[Docstring]:
    """Yield the docstrings of the functions of a Python file, private and nested ones too."""
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and (text := ast.get_docstring(node)):
            decorators = {ast.unparse(decorator).split("(")[0].split(".")[-1] for decorator in node.decorator_list}
            yield Docstring(path, node.body[0].lineno, text.splitlines()[0], bool(decorators & PROPERTIES))


def is_fragment(docstring: Docstring) -> bool:
    """Return whether a docstring opens with something else than a verb in the imperative, as far as spelling tells."""
    word = docstring.opening.split()[0].rstrip(".,:;")
    if docstring.of_property:
        return word == "Raises" or word.lower() in NO_VERBS - NOUN_PHRASES
    inflected = re.search(r"[^s]s$|[^e]ed$", word) and word not in VERBS  # "Raises", "Seconds", "Decoded"
    return not re.fullmatch(r"[A-Z][a-z]+(-[a-z]+)*", word) or word.lower() in NO_VERBS or bool(inflected)


def main(folders: list[str]) -> str | None:
    """Print each fragment and their share; return the error, if there is one."""
    found = [d for folder in folders for path in sorted(Path(folder).rglob("*.py")) for d in read_docstrings(path)]
    fragments = [docstring for docstring in found if is_fragment(docstring)]
    for docstring in fragments:
        print(f"{docstring.path}:{docstring.line}: {docstring.opening}")
    share = len(fragments) / max(len(found), 1)
    print(f"{len(fragments)} of {len(found)} docstrings of functions open with a fragment: {share:.1%}")
    return f"at most {MOST:.0%} may; open with a verb and name the noun: 'Return the...'" if share >= MOST else None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:] or FOLDERS))
