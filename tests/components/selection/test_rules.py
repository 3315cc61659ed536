"""The rule language against a straightforward reading of it, and what must hold of every mixture."""

from __future__ import annotations

import json
import math
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from components.recipe.mixtures import Mixture
from components.selection.rules import demanded, select, why_dropped
from tests.components.selection.mixing import (
    Sample,
    all_values,
    best_share,
    by_hand,
    ours,
    pairs_of,
    thresholds_of,
    values_of,
)

KNOWN, CAPTIONERS, SCORES, FLAGS = ("raw", "published"), ("a", "b"), ("x",), ("f", "g")
TEXTS = (*KNOWN, *CAPTIONERS)
cosines = st.sampled_from([-0.5, 0.0, 0.1, 0.2, 0.25, 0.3, 0.7])  # ties on purpose; 0.7 and 0.1 are no float32
shares = st.sampled_from([0.1, 0.25, 0.3, 0.5, 0.75, 1.0])


@st.composite
def samples(draw: st.DrawFn, size: int = 12) -> list[Sample]:
    """A pool in which anything may be missing; the first sample has everything, so that every score exists."""
    found = [
        Sample(0, {t: f"{t} of 0" for t in TEXTS}, dict.fromkeys((*TEXTS, *SCORES), 0.2), dict.fromkeys(FLAGS, True))
    ]
    for number in range(1, draw(st.integers(1, size))):
        texts = {t: f"{t} of {number}" for t in TEXTS if draw(st.integers(0, 4))}
        scores = {s: draw(cosines) for s in (*texts, *SCORES) if draw(st.integers(0, 4))}
        found.append(Sample(number, texts, scores, {f: draw(st.booleans()) for f in FLAGS if draw(st.integers(0, 3))}))
    return found


@st.composite
def mixtures(draw: st.DrawFn, name: str = "m", most: int = 4) -> dict[str, Any]:
    """Any mixture over these columns, as it is written in YAML."""
    rules: list[dict[str, Any]] = []
    for number in range(draw(st.integers(1, most))):
        some = st.lists(st.sampled_from(TEXTS), min_size=2, max_size=3, unique=True)
        text = draw(
            st.one_of(
                st.sampled_from(TEXTS),
                st.builds(lambda names: {"concat": names}, some),
                st.builds(lambda names: {"bestOf": names}, some),
            )
        )
        where = []
        for _ in range(draw(st.integers(0, 2))):
            kind = draw(st.sampled_from(["top", "atLeast", "atMost", "flag"]))
            if kind == "flag":
                where.append({"flag": draw(st.sampled_from(FLAGS)), "equals": draw(st.booleans())})
            else:
                score = draw(st.sampled_from((*TEXTS, *SCORES)))
                where.append({"score": score, kind: draw(shares if kind == "top" else cosines)})
        rules.append({"name": f"r{number}", "text": text, "where": where})
    lenders = [r["name"] for r in rules if any("top" in c for c in r["where"])]
    for rule in rules if lenders else []:
        if draw(st.booleans()):
            score = draw(st.sampled_from((*TEXTS, *SCORES)))
            rule["where"].append({"score": score, "atLeast": {"rule": draw(st.sampled_from(lenders))}})
    return {"name": name, "emit": draw(st.sampled_from(["first", "all"])), "rules": rules}


def checked(mixture: dict[str, Any]) -> Mixture:
    return Mixture.model_validate(mixture)


@settings(max_examples=75, deadline=None)
@given(pool=samples(), mixture=mixtures())
def test_is_what_a_straightforward_reading_gives(pool: list[Sample], mixture: dict[str, Any]) -> None:
    assert ours(checked(mixture), pool) == by_hand(mixture, pool)


@settings(max_examples=75, deadline=None)
@given(pool=samples(), mixture=mixtures())
def test_first_is_the_first_of_all(pool: list[Sample], mixture: dict[str, Any]) -> None:
    first = ours(checked({**mixture, "emit": "first"}), pool)
    every = ours(checked({**mixture, "emit": "all"}), pool)
    assert len({number for number, *_ in first}) == len(first)
    assert len({(number, rule) for number, rule, *_ in every}) == len(every)
    earliest: dict[int, Any] = {}
    for pair in every:
        earliest.setdefault(pair[0], pair)
    assert first == list(earliest.values())


@settings(max_examples=75, deadline=None)
@given(pool=samples(), mixture=mixtures(most=1), more=shares)
def test_a_larger_share_drops_no_image(pool: list[Sample], mixture: dict[str, Any], more: float) -> None:
    larger = json.loads(json.dumps(mixture))
    for condition in larger["rules"][0]["where"]:
        if "top" in condition:
            condition["top"] = max(condition["top"], more)
    before, after = ours(checked(mixture), pool), ours(checked(larger), pool)
    assert set(before) <= set(after)


@settings(max_examples=75, deadline=None)
@given(pool=samples(), mixture=mixtures(), data=st.data())
def test_the_order_of_the_samples_does_not_matter(
    pool: list[Sample], mixture: dict[str, Any], data: st.DataObject
) -> None:
    shuffled = data.draw(st.permutations(pool))
    assert sorted(ours(checked(mixture), shuffled)) == sorted(ours(checked(mixture), pool))


@settings(max_examples=75, deadline=None)
@given(pool=samples(), mixture=mixtures(), cuts=st.sets(st.integers(0, 12)))
def test_how_shards_are_cut_does_not_matter(pool: list[Sample], mixture: dict[str, Any], cuts: set[int]) -> None:
    whole = all_values(pool)
    thresholds = thresholds_of([checked(mixture)], whole)
    ends = sorted({0, len(pool), *(c for c in cuts if c < len(pool))})
    found = []
    for start, end in [*pairwise(ends), (0, 0)]:
        part = values_of(pool[start:end], whole.texts, whole.scores, whole.flags)
        found += pairs_of(checked(mixture), pool[start:end], part, thresholds)
    assert found == pairs_of(checked(mixture), pool, whole, thresholds)


@settings(max_examples=100, deadline=None)
@given(pool=samples(), share=shares, score=st.sampled_from(TEXTS))
def test_the_best_share_is_datacomps(pool: list[Sample], share: float, score: str) -> None:
    mixture = checked({"name": "m", "rules": [{"text": "raw", "where": [{"score": score, "top": share}]}]})
    threshold = best_share(pool, score, share)
    wanted = [s.number for s in pool if "raw" in s.texts and s.scores.get(score, -math.inf) >= threshold]
    assert [number for number, *_ in ours(mixture, pool)] == wanted


@pytest.mark.parametrize("nothing", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("condition", [{"top": 1.0}, {"atLeast": -1.0}, {"atMost": 1.0}, {"atLeast": {"rule": "all"}}])
def test_what_is_no_score_never_matches(nothing: float, condition: dict[str, Any]) -> None:
    rules = [{"text": "raw", "where": [{"score": "a", **condition}]},
             {"name": "all", "text": "b", "where": [{"score": "a", "top": 1.0}]}]  # fmt: skip
    pool = [Sample(0, {"raw": "r0", "a": "a0"}, {"a": 0.1}), Sample(1, {"raw": "r1", "a": "a1"}, {"a": nothing})]
    values = all_values(pool)
    values.texts["b"] = values.texts["a"]
    mixture = checked({"name": "m", "rules": rules})
    assert [p[0] for p in pairs_of(mixture, pool, values, thresholds_of([mixture], values))] == [0]


def test_a_number_is_compared_as_the_score_is_kept() -> None:
    pool = [Sample(0, {"raw": "r"}, {"raw": 0.7})]  # as float32 it is 0.699999988
    for bound in ("atLeast", "atMost"):
        assert ours(checked({"name": "m", "rules": [{"text": "raw", "where": [{"score": "raw", bound: 0.7}]}]}), pool)


def test_the_best_text_of_an_image() -> None:
    mixture = checked({"name": "m", "rules": [{"text": {"bestOf": ["a", "b", "raw"]}}]})
    pool = [
        Sample(0, {"a": "a0", "b": "b0", "raw": "r0"}, {"a": 0.1, "b": 0.3, "raw": 0.2}),
        Sample(1, {"a": "a1", "b": "b1", "raw": "r1"}, {"a": 0.1, "b": 0.3, "raw": 0.3}),  # the first of equals
        Sample(2, {"b": "b2", "raw": "r2"}, {"b": -0.3}),  # one with a score, however low, before one without
        Sample(3, {"raw": "r3"}, {"a": 0.9}),  # a text that is there before one that is not
        Sample(4, {}, {"a": 0.9}),
        Sample(5, {"b": "b5", "raw": "r5"}),  # no score at all: the first that is there
    ]
    assert ours(mixture, pool) == [
        (0, 0, "b0", "b"), (1, 0, "b1", "b"), (2, 0, "b2", "b"), (3, 0, "r3", "raw"), (5, 0, "b5", "b"),
    ]  # fmt: skip


def test_a_concatenation_needs_all_its_texts() -> None:
    mixture = checked({"name": "m", "rules": [{"text": {"concat": ["raw", "a"]}}, {"text": "a"}]})
    pool = [Sample(0, {"raw": "r0", "a": "a0"}), Sample(1, {"a": "a1"}), Sample(2, {"raw": "r2"})]
    assert ours(mixture, pool) == [(0, 0, "r0 a0", "raw+a"), (1, 1, "a1", "a")]


def test_an_unknown_flag_matches_neither_way() -> None:
    rules = [{"text": "raw", "where": [{"flag": "f"}]}, {"text": "raw", "where": [{"flag": "f", "equals": False}]}]
    pool = [
        Sample(0, {"raw": "r0"}, flags={"f": True}),
        Sample(1, {"raw": "r1"}, flags={"f": False}),
        Sample(2, {"raw": "r2"}),
    ]
    assert ours(checked({"name": "m", "rules": rules}), pool) == [(0, 0, "r0", "raw"), (1, 1, "r1", "raw")]


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(pool=samples(), first=mixtures(), second=mixtures(name="n"), both=st.booleans())
def test_captions_on_demand_give_the_same_selection(
    pool: list[Sample], first: dict[str, Any], second: dict[str, Any], both: bool
) -> None:
    found = [checked(first), checked(second)] if both else [checked(first)]
    known = values_of(pool, KNOWN, (*KNOWN, *SCORES), FLAGS)
    partial = all_values(pool)
    thresholds = thresholds_of(found, known)
    for captioner in CAPTIONERS:
        wanted = demanded(found, captioner, known, thresholds)
        texts = [t if w else None for t, w in zip(partial.texts[captioner].to_pylist(), wanted, strict=True)]
        partial.texts[captioner] = pa.array(texts, pa.string())
        partial.scores[captioner] = np.where(wanted, partial.scores[captioner], np.float32(np.nan))
    whole = all_values(pool)
    every, some = thresholds_of(found, whole), thresholds_of(found, partial)
    for mixture in found:
        assert pairs_of(mixture, pool, partial, some) == pairs_of(mixture, pool, whole, every)


def test_a_share_that_is_not_known_yet_leaves_the_later_rules_open() -> None:
    """Whether raw is good enough depends on a's captions; until then b's may be needed everywhere."""
    rules = [
        {"text": "raw", "where": [{"score": "raw", "atLeast": {"rule": "good"}}]},
        {"name": "good", "text": "a", "where": [{"score": "a", "top": 0.3}]},
        {"text": "b"},
    ]
    known = values_of([Sample(n, {"raw": "r"}, {"raw": 0.1 * n}) for n in range(3)], ["raw"], ["raw"], [])
    for captioner in CAPTIONERS:
        assert demanded([checked({"name": "m", "rules": rules})], captioner, known, {}).all()


@settings(max_examples=100, deadline=None)
@given(pool=samples(), mixture=mixtures())
def test_every_dropped_image_has_one_reason(pool: list[Sample], mixture: dict[str, Any]) -> None:
    values = all_values(pool)
    thresholds = thresholds_of([checked(mixture)], values)
    dropped = np.ones(values.rows, bool)
    dropped[select(checked(mixture), values, thresholds).rows] = False
    reasons = np.sum(list(why_dropped(checked(mixture), values, thresholds).values()), axis=0)
    assert (reasons[dropped] == 1).all()
