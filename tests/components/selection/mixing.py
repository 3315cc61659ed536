"""Tables of samples as plain Python, for tests of the rules: what ours and a straightforward reading are both given."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import ROUND_FLOOR, Decimal
from typing import Any

import numpy as np
import pyarrow as pa

from components.recipe.mixtures import Mixture
from components.selection import quantile
from components.selection.rules import Thresholds, Values, select, shares_of

Pair = tuple[int, int, str, str]
"""(number of the sample, rule, text, source)."""


@dataclass(frozen=True)
class Sample:
    """One image; a name that is absent has no value."""

    number: int
    texts: Mapping[str, str] = field(default_factory=dict)
    scores: Mapping[str, float] = field(default_factory=dict)
    flags: Mapping[str, bool] = field(default_factory=dict)


def values_of(samples: Sequence[Sample], texts: Iterable[str], scores: Iterable[str], flags: Iterable[str]) -> Values:
    """The samples as the rules see them, with these columns."""
    values = Values(len(samples))
    for name in texts:
        values.texts[name] = pa.array([s.texts.get(name) for s in samples], pa.string())
    for name in scores:
        values.scores[name] = np.array([s.scores.get(name, np.nan) for s in samples], np.float32)
    for name in flags:
        there = np.array([name in s.flags for s in samples], bool)
        values.flags[name] = (np.array([s.flags.get(name, False) for s in samples], bool), there)
    return values


def all_values(samples: Sequence[Sample]) -> Values:
    """With every column that some sample has."""
    names = ([name for s in samples for name in part(s)] for part in (_texts, _scores, _flags))
    texts, scores, flags = (list(dict.fromkeys(found)) for found in names)
    return values_of(samples, texts, {*texts, *scores}, flags)


def _texts(sample: Sample) -> Mapping[str, Any]:
    return sample.texts


def _scores(sample: Sample) -> Mapping[str, Any]:
    return sample.scores


def _flags(sample: Sample) -> Mapping[str, Any]:
    return sample.flags


def thresholds_of(mixtures: Iterable[Mixture], values: Values) -> Thresholds:
    """Ours, of the scores that are there."""
    pairs = {pair for m in mixtures for rule in m.rules for pair in shares_of(m, rule) if pair[0] in values.scores}
    return {(s, f): quantile.thresholds(lambda s=s: [values.scores[s]], [f])[f] for s, f in pairs}  # type: ignore[misc]


def pairs_of(mixture: Mixture, samples: Sequence[Sample], values: Values, thresholds: Thresholds) -> list[Pair]:
    """What ours selects."""
    chosen = select(mixture, values, thresholds)
    return [
        (samples[row].number, rule, text, source)
        for row, rule, text, source in zip(
            chosen.rows.tolist(),
            chosen.rules.tolist(),
            chosen.texts.to_pylist(),
            chosen.sources.to_pylist(),
            strict=True,
        )
    ]


def ours(mixture: Mixture, samples: Sequence[Sample]) -> list[Pair]:
    """What ours selects of a whole pool."""
    values = all_values(samples)
    return pairs_of(mixture, samples, values, thresholds_of([mixture], values))


def best_share(samples: Iterable[Sample], score: str, share: float) -> float:
    """DataComp's rule as it is written: sort all, take the place ⌊n·share⌋ of the share as it is written."""
    there = sorted((s.scores[score] for s in samples if math.isfinite(s.scores.get(score, np.nan))), reverse=True)
    place = (Decimal(len(there)) * Decimal(str(share))).to_integral_value(ROUND_FLOOR)
    return there[min(int(place), len(there) - 1)]


def by_hand(mixture: Mapping[str, Any], samples: Sequence[Sample]) -> list[Pair]:
    """A straightforward reading of a mixture as it is written in YAML: sample by sample, rule by rule."""
    found: list[Pair] = []
    for sample in samples:
        for number, rule in enumerate(mixture["rules"]):
            texts = _texts_by_hand(rule["text"], sample)
            if texts and all(_holds_by_hand(c, mixture, sample, samples) for c in rule.get("where", [])):
                found.append((sample.number, number, *texts))
                if mixture.get("emit", "first") == "first":
                    break
    return found


def _texts_by_hand(text: Any, sample: Sample) -> tuple[str, str] | None:
    if isinstance(text, str):
        return (sample.texts[text], text) if text in sample.texts else None
    if "concat" in text:
        names = text["concat"]
        return (" ".join(sample.texts[n] for n in names), "+".join(names)) if {*names} <= {*sample.texts} else None
    there = [n for n in text["bestOf"] if n in sample.texts]
    scores = [sample.scores.get(n, -math.inf) for n in there]
    best = next((n for n, s in zip(there, scores, strict=True) if s == max(scores)), None)
    return (sample.texts[best], best) if best else None


def _holds_by_hand(c: Mapping[str, Any], mixture: Mapping[str, Any], sample: Sample, samples: Sequence[Sample]) -> bool:
    if "flag" in c:
        return sample.flags.get(c["flag"]) is c.get("equals", True)
    if c["score"] not in sample.scores:
        return False
    score = np.float32(sample.scores[c["score"]])
    if "atMost" in c:
        return bool(score <= np.float32(c["atMost"]))
    at_least = c.get("atLeast")
    if isinstance(at_least, Mapping):
        rule = next(r for r in mixture["rules"] if r.get("name") == at_least["rule"])
        top = next(w for w in rule["where"] if "top" in w)
        return bool(score >= np.float32(best_share(samples, top["score"], top["top"])))
    number = best_share(samples, c["score"], c["top"]) if at_least is None else at_least
    return bool(score >= np.float32(number))
