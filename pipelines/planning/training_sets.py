"""What a run's training sets will take in the storage, told before anything is computed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from components.recipe.mixtures import Mixture, Rule, firsts_of

UNITS = ("B", "kB", "MB", "GB", "TB")


def lines_of(mixtures: Sequence[Mixture], tars: float | None) -> Iterator[str]:
    """Yield a line for all training sets together, then one for each where there are several.

    Args:
        tars: bytes of the pool's tars; None where they are not known yet.
    """
    if tars is None:
        yield f"training sets: {len(mixtures)}"
        return
    total = sum(share_of(mixture) for mixture in firsts_of(mixtures).values())
    several = len(mixtures) > 1
    yield f"training sets: {len(mixtures)}, at most {in_bytes(total * tars)}{' in all' if several else ''}"
    for mixture in mixtures if several else ():
        share = share_of(mixture)
        yield f"training set {mixture.name}: at most {in_bytes(share * tars)}, {share * 100:g} % of the pool's tars"


def share_of(mixture: Mixture) -> float:
    """Return how many of the pool's images the training set has at most, as a share; above 1 where they repeat.

    Only `top` bounds a rule: how many samples a number or a flag lets through is not known beforehand.
    """
    whole = sum(_most(rule) for rule in mixture.rules)
    return whole if mixture.emit == "all" else min(1.0, whole)


def _most(rule: Rule) -> float:
    return min([1.0, *(condition.share for condition in rule.where if condition.share is not None)])


def in_bytes(count: float) -> str:
    """Write a number of bytes for a person."""
    for unit in UNITS:
        if count < 1000 or unit == UNITS[-1]:
            return f"{count:,.0f} {unit}" if unit == "B" else f"{count:,.1f} {unit}"
        count /= 1000
    raise AssertionError
