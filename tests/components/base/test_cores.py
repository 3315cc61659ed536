"""Cores that a process may use: a container's request, else what the scheduler grants."""

from __future__ import annotations

import os

import pytest

from components.base.cores import cores
from components.base.errors import PermanentError
from components.engine.decoding import Decoders


def test_a_pod_has_the_cores_that_it_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RECAPTION_CORES", "3")
    assert cores() == Decoders(None).count == 3
    assert Decoders(0).count == 0


def test_another_process_has_those_that_it_may_run_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 96)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {4, 5}, raising=False)
    monkeypatch.delenv("RECAPTION_CORES", raising=False)
    assert cores() == 2
    monkeypatch.setenv("RECAPTION_CORES", "0")  # of a pod that requests none
    assert cores() == 2
    monkeypatch.delattr(os, "sched_getaffinity")  # macOS
    assert cores() == 96


@pytest.mark.parametrize("text", ["", "two", "-1", "1.5"])
def test_what_is_no_number_of_cores_is_refused(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RECAPTION_CORES", text)
    with pytest.raises(PermanentError, match=f"RECAPTION_CORES: got {text!r}, expected a whole number of cores"):
        cores()
