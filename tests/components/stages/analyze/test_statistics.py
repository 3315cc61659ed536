"""Every statistic against a straightforward computation of the same thing."""

from __future__ import annotations

import re

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from components.stages.analyze import statistics
from components.stages.analyze.statistics import BINS, WORDS, Statistics

words = st.sampled_from(["a", "red", "Red", "dog", "it's", "naïve", "2", "犬", "ß", "a-b", "x" * 40])
captions = st.lists(st.one_of(st.none(), st.lists(words, max_size=8).map(" ".join)), max_size=30)


def measured(texts: list[str | None], cosines: list[float] | None = None, chunk: int = 7, expected: int = 0) -> dict:
    found = Statistics(expected or len(texts))
    scores = np.array(cosines if cosines is not None else [np.nan] * len(texts), np.float32)
    for start in range(0, len(texts), chunk):
        some = texts[start : start + chunk]
        uids = [f"{start + i:032x}" for i in range(len(some))]
        found.add(pa.array(uids, pa.string()), pa.array(some, pa.string()), scores[start : start + chunk])
    return found.to_json()


@given(captions)
@settings(deadline=None, max_examples=200)
def test_words_and_trigrams_are_those_of_a_set_of_tuples(texts: list[str | None]) -> None:
    split = [re.findall(r"[\w']+", t.lower()) for t in texts if t is not None]
    trigrams = {tuple(w[i : i + 3]) for w in split for i in range(len(w) - 2)}
    found = measured(texts)
    assert found["captions"] == len(split)
    assert found["missing"] == len(texts) - len(split)
    assert found["trigrams"] == {"unique": len(trigrams), "captions": len(split)}
    assert found["words"]["mean"] == pytest.approx(sum(map(len, split)) / max(1, len(split)))
    assert {n: c for n, c in enumerate(found["words"]["histogram"]) if c} == {
        n: sum(len(w) == n for w in split) for n in {len(w) for w in split}
    }


def test_trigrams_by_hand() -> None:
    found = measured(["a red dog runs", "A red DOG", "a, red: dog!", "two words", ""])
    assert found["trigrams"]["unique"] == 2  # (a red dog), (red dog runs)
    assert found["words"]["mean"] == (4 + 3 + 3 + 2 + 0) / 5


def test_merging_often_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    texts: list[str | None] = [f"w{i % 50} w{i % 7} w{i % 11} w{i % 3}" for i in range(400)]
    whole = measured(texts)
    monkeypatch.setattr(statistics, "MERGE", 10)
    assert measured(texts) == whole


def test_a_long_caption_falls_into_the_last_bin() -> None:
    found = measured(["w " * 60, "w " * 61, "w " * 1000])
    assert found["words"]["histogram"][WORDS] == 3
    assert found["words"]["mean"] == (60 + 61 + 1000) / 3


@given(st.lists(st.floats(-1, 1, width=32) | st.just(float("nan")), max_size=60))
@settings(deadline=None)
def test_cosines_are_numpys(cosines: list[float]) -> None:
    found = measured(["text"] * len(cosines), cosines)["cosine"]
    there = np.array([c for c in cosines if np.isfinite(c)], np.float32)
    assert found["count"] == len(there) == sum(found["histogram"])
    assert found["mean"] == (pytest.approx(there.astype(np.float64).mean()) if len(there) else None)
    assert found["histogram"] == np.histogram(there, np.linspace(-1, 1, BINS + 1, dtype=np.float64))[0].tolist()
    assert (found["low"], found["high"]) == (-1, 1)


def test_a_cosine_beyond_one_by_rounding_is_still_counted() -> None:
    found = measured(["a", "b"], [1.0000001, -1.0000001])["cosine"]
    assert found["histogram"][0] == found["histogram"][-1] == 1


def test_trigrams_of_a_sample_once_there_are_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "SAMPLE", 1000)
    texts: list[str | None] = [f"w{i} x{i} y{i}" for i in range(5000)]
    found = measured(texts)
    assert found["captions"] == 5000
    assert 900 < found["trigrams"]["captions"] < 1100  # three standard deviations of the hash: 85
    assert found["trigrams"]["unique"] == found["trigrams"]["captions"]
    assert found["diversity"] == {"unique": 5000, "captions": 5000, "standard_error": 0}


@pytest.mark.parametrize("kept", [100, 1000])
def test_the_diversity_of_more_captions_than_the_sample_grows_with_them(
    monkeypatch: pytest.MonkeyPatch, kept: int
) -> None:
    """Two sets in whose samples there are equally many trigrams; in the second one there are more."""
    monkeypatch.setattr(statistics, "SAMPLE", 500)
    monkeypatch.setattr(statistics, "KEPT", kept)
    monkeypatch.setattr(statistics, "MERGE", 300)
    for count in (3000, 9000):
        texts: list[str | None] = [f"w{i % 30} x{i % 900} y{i}" for i in [*range(count)] * 2]
        found = measured(texts, chunk=500)["diversity"]
        assert found["standard_error"] == pytest.approx(kept**-0.5, rel=0.02)
        assert abs(found["unique"] / count - 1) < 4 * found["standard_error"]


def test_a_diversity_that_can_be_kept_is_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "SAMPLE", 20)
    texts: list[str | None] = [f"w{i % 7} x{i % 5} y{i % 3} z{i % 2}" for i in range(300)]
    trigrams = {tuple(t.split()[i : i + 3]) for t in texts if t for i in range(2)}
    assert measured(texts)["diversity"] == {"unique": len(trigrams), "captions": 300, "standard_error": 0}


def test_exactly_the_limit_is_counted_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "SAMPLE", 100)
    assert measured([f"w{i} x y" for i in range(100)])["trigrams"] == {"unique": 100, "captions": 100}


def test_the_sample_does_not_depend_on_chunks_or_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "SAMPLE", 50)
    uids = [f"{i:032x}" for i in range(300)]
    texts = [f"w{i} x{i} y{i}" for i in range(300)]

    def count(order: list[int], chunk: int) -> dict:
        found = Statistics(300)
        for start in range(0, 300, chunk):
            some = order[start : start + chunk]
            nans = np.full(len(some), np.nan, np.float32)
            found.add(pa.array([uids[i] for i in some]), pa.array([texts[i] for i in some]), nans)
        found.trigrams.count()
        return {"sampled": found.sampled, "trigrams": found.trigrams.hashes.tolist()}

    assert count(list(range(300)), 300) == count(list(range(299, -1, -1)), 13)
