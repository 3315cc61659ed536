"""The operator killed at every step: nothing doubles, nothing stays.

A kill is tried after each call that changes something; one between two of those leaves the same deps behind.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from components.base.errors import TemporaryError
from pipelines.operator.recaption.attempt import RETRY
from pipelines.operator.recaption.endings import PAUSES
from pipelines.operator.runtime.dependencies import Dependencies
from tests.pipelines.operator.place import Place, place
from tests.pipelines.operator.recaption.test_restarts import Clock

CALLS = {
    *("create", "patch", "delete"),  # of the cluster and of the storage
    *("terminate", "retry", "submit"),  # of KFP
}


class Killed(BaseException):
    """SIGKILL."""


class Killing:
    """Passes everything on, up to the so manieth change."""

    def __init__(self, at: int) -> None:
        self.left, self.calls = at, 0

    def wrap(self, inner: Any) -> Any:
        return _Proxy(inner, self)

    def call(self, method: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        self.calls += 1
        self.left -= 1
        found = method(*arguments, **named)
        if self.left == 0:
            raise Killed
        return found


class _Proxy:
    def __init__(self, inner: Any, killing: Killing) -> None:
        self._inner, self._killing = inner, killing

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._inner, name)
        if name == "within":
            return lambda namespace: _Proxy(found(namespace), self._killing)
        if name not in CALLS:
            return found
        return lambda *arguments, **named: self._killing.call(found, *arguments, **named)


def killed_world(deps: Dependencies, killing: Killing) -> Dependencies:
    class Storages(dict[str, Any]):
        def __getitem__(self, uri: str) -> Any:
            return killing.wrap(super().__getitem__(uri))

    return dataclasses.replace(
        deps, cluster=killing.wrap(deps.cluster), kfp=killing.wrap(deps.kfp), storages=Storages(deps.storages)
    )


def life(here: Place, deps: Dependencies, clock: Clock) -> None:
    """Start, suspend, resume, have bad luck, fail, start again, edit, finish, delete: each as the operator sees it."""

    def steady() -> None:
        for _ in range(4):
            here.look(deps=deps)
            here.play()
        here.look(deps=deps)

    here.apply()
    steady()
    here.left_over("first")
    here.apply(suspend=True)
    steady()
    assert here.phase() == "Suspended"
    here.apply(suspend=False)
    steady()
    here.ends("embed", TemporaryError("the network is down"))
    here.finish("FAILED")
    steady()
    assert here.phase() == "Pending"
    clock.later(PAUSES[0])
    steady()
    assert here.phase() == "Running"
    here.finish("FAILED")
    steady()
    assert here.phase() == "Failed"
    here.apply(annotations={RETRY: "1"})
    steady()
    here.left_over("second")
    here.apply(annotations={RETRY: "1"}, mixtures=[{"name": "other", "rules": [{"text": "raw"}]}])
    steady()
    here.finish()
    steady()
    assert here.phase() == "Succeeded"
    here.left_over("third")
    here.delete()
    steady()


def restarted(here: Place, killing: Killing) -> Callable[..., float]:
    """`look` that survives its operator's death: the next operator takes over."""
    look = here.look

    def looked(name: str = "test", deps: Dependencies | None = None, turns: int = 20) -> float:
        try:
            return look(name, deps, turns)
        except Killed:
            return look(name, here.deps, turns)

    return looked


def check(here: Place) -> None:
    assert here.object() is None
    names = Counter(run["display_name"] for run in here.runs())
    assert sorted(name[-1] for name in names) == ["1", "2", "3", "4"]
    assert set(names.values()) == {1}, "a KFP run was made twice"
    assert [run["state"] for run in here.runs()] == ["FAILED", "FAILED", "FAILED", "SUCCEEDED"]
    assert here.jobs() == ["third"], "what a finished run has was put away when it finished"


def whole(folder: Path, at: int) -> int:
    """The life with a kill after the so manieth change; how many there were."""
    with place(folder) as here:
        here.deps.storage(str(folder / "storage"))
        killing = Killing(at)
        here.look = restarted(here, killing)  # type: ignore[method-assign]
        clock = Clock(here)
        life(here, killed_world(here.deps, killing), clock)
        check(here)
        return killing.calls


@pytest.mark.slow
def test_with_a_kill_after_every_change(tmp_path: Path) -> None:
    changes = whole(tmp_path / "0", 0)
    assert changes > 40
    for at in range(1, changes + 1):
        whole(tmp_path / str(at), at)
