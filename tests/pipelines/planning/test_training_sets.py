"""What the training sets take, before there are any."""

from __future__ import annotations

import pytest
import yaml

from components.recipe.mixtures import Mixture
from pipelines.planning.training_sets import lines_of, share_of


def mixture(text: str) -> Mixture:
    return Mixture.model_validate(yaml.safe_load(text), by_alias=True)


ALL = "{name: all, rules: [{text: raw}]}"
TOP = "{name: top, rules: [{text: raw, where: [{score: raw, top: 0.3}, {score: l14, top: 0.5}]}]}"
SAME = "{name: same, rules: [{text: raw, where: [{score: raw, top: 0.3}, {score: l14, top: 0.5}]}]}"
FIRST = "{name: first, rules: [{text: raw, where: [{score: raw, top: 0.3}]}, {text: blip}]}"
TWICE = "{name: twice, emit: all, rules: [{text: raw, where: [{score: raw, top: 0.3}]}, {text: blip}]}"
NUMBER = "{name: number, rules: [{text: raw, where: [{score: raw, atLeast: 0.28}, {flag: english}]}]}"


@pytest.mark.parametrize(
    ("rules", "share"), [(ALL, 1.0), (TOP, 0.3), (FIRST, 1.0), (TWICE, 1.3), (NUMBER, 1.0)], ids=str
)
def test_the_share_of_the_pool_that_a_mixture_takes_at_most(rules: str, share: float) -> None:
    assert share_of(mixture(rules)) == pytest.approx(share)


def test_each_training_set_and_all_of_them_in_bytes() -> None:
    assert list(lines_of([mixture(ALL), mixture(TOP), mixture(SAME), mixture(TWICE)], 1e12)) == [
        "training sets: 4, at most 2.6 TB in all",  # those of the same rules are one
        "training set all: at most 1.0 TB, 100 % of the pool's tars",
        "training set top: at most 300.0 GB, 30 % of the pool's tars",
        "training set same: at most 300.0 GB, 30 % of the pool's tars",
        "training set twice: at most 1.3 TB, 130 % of the pool's tars",
    ]
    assert list(lines_of([mixture(TOP)], 1e12)) == ["training sets: 1, at most 300.0 GB"]
    assert list(lines_of([mixture(TOP)], None)) == ["training sets: 1"]
