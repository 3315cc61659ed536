"""The exact quantile against a full sort."""

from __future__ import annotations

from collections.abc import Iterator
from decimal import ROUND_FLOOR, Decimal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from components.base.errors import PermanentError
from components.selection import quantile
from components.selection.quantile import rank, thresholds

Scores = NDArray[np.float32]

# Cosines, ties on purpose, and every oddity a float32 can be: -0.0, denormals, the largest, NaN, infinities.
odd = st.sampled_from([0.0, -0.0, 0.25, -0.25, 1e-45, -1e-45, 1e-40, 3.4028234663852886e38, float("nan"), float("inf")])
score = st.one_of(odd, st.floats(-1, 1, width=32), st.floats(width=32), st.just(float("-inf")))
columns = st.lists(score, min_size=1, max_size=60).map(lambda values: np.array(values, np.float32))
share = st.one_of(st.sampled_from([0.1, 0.3, 0.5, 0.7, 0.9, 1.0, 1e-9]), st.floats(0, 1, exclude_min=True))


def by_sorting(column: Scores, wanted: float) -> float:
    """DataComp's rule as it is written, over a full sort."""
    descending = sorted((float(x) for x in column if np.isfinite(x)), reverse=True)
    place = (Decimal(len(descending)) * Decimal(str(wanted))).to_integral_value(ROUND_FLOOR)
    return descending[min(int(place), len(descending) - 1)]


@pytest.fixture(params=[1, 7, 1 << 20], ids=lambda guess: f"guess from {guess}")
def guess(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """From how many scores the bins are guessed: small ones often miss, so that the second pass runs."""
    monkeypatch.setattr(quantile, "GUESS", request.param)
    monkeypatch.setattr(quantile, "BLOCK", min(request.param, 5))
    return int(request.param)


@pytest.mark.usefixtures("guess")
@settings(max_examples=200, deadline=None)
@given(column=columns, shares=st.lists(share, min_size=1, max_size=4, unique=True), cuts=st.sets(st.integers(0, 60)))
def test_is_what_a_full_sort_gives(column: Scores, shares: list[float], cuts: set[int]) -> None:
    pieces = np.split(column, sorted(cuts))
    if not np.isfinite(column).any():
        with pytest.raises(PermanentError, match="no finite score"):
            thresholds(lambda: pieces, shares)
        return
    found = thresholds(lambda: pieces, shares)
    assert found == {s: by_sorting(column, s) for s in shares}


@pytest.mark.usefixtures("guess")
@pytest.mark.parametrize("order", ["shuffled", "rising", "falling"])
def test_many_scores_in_any_order(order: str) -> None:
    column = np.random.default_rng(0).normal(0.2, 0.08, 20_000).astype(np.float32)
    column = {"shuffled": column, "rising": np.sort(column), "falling": np.sort(column)[::-1]}[order]
    shares = [0.1, 0.2, 0.3, 0.5, 0.75, 0.9, 1.0]
    found = thresholds(lambda: np.array_split(column, 13), shares)
    assert found == {s: by_sorting(column, s) for s in shares}


@pytest.mark.parametrize(("order", "passes"), [("shuffled", 1), ("rising", 2)])
def test_a_second_pass_only_where_the_scores_drift(order: str, passes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantile, "GUESS", 100_000)
    column = np.random.default_rng(0).normal(0.2, 0.08, 200_000).astype(np.float32)
    started = []

    def scores() -> Iterator[Scores]:
        started.append(1)
        yield from np.array_split(np.sort(column) if order == "rising" else column, 20)

    assert thresholds(scores, [0.3]) == {0.3: by_sorting(column, 0.3)}
    assert len(started) == passes


@pytest.mark.parametrize(
    ("column", "wanted", "expected"),
    [
        ([0.5], 0.3, 0.5),  # one row: ⌊0.3⌋ = 0
        ([0.5], 1.0, 0.5),  # ⌊1⌋ = 1 is past the end: n − 1
        ([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0], 0.3, 0.7),  # descending[3], so 4 are kept
        ([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0], 1.0, 0.1),
        ([0.2] * 7, 0.5, 0.2),  # all equal: all kept
        ([0.4, 0.2, 0.2, 0.2, 0.1], 0.4, 0.2),  # ties: 4 of 5 are >= it
        ([0.4, float("nan"), 0.2, float("inf"), 0.1, float("-inf")], 0.4, 0.2),  # n = 3, descending[1]
        ([-0.0, 0.0, -0.0], 0.5, 0.0),
        ([1e-45, 0.0, -1e-45], 0.4, 0.0),  # the smallest denormals differ from zero
        ([1e-45, 0.0, -1e-45], 0.1, float(np.float32(1e-45))),
    ],
)
def test_by_hand(column: list[float], wanted: float, expected: float) -> None:
    found = thresholds(lambda: [np.array(column, np.float32)], [wanted])[wanted]
    assert np.float32(found) == np.float32(expected)


def test_negative_zero_is_zero() -> None:
    found = thresholds(lambda: [np.array([-0.0, -0.0, -1.0], np.float32)], [0.5])[0.5]
    assert not np.signbit(found)
    assert not np.signbit(thresholds(lambda: [np.array([-0.0], np.float32)], [1.0])[1.0])


@pytest.mark.parametrize(
    ("n", "wanted", "expected"),
    [
        (10, 0.3, 3),
        (100, 0.29, 29),  # 100 * 0.29 is 28.999999999999996 in binary
        (100, 0.57, 57),
        (1000, 0.001, 1),
        (10**9, 0.3, 300_000_000),
        (10**9, 1e-9, 1),
        (3, 1 / 3, 0),  # as written, 0.3333333333333333 is below a third
    ],
)
def test_rank_is_of_the_share_as_written(n: int, wanted: float, expected: int) -> None:
    assert rank(n, wanted) == expected


@pytest.mark.parametrize("column", [[], [float("nan")] * 3, [float("inf")]])
def test_no_finite_score(column: list[float]) -> None:
    with pytest.raises(PermanentError, match="no finite score"):
        thresholds(lambda: [np.array(column, np.float32)], [0.3])
