"""Who is looked at when."""

from __future__ import annotations

import threading
import time
from math import inf

import pytest

from pipelines.operator.runtime import queue as module
from pipelines.operator.runtime.queue import DueQueue, Key

A: Key = ("recaptions", "research", "a")
B: Key = ("recaptions", "research", "b")


def test_the_earliest_comes_first() -> None:
    queue = DueQueue()
    queue.add(A, 0.1)
    queue.add(B, 0.05)
    assert [queue.take(), queue.take()] == [B, A]


def test_added_twice_is_due_once_at_the_earlier_moment() -> None:
    queue = DueQueue()
    queue.add(A, 30)
    queue.add(A)
    queue.add(A, 20)
    assert queue.take() == A
    queue.done(A, inf)
    queue.add(B, 0.05)
    assert queue.take() == B, "A is due no more"


def test_nobody_is_looked_at_twice_at_once() -> None:
    queue = DueQueue()
    queue.add(A)
    assert queue.take() == A
    queue.add(A)
    queue.add(B, 0.05)
    assert queue.take() == B
    queue.done(A, 60)
    assert queue.take() == A, "what came meanwhile is looked at at once"


def test_failures_wait_longer_and_longer_until_one_succeeds(monkeypatch: pytest.MonkeyPatch) -> None:
    queue = DueQueue()
    waits = []
    for _ in range(10):
        queue.add(A)
        assert queue.take() == A
        waits.append(queue.failed(A))
    assert waits == [1, 2, 4, 8, 16, 32, 64, 128, 256, 300]
    queue.add(A)
    queue.take()
    queue.done(A, inf)
    queue.add(A)
    queue.take()
    assert queue.failed(A) == module.FIRST


def test_a_sleeping_taker_wakes_for_what_is_due_earlier_and_at_the_end() -> None:
    queue = DueQueue()
    queue.add(A, 60)
    found: list[Key | None] = []
    thread = threading.Thread(target=lambda: [found.append(queue.take()), found.append(queue.take())])
    thread.start()
    time.sleep(0.05)
    queue.add(B)
    while not found:
        time.sleep(0.01)
    queue.close()
    thread.join(5)
    assert found == [B, None]


def test_what_is_late_is_known() -> None:
    queue = DueQueue()
    assert (queue.overdue, queue.longest) == (0, 0)
    queue.add(A)
    time.sleep(0.05)
    assert queue.overdue >= 0.05
    queue.take()
    time.sleep(0.05)
    assert queue.overdue == 0
    assert queue.longest >= 0.05
    queue.forget(A)
    queue.done(A, inf)
    assert queue.longest == 0


def test_many_threads_take_everything_once() -> None:
    queue = DueQueue()
    keys: list[Key] = [("recaptions", "research", str(i)) for i in range(500)]
    taken: list[Key] = []

    def work() -> None:
        while key := queue.take():
            taken.append(key)
            queue.done(key, inf)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for key in keys:
        queue.add(key)
    while len(taken) < 500:
        time.sleep(0.01)
    queue.close()
    for thread in threads:
        thread.join(5)
    assert sorted(taken) == sorted(keys)


def test_a_namespace_has_its_share_of_the_workers_only() -> None:
    queue = DueQueue(share=2)
    crowd: list[Key] = [("recaptions", "crowd", str(i)) for i in range(5)]
    for key in crowd:
        queue.add(key)
    assert [queue.take(), queue.take()] == crowd[:2]
    queue.add(A)
    assert queue.take() == A, "the other namespace's is not behind the crowd"
    time.sleep(0.01)
    assert queue.overdue == 0, "no restart would mend that the crowd waits for itself"
    queue.done(crowd[0], inf)
    assert queue.take() == crowd[2]
    queue.failed(crowd[1])
    queue.done(A, inf)
    queue.done(crowd[2], inf)
    assert {queue.take(), queue.take()} == {*crowd[3:]}


def test_a_taker_that_waits_for_a_crowded_namespace_sleeps_until_there_is_room() -> None:
    queue = DueQueue(share=1)
    queue.add(A)
    queue.add(B)
    assert queue.take() == A
    found: list[Key | None] = []
    thread = threading.Thread(target=lambda: found.append(queue.take()))
    thread.start()
    time.sleep(0.05)
    assert not found
    queue.done(A, inf)
    thread.join(5)
    assert found == [B]
