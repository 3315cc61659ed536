"""Exact "top x %" of any number of scores in constant memory: histograms of bit patterns, no sort.

A float32's bits, read as an integer with the sign folded in, order as the float does. One histogram counts the high 16
bits; a second one counts the low 16 bits inside the few bins that hold a wanted rank. Which bins those are is guessed
from the first scores, so that one pass is enough unless the scores drift along the pool; then there is a second pass.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from components.base.errors import PermanentError

Scores = NDArray[np.float32]
Keys = NDArray[np.uint32]
Counts = NDArray[np.int64]

BINS = 1 << 16
BLOCK = 1 << 17  # scores counted together, so that touching every bin costs little
GUESS = 1 << 20  # scores behind the guess: its error is 0.05 % of the rows, a bin of cosines holds about 0.7 %


def thresholds(scores: Callable[[], Iterable[Scores]], shares: Sequence[float]) -> dict[float, float]:
    """Find, for each share, the lowest score that is still among the best share.

    Over the n finite scores it is `descending[min(⌊n·share⌋, n−1)]` (DataComp's rule: one more than ⌊n·share⌋ are
    kept, and all ties). ⌊n·share⌋ is taken of the share as it is written: 0.3 of 10 is 3, whatever 0.3 is in binary.

    Args:
        scores: starts a fresh pass over all chunks; NaN and infinities don't count.

    Raises:
        PermanentError: there is no finite score.
    """
    high, low = np.zeros(BINS, np.int64), dict[int, Counts]()
    first: list[Keys] | None = []  # the keys behind the guess; None once it is made
    for keys in _blocks(scores()):
        high += np.bincount(keys >> 16, minlength=BINS)
        _count_low(low, [keys])
        if first is not None:
            first.append(keys)
            if sum(map(len, first)) >= GUESS:
                bins = {b + near for b, _ in _places(high, shares).values() for near in (-1, 0, 1)}
                low = _new_counts(bins)
                _count_low(low, first)
                first = None
    if not high.any():
        raise PermanentError("there is no finite score to take the best share of")
    places = _places(high, shares)
    missed = _new_counts({b for b, _ in places.values()} - low.keys())
    if missed:
        _count_low(missed, _blocks(scores()) if first is None else first)
    low |= missed
    return {share: _score(b << 16 | _bin_of(low[b], within)) for share, (b, within) in places.items()}


def rank(n: int, share: float) -> int:
    """Return ⌊n·share⌋ of the share's shortest decimal form."""
    return int(n * Fraction(repr(float(share))))


def _places(high: Counts, shares: Iterable[float]) -> dict[float, tuple[int, int]]:
    """Find each share's threshold: its bin, and how many scores of that bin are lower (ties aside)."""
    n = int(high.sum())
    places = {}
    for share in shares:
        lower = n - 1 - min(rank(n, share), n - 1)
        b = _bin_of(high, lower)
        places[share] = (b, lower - int(high[:b].sum()))
    return places


def _bin_of(counts: Counts, lower: int) -> int:
    """Return the bin of the score that has `lower` scores before it."""
    return int(np.searchsorted(np.cumsum(counts), lower, side="right"))


def _new_counts(bins: Collection[int]) -> dict[int, Counts]:
    return {b: np.zeros(BINS, np.int64) for b in bins}


def _count_low(low: dict[int, Counts], chunks: Iterable[Keys]) -> None:
    """Add the low 16 bits of the keys in these bins."""
    for keys in chunks if low else ():
        top = keys >> 16
        for b, counts in low.items():
            counts += np.bincount(keys[top == b] & 0xFFFF, minlength=BINS)


def _blocks(chunks: Iterable[Scores]) -> Iterator[Keys]:
    """Gather the chunks' keys into blocks of at least BLOCK, the last one aside."""
    waiting: list[Keys] = []
    for chunk in chunks:
        waiting.append(_keys(chunk))
        if sum(map(len, waiting)) >= BLOCK:
            yield np.concatenate(waiting)
            waiting = []
    if waiting:
        yield np.concatenate(waiting)


def _keys(scores: Scores) -> Keys:
    """Map the finite scores to unsigned integers of the same order; −0.0 counts as 0.0."""
    finite = np.asarray(scores, np.float32)
    finite = finite[np.isfinite(finite)] + np.float32(0)  # −0.0 + 0.0 is 0.0
    bits = finite.view(np.uint32)
    return np.where(bits >> 31, ~bits, bits | np.uint32(1 << 31))


def _score(key: int) -> float:
    bits = key & 0x7FFFFFFF if key >> 31 else ~key & 0xFFFFFFFF
    return float(np.array(bits, np.uint32).view(np.float32))
