"""Statistics of a set of captions, chunk by chunk in bounded memory."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from components.selection.rules import Scores

WORDS = 60  # longest caption with a bin of its own; the last bin holds the longer ones
BINS, LOW, HIGH = 100, -1.0, 1.0  # of the cosine histogram: 0.02 wide
SAMPLE = 1_000_000  # captions whose trigrams are counted, as in the paper's Table 1
MERGE = 1 << 22  # trigrams collected before they are made unique again: 32 MB
_WORD = re.compile(r"[\w']+")


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
    trigrams: NDArray[np.uint64] = field(default_factory=lambda: np.zeros(0, np.uint64))
    _fresh: list[int] = field(default_factory=list)
    _keys: dict[str, int] = field(default_factory=dict)

    def add(self, uids: pa.Array, texts: pa.Array, cosines: Scores) -> None:
        """Count more captions; a null text is counted as missing, a NaN cosine as not scored."""
        for uid, text in zip(uids.to_pylist(), texts.to_pylist(), strict=True):
            if text is None:
                self.missing += 1
            else:
                self._add(uid, _WORD.findall(text.lower()))
        there = cosines[np.isfinite(cosines)]
        self.scored += len(there)
        self.cosine_sum += float(there.sum(dtype=np.float64))
        self.cosines += np.histogram(np.clip(there.astype(np.float64), LOW, HIGH), BINS, (LOW, HIGH))[0]
        if len(self._fresh) > MERGE:
            self._merge()

    def _add(self, uid: str, words: list[str]) -> None:
        self.captions += 1
        self.words += len(words)
        self.lengths[min(len(words), WORDS)] += 1
        if not self._in_sample(uid):
            return
        self.sampled += 1
        keys = [self._key(word) for word in words]
        for a, b, c in zip(keys, keys[1:], keys[2:], strict=False):
            self._fresh.append(
                (a * 0x9E3779B97F4A7C15 ^ b * 0xC2B2AE3D27D4EB4F ^ c * 0x165667B19E3779F9) & 0xFFFFFFFFFFFFFFFF
            )

    def _in_sample(self, uid: str) -> bool:
        """Return whether a caption is in the sample: about SAMPLE of the expected ones, the same for every counter."""
        if self.expected <= SAMPLE:
            return True
        digest = hashlib.blake2b(uid.encode(), digest_size=8).digest()
        return int.from_bytes(digest) * self.expected < SAMPLE << 64

    def _key(self, word: str) -> int:
        """Hash a word to 64 bits; a million distinct words collide with probability 3e-8."""
        if word not in self._keys:
            if len(self._keys) > MERGE:
                self._keys.clear()
            self._keys[word] = int.from_bytes(hashlib.blake2b(word.encode(), digest_size=8).digest())
        return self._keys[word]

    def _merge(self) -> None:
        self.trigrams = np.unique(np.concatenate([self.trigrams, np.array(self._fresh, np.uint64)]))
        self._fresh = []

    def to_json(self) -> dict[str, Any]:
        self._merge()
        return {
            "captions": self.captions,
            "missing": self.missing,
            "words": {"mean": self.words / max(1, self.captions), "histogram": self.lengths.tolist()},
            "trigrams": {"unique": len(self.trigrams), "captions": self.sampled},
            "cosine": {
                "count": self.scored,
                "mean": self.cosine_sum / self.scored if self.scored else None,
                "low": LOW,
                "high": HIGH,
                "histogram": self.cosines.tolist(),
            },
        }
