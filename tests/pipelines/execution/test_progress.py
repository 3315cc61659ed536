"""Rate and time left of long work."""

from __future__ import annotations

import logging

import pytest

from pipelines.execution import progress
from pipelines.execution.progress import Progress


class Clock:
    now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr(progress, "time", found)
    return found


def test_time_left_counts_only_shards_that_took_time(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO), Progress("embed", 10) as bar:
        bar.add(0, 4)  # done before: skipped within no time
        clock.now += 6
        bar.add(300, 0)
        clock.now += 6
        bar.add(300, 0)
        assert caplog.messages == ["embed: 4 of 10 shards, 600 samples, 50 samples/s"]
        bar.add(0, 1)
        clock.now += 12
        bar.add(600, 0)
        bar.add(0, 1)
    assert caplog.messages[-1] == "embed: 6 of 10 shards, 1,200 samples, 50 samples/s, about 0:00:48 left"


def test_nothing_to_do(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO), Progress("embed", 2) as bar:
        bar.add(0, 2)
    assert caplog.messages == ["embed: 2 of 2 shards, 0 samples"]


def test_a_slow_rate_has_a_decimal(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO), Progress("caption:blip", 1) as bar:
        clock.now += 40
        bar.add(30, 1)
    assert caplog.messages[-1] == "caption:blip: 1 of 1 shards, 30 samples, 0.8 samples/s"


def test_candidates_are_no_samples(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO), Progress("download", 1, counts="candidates") as bar:
        clock.now += 10
        bar.add(300, 0)
    assert caplog.messages[-1] == "download: 0 of 1 shards, 300 candidates, 30 candidates/s"


def test_a_failure_is_not_told_as_progress(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO), pytest.raises(ValueError, match="x"), Progress("embed", 2):
        raise ValueError("x")
    assert not caplog.messages


def test_a_childs_progress_is_its_parents(
    clock: Clock, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(progress.RELAY, "1")
    with Progress("embed", 4) as child:
        child.add(0, 1)
        clock.now += 1
        child.add(10, 0)
        child.add(5, 1)
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["progress 10 1", "progress 5 1"]
    monkeypatch.delenv(progress.RELAY)
    with caplog.at_level(logging.INFO), Progress("embed", 8) as parent:
        assert [parent.take(line + "\n") for line in [*lines, "2026 WARNING something else"]] == [True, True, False]
    assert caplog.messages[-1].startswith("embed: 2 of 8 shards, 15 samples")
