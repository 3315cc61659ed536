"""A bounded run of the hostile inputs, the same ones every time; `make fuzz` tries others."""

from __future__ import annotations

import pytest

from tests.fuzz.kinds import KINDS
from tests.fuzz.limits import Broken, run_cases

FEW = {"scans": 3, "server": 10, "shard": 60, "parquet": 60, "html": 60}
CASES = 100


@pytest.mark.slow
@pytest.mark.parametrize("kind", list(KINDS))
def test_hostile_inputs(kind: str) -> None:
    run_cases(kind, KINDS[kind], 1, range(FEW.get(kind, CASES)))


def test_a_case_that_misbehaves_says_how_to_run_it_again() -> None:
    def case(*_: object) -> None:
        raise KeyError("uid")

    with pytest.raises(Broken, match=r"KeyError: 'uid'; run it again: python -m tests.fuzz shard --seed 7 --first 3"):
        run_cases("shard", case, 7, range(3, 9))
