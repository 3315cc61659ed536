"""What hours come to at the prices of a recipe, and that a price decides no result."""

from __future__ import annotations

import pytest

from components.recipe.costs import CORE, GPU, Bill, Work, bill, predicted, read_work, spent


def test_hours_are_of_all_devices_that_a_worker_holds() -> None:
    work = {"a100": Work(1800, 90, 4, GPU), "cores": Work(3600, 10, 2, CORE)}
    assert bill({"a100": 2.5, "cores": 0.1}, [work]) == Bill(2.0, 2.0, pytest.approx(5.2), True)


@pytest.mark.parametrize(
    ("prices", "money", "is_whole"),
    [({}, None, True), ({"a": 2.0}, 2.0, False), ({"a": 2.0, "b": 3.0}, 5.0, True), ({"other": 1.0}, None, True)],
)
def test_hours_without_a_price_are_told_as_such(prices: dict[str, float], money: float | None, is_whole: bool) -> None:
    hour = Work(3600, 1, 1, GPU)
    found = bill(prices, [{"a": hour}, {"b": hour}])
    assert (found.gpu_hours, found.money, found.is_whole) == (2.0, money, is_whole)
    assert str(found).endswith(" and more") == (not is_whole)


def test_a_stage_without_a_rate_makes_a_prediction_a_lower_bound() -> None:
    status = {"predicted": {"caption:blip2": {"a": Work(7200, 5, 1, GPU).to_json()}, "evaluate": None}}
    assert str(predicted({"a": 1.5}, status)) == "2.00 GPU-hours, cost 3.00 and more"
    assert predicted({}, {}) is None


def test_spent_adds_up_all_stages() -> None:
    hour = {"a": Work(3600, 1, 2, GPU).to_json()}
    assert spent({}, {"stages": {"embed": {"work": hour}, "caption:x": {"work": hour}, "mix": {}}}).gpu_hours == 4.0


@pytest.mark.parametrize(
    "value", [{"seconds": "NaN"}, {"seconds": -1}, {"unit": "TPU"}, {"devices": None}, {"samples": 1e300}]
)
def test_work_that_is_none_is_refused(value: dict[str, object]) -> None:
    with pytest.raises((ValueError, TypeError)):
        read_work({"a": {**Work(1, 1, 1, GPU).to_json(), **value}})
