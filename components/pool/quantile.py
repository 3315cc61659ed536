"""Exact "top x %" of any number of scores in constant memory: two passes of bit-pattern histograms, no sort.

A float32's bits, read as an integer with the sign folded in, order as the float does. The first pass counts the high
16 bits; the second counts the low 16 bits inside the few bins that hold a wanted rank.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from components.pool.errors import PermanentError

Scores = NDArray[np.float32]
BINS = 1 << 16


def thresholds(scores: Callable[[], Iterable[Scores]], shares: Sequence[float]) -> dict[float, float]:
    """The lowest score that is still among the best share, for each share.

    Over the n finite scores it is `descending[min(⌊n·share⌋, n−1)]` (DataComp's rule: one more than ⌊n·share⌋ are
    kept, and all ties). ⌊n·share⌋ is taken of the share as it is written: 0.3 of 10 is 3, whatever 0.3 is in binary.

    Args:
        scores: starts a fresh pass over all chunks; NaN and infinities don't count.

    Raises:
        PermanentError: there is no finite score.
    """
    high = np.zeros(BINS, np.int64)
    for chunk in scores():
        high += np.bincount(_keys(chunk) >> 16, minlength=BINS)
    n = int(high.sum())
    if n == 0:
        raise PermanentError("top: there is no finite score to take the best share of")
    ranks = {share: n - 1 - min(rank(n, share), n - 1) for share in shares}  # from the lowest, 0-based
    below = np.concatenate([[0], np.cumsum(high)])  # scores in lower bins
    bins = {share: int(np.searchsorted(below, r, side="right")) - 1 for share, r in ranks.items()}
    low = {b: np.zeros(BINS, np.int64) for b in bins.values()}
    for chunk in scores():
        keys = _keys(chunk)
        top = keys >> 16
        for b, counts in low.items():
            counts += np.bincount(keys[top == b] & 0xFFFF, minlength=BINS)
    found = {}
    for share, b in bins.items():
        within = ranks[share] - int(below[b])
        digits = int(np.searchsorted(np.cumsum(low[b]), within, side="right"))
        found[share] = _score(b << 16 | digits)
    return found


def rank(n: int, share: float) -> int:
    """⌊n·share⌋ of the share's shortest decimal form."""
    return int(n * Fraction(repr(share)))


def _keys(scores: Scores) -> NDArray[np.uint32]:
    """Unsigned integers that order as the finite scores do; −0.0 counts as 0.0."""
    finite = np.asarray(scores, np.float32)
    finite = finite[np.isfinite(finite)] + np.float32(0)  # −0.0 + 0.0 is 0.0
    bits = finite.view(np.uint32)
    return np.where(bits >> 31, ~bits, bits | np.uint32(1 << 31))


def _score(key: int) -> float:
    bits = key & 0x7FFFFFFF if key >> 31 else ~key & 0xFFFFFFFF
    return float(np.array(bits, np.uint32).view(np.float32))
