"""Bounds the time that a tokenizer takes for a text, whatever the text is."""

from __future__ import annotations

import heapq
from collections.abc import Mapping
from functools import partial
from typing import Any, TypeVar

from open_clip.tokenizer import SimpleTokenizer

T = TypeVar("T")

LONGEST = 8192  # characters: the index takes no longer text
LONG_WORD = 64  # bytes; from here on open_clip's loop over all pairs, which is quadratic, takes longer than a heap


def cut(text: str) -> str:
    """Return the text, or the first 8,192 characters of a longer one, its white space single: what is tokenized.

    More than a model's context holds: CLIP's is 77 tokens of at most 32 characters, a text classifier's 512 tokens.
    """
    if len(text) <= LONGEST:
        return text
    return " ".join(text.split())[:LONGEST]


def bounded(tokenizer: T) -> T:
    """Return open_clip's tokenizer, changed to take bounded time for a text; its tokens stay what they are."""
    changed: Any = tokenizer
    clean = changed.clean_fn
    changed.clean_fn = lambda text: clean(cut(text))
    if isinstance(tokenizer, SimpleTokenizer):
        changed.bpe = partial(_bpe, tokenizer, tokenizer.bpe)
    return tokenizer


def _bpe(tokenizer: SimpleTokenizer, short: Any, word: str) -> str:
    """Return a word's tokens, separated by spaces, as `SimpleTokenizer.bpe` does; `short` is that method."""
    if len(word) < LONG_WORD:
        found: str = short(word)
        return found
    return " ".join(merged([*word[:-1], f"{word[-1]}</w>"], tokenizer.bpe_ranks))


def merged(symbols: list[str], ranks: Mapping[tuple[str, str], int]) -> list[str]:
    """Merge neighbours until no pair has a rank: lowest rank first, from the left; in time n log n.

    Gives what merging all pairs of the lowest rank at a time gives, as each pair's parts have lower ranks than the
    pair itself: merges are learnt in this order.
    """
    left, right = list(range(-1, len(symbols) - 1)), list(range(1, len(symbols) + 1))
    waiting: list[tuple[int, int, str, str]] = []

    def offer(place: int) -> None:
        after = right[place] if place >= 0 else len(symbols)
        if after < len(symbols):
            pair = symbols[place], symbols[after]
            if pair in ranks:
                heapq.heappush(waiting, (ranks[pair], place, *pair))

    for place in range(len(symbols)):
        offer(place)
    while waiting:
        _, place, first, second = heapq.heappop(waiting)
        after = right[place]
        if after >= len(symbols) or symbols[place] != first or symbols[after] != second:
            continue  # one of the two was merged meanwhile
        symbols[place], symbols[after], right[place] = first + second, "", right[after]
        if right[after] < len(symbols):
            left[right[after]] = place
        offer(left[place])
        offer(place)
    return [symbol for symbol in symbols if symbol]
