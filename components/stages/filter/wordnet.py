"""The first meaning of a word, from WordNet's own files: https://wordnet.princeton.edu/documentation/wndb5wn.

Words are brought to their base form as nltk 3.8.1 does it, which DataComp pins: the word itself and its irregular
forms, else WordNet's rules of detachment, round after round until a round finds something.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

from components.base.errors import PermanentError

VERSION = "WordNet 3.0 Copyright"  # ImageNet's ids are offsets in this version's files
RULES = {  # https://wordnet.princeton.edu/documentation/morphy7wn, in nltk's order: the first part of speech wins
    "noun": "s: ses:s ves:f xes:x zes:z ches:ch shes:sh men:man ies:y",
    "verb": "s: ies:y es:e es: ed:e ed: ing:e ing:",
    "adj": "er: est: er:e est:e",
    "adv": "",
}
REMEMBERED = 1 << 16  # words; the vocabulary of alt texts has a long tail


class WordNet:
    """Reads index.{noun,verb,adj,adv} and {noun,verb,adj,adv}.exc."""

    def __init__(self, folder: str) -> None:
        """Read the files. Raises PermanentError if a file is missing or of another version."""
        self.first: dict[str, dict[str, int]] = {}
        self.irregular: dict[str, dict[str, list[str]]] = {}
        self.rules = {part: [rule.split(":") for rule in rules.split()] for part, rules in RULES.items()}
        for part in RULES:
            self.first[part] = dict(_index(Path(folder).expanduser() / f"index.{part}"))
            lines = _lines(Path(folder).expanduser() / f"{part}.exc")
            self.irregular[part] = {form: lemmas for form, *lemmas in map(str.split, lines) if lemmas}

    def first_synset(self, word: str) -> int | None:
        """Return the offset of the most frequent meaning, of the first part of speech in RULES that has the word."""
        for part, first in self.first.items():
            lemma = self._lemma(word.lower(), part)
            if lemma is not None:
                return first[lemma]
        return None

    def _lemma(self, word: str, part: str) -> str | None:
        irregular = self.irregular[part].get(word)
        forms = self._detached([word], part) if irregular is None else irregular
        found = self._known([word, *forms], part)
        while found is None and irregular is None and forms:
            forms = self._detached(forms, part)
            found = self._known(forms, part)
        return found

    def _detached(self, forms: list[str], part: str) -> list[str]:
        rules = self.rules[part]
        return list(dict.fromkeys(f.removesuffix(old) + new for f in forms for old, new in rules if f.endswith(old)))

    def _known(self, forms: list[str], part: str) -> str | None:
        return next((form for form in forms if form in self.first[part]), None)


class Entities:
    """Tests whether a text names a class: the first synset of one of its words is among these ids.

    As DataComp does, only the offsets are compared: the part of speech, the `n` of every id, is not.
    """

    def __init__(self, wordnet: str, wnids: str) -> None:
        """Read the ids from `wnids`, one a line, such as n02084071. Raises PermanentError for another line."""
        self.wordnet, self.offsets = WordNet(wordnet), set[int]()
        for line in map(str.strip, _lines(Path(wnids).expanduser())):
            if line[:1] != "n" or not line[1:].isdecimal():
                raise PermanentError(f"filter: {wnids}: found {line[:40]!r}, expected an id a line, such as n02084071")
            self.offsets.add(int(line[1:]))
        if not self.offsets:
            raise PermanentError(f"filter: {wnids}: is empty, expected an id a line, such as n02084071")
        self.is_entity = lru_cache(REMEMBERED)(lambda word: self.wordnet.first_synset(word) in self.offsets)

    def __call__(self, text: str) -> bool:
        return any(map(self.is_entity, text.split()))


def _index(path: Path) -> Iterator[tuple[str, int]]:
    """Yield (lemma, offset of its first synset): `lemma pos n … offset×n` a line, the license's begin with a space."""
    lines = _lines(path)
    if not any(VERSION in line for line in lines[:40]):
        raise PermanentError(f"filter: {path} is not of WordNet 3.0, whose offsets ImageNet's ids are")
    for line in lines:
        if not line.startswith(" "):
            fields = line.split()
            yield fields[0], int(fields[-int(fields[2])])


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise PermanentError(f"filter: {path}: {getattr(error, 'strerror', None) or error}") from error
