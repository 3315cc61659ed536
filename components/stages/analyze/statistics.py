"""Statistics of a set of captions, chunk by chunk in bounded memory.

Whatever the number of captions, they take about 600 MB at most: of the trigrams, at most SAMPLED and KEPT hashes of
8 bytes are kept, three times as much while they are made unique.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from components.selection.rules import Scores

WORDS = 60  # longest caption with a bin of its own; the last bin holds the longer ones
BINS, LOW, HIGH = 100, -1.0, 1.0  # of the cosine histogram: 0.02 wide
SAMPLE = 1_000_000  # captions whose trigrams are counted, as in the paper's Table 1
SAMPLED = 1 << 24  # hashes kept of the sample's trigrams; a million captions of the web have 7 million
KEPT = 1 << 20  # hashes kept of all captions' trigrams: standard error 0.1 %, exact where there are fewer
MERGE = 1 << 22  # trigrams collected before they are made unique again: 32 MB
WORDS_KNOWN, LONGEST_KNOWN = 1 << 18, 64  # words whose hash is remembered, about 50 MB, and letters of the longest
FACTORS = [np.uint64(f) for f in (0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9)]  # odd, of no other use
_WORD = re.compile(r"[\w']+")


class _Hashes(dict[str, int]):
    """Hashes of words, 64 bits each; of a million distinct words two have one hash with a probability of 3e-8."""

    def __missing__(self, word: str) -> int:
        value = int.from_bytes(hashlib.blake2b(word.encode("utf-8", "surrogatepass"), digest_size=8).digest())
        if len(word) <= LONGEST_KNOWN:
            self[word] = value
        return value


@dataclass
class Distinct:
    """Counts distinct hashes by keeping the `kept` smallest, which tell how many there are."""

    kept: int
    hashes: NDArray[np.uint64] = field(default_factory=lambda: np.zeros(0, np.uint64))
    _fresh: list[NDArray[np.uint64]] = field(default_factory=list)
    _waiting: int = 0
    _more: bool = False
    """Whether hashes were left out."""

    def add(self, hashes: NDArray[np.uint64]) -> None:
        """Count more hashes, which must be spread evenly over all numbers of 64 bits."""
        if self._more:
            hashes = hashes[hashes < self.hashes[-1]]
        self._fresh.append(hashes)
        self._waiting += len(hashes)
        if self._waiting > MERGE:
            self._merge()

    def count(self) -> tuple[int, float]:
        """Return how many distinct hashes there were, and the number's relative standard error: 0 where it is exact."""
        self._merge()
        if not self._more:
            return len(self.hashes), 0.0
        share = (int(self.hashes[-1]) + 1) / 2**64  # of all numbers, in which `kept` distinct hashes lie
        return round((self.kept - 1) / share), (self.kept - 2) ** -0.5

    def _merge(self) -> None:
        found = np.sort(np.concatenate([self.hashes, *self._fresh]))
        found = found[np.diff(found, prepend=found[:1] ^ 1) != 0]  # np.unique would take seven times as long
        self._more = self._more or len(found) > self.kept
        self.hashes, self._fresh, self._waiting = found[: self.kept].copy(), [], 0


@dataclass
class Statistics:
    """Statistics of `expected` captions; a word is a run of letters, digits and apostrophes, lower-cased."""

    expected: int
    captions: int = 0
    missing: int = 0
    lengths: NDArray[np.int64] = field(default_factory=lambda: np.zeros(WORDS + 1, np.int64))
    words: int = 0
    scored: int = 0
    cosine_sum: float = 0.0
    cosines: NDArray[np.int64] = field(default_factory=lambda: np.zeros(BINS, np.int64))
    sampled: int = 0
    trigrams: Distinct = field(default_factory=lambda: Distinct(SAMPLED))
    """Of the sample: Table 1's."""
    diversity: Distinct = field(default_factory=lambda: Distinct(KEPT))
    """Of all captions, where they are more than the sample: Figure 5's. The paper takes a random part of each training
    set there, which grows with it, and doesn't say how large a part."""
    _hashes: _Hashes = field(default_factory=_Hashes)

    def add(self, uids: pa.Array, texts: pa.Array, cosines: Scores) -> None:
        """Count more captions; a null text is counted as missing, a NaN cosine as not scored."""
        there = texts.is_valid()
        self.missing += texts.null_count
        words = [_WORD.findall(text.lower()) for text in texts.filter(there).to_pylist()]
        self._add(uids.filter(there), words)
        scored = cosines[np.isfinite(cosines)]
        self.scored += len(scored)
        self.cosine_sum += float(scored.sum(dtype=np.float64))
        self.cosines += np.histogram(np.clip(scored.astype(np.float64), LOW, HIGH), BINS, (LOW, HIGH))[0]

    def _add(self, uids: pa.Array, words: list[list[str]]) -> None:
        counts = np.fromiter(map(len, words), np.int64, len(words))
        self.captions += len(words)
        self.words += int(counts.sum())
        self.lengths += np.bincount(np.minimum(counts, WORDS), minlength=WORDS + 1)
        sampled = self._in_sample(uids)
        self.sampled += int(sampled.sum())
        hashes = np.fromiter(map(self._hashes.__getitem__, chain.from_iterable(words)), np.uint64, int(counts.sum()))
        if len(self._hashes) > WORDS_KNOWN:
            self._hashes.clear()
        captions = np.repeat(np.arange(len(words)), counts)
        whole = captions[2:] == captions[:-2]  # the three words are of one caption
        first, second, third = (hashes[i : len(hashes) - 2 + i] * factor for i, factor in enumerate(FACTORS))
        trigrams = (first ^ second ^ third)[whole]
        self.trigrams.add(trigrams[sampled[captions[:-2][whole]]])
        if not self._takes_all:
            self.diversity.add(trigrams)

    @property
    def _takes_all(self) -> bool:
        """Whether the sample is all captions."""
        return self.expected <= SAMPLE

    def _in_sample(self, uids: pa.Array) -> NDArray[np.bool_]:
        """Return which captions are in the sample: about SAMPLE of the expected ones, the same for every counter."""
        if self._takes_all:
            return np.ones(len(uids), bool)
        digests = (hashlib.blake2b(uid.encode(), digest_size=8).digest() for uid in uids.to_pylist())
        chosen = (int.from_bytes(digest) * self.expected < SAMPLE << 64 for digest in digests)
        return np.fromiter(chosen, bool, len(uids))

    def to_json(self) -> dict[str, Any]:
        unique, error = self.trigrams.count()
        diversity, error = (unique, error) if self._takes_all else self.diversity.count()
        return {
            "captions": self.captions,
            "missing": self.missing,
            "words": {"mean": self.words / max(1, self.captions), "histogram": self.lengths.tolist()},
            "trigrams": {"unique": unique, "captions": self.sampled},
            "diversity": {"unique": diversity, "captions": self.captions, "standard_error": error},
            "cosine": {
                "count": self.scored,
                "mean": self.cosine_sum / self.scored if self.scored else None,
                "low": LOW,
                "high": HIGH,
                "histogram": self.cosines.tolist(),
            },
        }
