"""The rule language: find which rule gives which text to each image, vectorised, one shard at a time.

Every question is answered in Kleene's three values (true, false, unknown), because it is also asked before captions
exist: a sample whose match is unknown may still need its caption.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from components.recipe.mixtures import BestOf, Concat, Condition, Mixture, Rule, lent_by, texts_of

Bools = NDArray[np.bool_]
Scores = NDArray[np.float32]

Share = tuple[str, float]
"""A score's name, and a share of the pool's samples in (0, 1]: those with the highest scores."""
Thresholds = Mapping[Share, float]
"""The lowest score of each share."""


@dataclass
class Values:
    """The known texts, scores and flags of one shard's samples.

    A name that is absent is unknown; arrays have one value per sample.
    """

    rows: int
    texts: dict[str, pa.Array] = field(default_factory=dict)
    """Strings; null: no text."""
    scores: dict[str, Scores] = field(default_factory=dict)
    """NaN: no score."""
    flags: dict[str, tuple[Bools, Bools]] = field(default_factory=dict)
    """(value, there is a value)."""

    def of(self, condition: Condition) -> tuple[NDArray[Any], Bools] | None:
        """Return the column that a condition looks at, as (value, there is a value); None where it is unknown."""
        if condition.about == "flag":
            return self.flags.get(condition.name)
        scores = self.scores.get(condition.name)
        return None if scores is None else (scores, np.isfinite(scores))

    def filter(self, kept: Bools) -> Values:
        """Return the values of the samples that `kept`, (N,) bool, says."""
        if kept.all():
            return self
        return Values(
            int(kept.sum()),
            {name: texts.filter(pa.array(kept)) for name, texts in self.texts.items()},
            {name: scores[kept] for name, scores in self.scores.items()},
            {name: (value[kept], there[kept]) for name, (value, there) in self.flags.items()},
        )


@dataclass(frozen=True)
class Truth:
    """Per sample whether something is certainly true and possibly true. Unknown is possible and not certain."""

    sure: Bools
    maybe: Bools

    def __and__(self, other: Truth) -> Truth:
        return Truth(self.sure & other.sure, self.maybe & other.maybe)


@dataclass(frozen=True)
class Selection:
    """The pairs of one shard, by row and then by rule."""

    rows: NDArray[np.int64]
    """Which sample."""
    rules: NDArray[np.int32]
    """Which rule of the mixture."""
    texts: pa.Array
    sources: pa.Array
    """Name of the text; `a+b` for a concatenation."""


def select(mixture: Mixture, values: Values, thresholds: Thresholds) -> Selection:
    """Apply a mixture where everything is known.

    A rule matches a sample that has the rule's text and meets every condition; a missing score or flag never does.
    Scores and numbers are compared as float32, so that a score of 0.7 is at least 0.7.
    """
    free = np.ones(values.rows, bool)
    found: list[tuple[NDArray[np.int64], pa.Array, pa.Array]] = []
    for rule in mixture.rules:
        match = matches(rule, mixture, values, thresholds).sure & free
        rows = np.flatnonzero(match)
        found.append((rows, *text_of(rule, values, rows)))
        if mixture.emit == "first":
            free &= ~match
    rows = np.concatenate([r for r, _, _ in found])
    rules = np.concatenate([np.full(len(r), number, np.int32) for number, (r, _, _) in enumerate(found)])
    order = np.lexsort((rules, rows))
    texts = pa.concat_arrays([t for _, t, _ in found]).take(pa.array(order))
    sources = pa.concat_arrays([s for _, _, s in found]).take(pa.array(order))
    return Selection(rows[order], rules[order], texts, sources)


def demanded(mixtures: Sequence[Mixture], captioner: str, values: Values, thresholds: Thresholds) -> Bools:
    """Find the samples whose captions by this captioner can still matter to some mixture.

    A caption matters where a rule that uses it, or its score, is not certainly false and not certainly preceded by a
    match. A rule that takes the best share of the caption's own score needs all of them.
    """
    wanted = np.zeros(values.rows, bool)
    for mixture in mixtures:
        free = np.ones(values.rows, bool)
        for rule in mixture.rules:
            match = matches(rule, mixture, values, thresholds)
            if needs_all(mixture, rule, captioner):
                wanted |= True
            elif captioner in names_of(rule):
                wanted |= match.maybe & free
            if mixture.emit == "first":
                free &= ~match.sure
    return wanted


def matches(rule: Rule, mixture: Mixture, values: Values, thresholds: Thresholds) -> Truth:
    """Tell whether each sample matches a rule, whatever the other rules say."""
    truth = _has_text(rule, values)
    for condition in rule.where:
        truth &= _holds(condition, mixture, values, thresholds)
    return truth


def names_of(rule: Rule) -> set[str]:
    """Return the names of the columns on which a rule's match and outcome depend."""
    return {c.name for c in rule.where} | set(texts_of(rule))


def columns_of(mixtures: Iterable[Mixture]) -> tuple[set[str], set[str], set[str]]:
    """Return the names of the texts, scores and flags that these mixtures look at."""
    texts, scores, flags = set[str](), set[str](), set[str]()
    for rule in (rule for mixture in mixtures for rule in mixture.rules):
        texts.update(texts_of(rule))
        scores.update(texts_of(rule) if isinstance(rule.text, BestOf) else ())
        tested = tested_by(rule.where)
        scores |= tested[0]
        flags |= tested[1]
    return texts, scores, flags


def tested_by(conditions: Iterable[Condition]) -> tuple[set[str], set[str]]:
    """Return the names of the scores and flags that these conditions look at."""
    scores, flags = set[str](), set[str]()
    for condition in conditions:
        (flags if condition.about == "flag" else scores).add(condition.name)
    return scores, flags


def needs_all(mixture: Mixture, rule: Rule, score: str) -> bool:
    """Tell whether a rule depends on a share of this score over the whole pool."""
    return any(name == score for name, _ in shares_of(mixture, rule))


def shares_of(mixture: Mixture, rule: Rule) -> list[Share]:
    """List the shares whose thresholds a rule's conditions use."""
    return [share for share in (share_of(condition, mixture) for condition in rule.where) if share]


def share_of(condition: Condition, mixture: Mixture | None = None) -> Share | None:
    """Return the share whose threshold a condition compares with; None where it compares with a value of its own.

    Args:
        mixture: the one whose rules lend their thresholds; None where the condition borrows none, as those of `drop`.
    """
    lender = condition if mixture is None else lender_of(condition, mixture)
    return None if lender.share is None else (lender.name, lender.share)


def lender_of(condition: Condition, mixture: Mixture) -> Condition:
    """Return the condition that lends its threshold to this one: itself where it borrows none."""
    if condition.lender is None:
        return condition
    found = next(lent_by(rule) for rule in mixture.rules if rule.name == condition.lender)
    assert found is not None  # the recipe's own check
    return found


def text_of(rule: Rule, values: Values, rows: NDArray[np.int64]) -> tuple[pa.Array, pa.Array]:
    """Return (texts, names of their sources) that a rule gives to rows which have them."""
    names = texts_of(rule)
    columns = [values.texts[name].take(pa.array(rows)) for name in names]
    if isinstance(rule.text, Concat):
        return pc.binary_join_element_wise(*columns, " "), pa.repeat("+".join(names), len(rows))
    if isinstance(rule.text, BestOf):
        best = _best(names, values)[rows]
        texts = pa.concat_arrays(columns).take(pa.array(best * len(rows) + np.arange(len(rows))))
        return texts, pa.array(names).take(pa.array(best))
    return columns[0], pa.repeat(names[0], len(rows))


def _holds(condition: Condition, mixture: Mixture | None, values: Values, thresholds: Thresholds) -> Truth:
    share = share_of(condition, mixture)
    value = condition.value if share is None else thresholds.get(share)
    if isinstance(value, float) and math.isnan(value):  # whatever the score will be
        return _known(np.zeros(values.rows, bool))
    column = values.of(condition)
    if column is None:
        return _unknown(values.rows)
    found, there = column
    if value is None:
        return Truth(np.zeros(values.rows, bool), there)
    return _known(there & condition.comparison.holds(found, found.dtype.type(value)))


def meets(condition: Condition, values: Values, thresholds: Thresholds) -> Bools:
    """Tell which samples certainly meet a condition of `drop`; one without the score or flag never does."""
    return _holds(condition, None, values, thresholds).sure


def why_dropped(mixture: Mixture, values: Values, thresholds: Thresholds) -> dict[str, Bools]:
    """Find why no rule took a sample: give each reason's samples, of which only those that `select` left out count.

    Of a sample's rules, the one that came nearest gives the reason: a condition that does not hold outweighs a missing
    score or flag, which outweighs a missing text.
    """
    fails = np.zeros(values.rows, bool)
    lacks = np.zeros(values.rows, bool)
    for rule in mixture.rules:
        known, holds = np.ones(values.rows, bool), np.ones(values.rows, bool)
        for condition in rule.where:
            column = values.of(condition)
            assert column is not None  # all columns of a mixture are read before it is applied
            there = column[1]
            known &= there
            holds &= _holds(condition, mixture, values, thresholds).sure | ~there
        fails |= ~holds
        lacks |= ~known & _has_text(rule, values).sure
    return {
        "no rule's conditions hold": fails,
        "no score or flag that a rule asks for": lacks & ~fails,
        "no text that a rule could use": ~lacks & ~fails,
    }


def left_by(rule: Rule, mixture: Mixture, values: Values, thresholds: Thresholds) -> NDArray[np.int64]:
    """Count the samples that a rule leaves: those that have its text, then after each of its conditions."""
    left = _has_text(rule, values).sure
    counts = [left.sum()]
    for condition in rule.where:
        left = left & _holds(condition, mixture, values, thresholds).sure
        counts.append(left.sum())
    return np.array(counts, np.int64)


def _has_text(rule: Rule, values: Values) -> Truth:
    """Tell which samples have the rule's text: all parts of a concatenation, any of a best-of."""
    truths = [
        _known(_there(values.texts[name])) if name in values.texts else _unknown(values.rows) for name in texts_of(rule)
    ]
    combine = np.any if isinstance(rule.text, BestOf) else np.all
    return Truth(combine([t.sure for t in truths], axis=0), combine([t.maybe for t in truths], axis=0))


def _best(names: list[str], values: Values) -> NDArray[np.int64]:
    """Return per sample the place of the text with the highest score, the first of equals.

    A text without a score loses to every one that has it, and an absent text to every one that is there.
    """
    order = []
    for name in names:
        scores = values.scores[name].astype(np.float64)
        scored = np.where(np.isfinite(scores), scores, -np.finfo(np.float64).max)
        order.append(np.where(_there(values.texts[name]), scored, -np.inf))
    best: NDArray[np.int64] = np.argmax(order, axis=0)
    return best


def _there(texts: pa.Array) -> Bools:
    there: Bools = texts.is_valid().to_numpy(zero_copy_only=False)
    return there


def _known(values: Bools) -> Truth:
    return Truth(values, values)


def _unknown(rows: int) -> Truth:
    return Truth(np.zeros(rows, bool), np.ones(rows, bool))
