"""Whatever happens in whatever order, a dump is started at most once; and once when nothing stands in the way.

The one thing left out: a Recaption that a user deletes after the operator was killed right behind its creation, and
that is gone before the operator, back again, looks at the schedule. Its finalizer makes that unlikely, not impossible.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from components.stages.discover.dumps import claim_path
from components.storage.claims import claimed_by
from pipelines.kubernetes.cluster import RECAPTIONS, SCHEDULES, Conflict
from pipelines.operator.schedule import reconcile
from pipelines.operator.schedule.decide import is_finished
from pipelines.operator.schedule.template import claimant, is_created_by
from tests.pipelines.kubernetes.api_server import Api
from tests.pipelines.operator.scheduled import JULY, MARCH, MAY, NAME, Direct, Fuse, Scheduled

LATER = [f"CC-MAIN-2026-{week:02}" for week in (8, 17, 26, 30, 34, 38)]  # the first one comes out late
OLDEST = "CC-MAIN-2026-10"
HOURS = st.sampled_from([24.0, 80.0, 5.0, 0.02])
CALLS = st.sampled_from(range(9, -1, -1))  # of a look that starts a dump eight


class Anything(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.fuse, self.api = Fuse(), Api("research")
        self.cluster = Direct(self.api, self.fuse)
        self.here = Scheduled(Path(self.folder.name), self.cluster, self.api, self.fuse)
        self.coming, self.robbed = list(LATER), set[str]()
        self.here.publish(MAY)

    @initialize(
        policy=st.sampled_from(["Forbid", "Allow", "Replace"]),
        dumps=st.sampled_from(["new", f"since {OLDEST}"]),
        deadline=st.sampled_from([None, 7200]),
        keep=st.integers(0, 2),
    )
    def create(self, policy: str, dumps: str, deadline: int | None, keep: int) -> None:
        history = {"successfulHistoryLimit": keep, "failedHistoryLimit": keep}
        self.values: dict[str, Any] = {"concurrencyPolicy": policy, "dumps": dumps, **history}
        self.values |= {"startingDeadlineSeconds": deadline} if deadline else {}
        self.here.apply(**self.values)

    @rule(hours=HOURS)
    def time_passes(self, hours: float) -> None:
        self.here.wait(hours=hours)
        self.look()

    @rule()
    def morning_comes(self) -> None:
        assert self.here.tomorrow() > 0

    @rule(calls=CALLS, tick=st.booleans())
    def operator_is_killed(self, calls: int, tick: bool) -> None:
        with self.fuse.lit(calls):
            _ = self.here.tomorrow() if tick else self.here.look()

    @precondition(lambda self: self.cluster.versions)
    @rule(back=st.integers(0, 5))
    def watch_is_late(self, back: int) -> None:
        """The operator looks at what the object was before."""
        versions = self.cluster.versions
        with suppress(Conflict):
            reconcile.reconcile(versions[-1 - min(back, len(versions) - 1)], self.here.deps)

    @precondition(lambda self: self.coming)
    @rule(which=st.integers(0, 5), shards=st.booleans())
    def dump_comes_out(self, which: int, shards: bool) -> None:
        self.here.publish(self.coming.pop(min(which, len(self.coming) - 1)), shards)

    @rule(which=st.integers(0, 5))
    def pool_is_filled(self, which: int) -> None:
        self.here.fill(self.here.dumps[min(which, len(self.here.dumps) - 1)])

    @rule(which=st.integers(0, 3), phase=st.sampled_from(["Running", "Succeeded", "Failed", "Refused"]))
    def run_goes_on(self, which: int, phase: str) -> None:
        dumps = [d for d, r in self.here.recaptions().items() if not is_finished(r)]
        if dumps:
            self.here.finish(dumps[min(which, len(dumps) - 1)], phase)

    @rule(which=st.integers(0, 3))
    def user_deletes_a_run(self, which: int) -> None:
        names = [recaption["metadata"]["name"] for recaption in self.here.recaptions().values()]
        if names:
            self.cluster.delete(RECAPTIONS, names[min(which, len(names) - 1)])

    @precondition(lambda self: not self.here.status().get("pending"))
    @rule()
    def deleted_runs_are_ended(self) -> None:
        self.here.let_go()

    @rule(days=st.sampled_from([-2, 2]))
    def clock_is_set(self, days: int) -> None:
        self.here.wait(days=days)
        self.look()

    @rule(suspend=st.sampled_from([False, False, True]))
    def user_suspends_or_resumes(self, suspend: bool) -> None:
        self.here.apply(suspend=suspend)

    @rule()
    def schedule_is_made_anew(self) -> None:
        self.cluster.delete(SCHEDULES, NAME)
        self.here.apply(**self.values)

    @precondition(lambda self: self.coming)
    @rule(which=st.integers(0, 5))
    def rival_claims(self, which: int) -> None:
        self.rob(([*self.here.dumps, *self.coming])[which])

    @precondition(lambda self: self.here.status().get("pending"))
    @rule()
    def rival_is_faster(self) -> None:
        self.rob(self.here.status()["pending"])

    def rob(self, dump: str) -> None:
        if self.here.rob(dump) == "kfp-1":
            self.robbed.add(dump)

    def look(self) -> None:
        assert self.here.look() > 0

    @invariant()
    def no_dump_is_started_twice(self) -> None:
        made = self.cluster.made
        assert len(made) == len(set(made)), made
        assert not {f"{NAME}-{dump.lower()}" for dump in self.robbed} & set(made)

    @invariant()
    def forbid_means_one(self) -> None:
        thing = self.here.object()
        if thing and thing["spec"].get("concurrencyPolicy") == "Forbid":
            active = [r for r in self.here.recaptions().values() if is_created_by(r, thing) and not is_finished(r)]
            assert len(active) <= 1

    def teardown(self) -> None:
        try:
            if self.here.object():
                self.nothing_stands_in_the_way()
        finally:
            self.folder.cleanup()

    def nothing_stands_in_the_way(self) -> None:
        self.here.apply(suspend=False)
        for dump in self.here.dumps:
            self.here.fill(dump)
        for _ in range(2 + len(self.here.dumps)):
            self.here.tomorrow()
            for dump in [d for d, r in self.here.recaptions().items() if not is_finished(r)]:
                self.here.finish(dump)
            self.here.let_go()
            self.here.look()
        self.every_wanted_dump_was_started()
        self.then_nothing_is_written()

    def every_wanted_dump_was_started(self) -> None:
        thing = self.here.object()
        assert thing is not None
        oldest = self.values["dumps"].removeprefix("since ")
        dumps = sorted(self.here.dumps, reverse=True)
        for dump in dumps[:1] if oldest == "new" else [d for d in dumps if d >= oldest]:
            holder = claimed_by(self.here.storage, claim_path(NAME, dump))
            assert holder is not None, f"{dump} was never started"
            assert holder != claimant(thing) or f"{NAME}-{dump.lower()}" in self.cluster.made, f"{dump} got lost"
        assert "pending" not in thing["status"]
        assert thing["status"]["behind"] == 0
        assert thing["status"]["active"] == []

    def then_nothing_is_written(self) -> None:
        before = self.cluster.requests.copy()
        assert self.here.look() > 0
        new = {what for what, count in self.cluster.requests.items() if count != before.get(what, 0)}
        assert new == {"list recaptions.recaption.dev"}


Anything.TestCase.settings = settings(
    max_examples=100,
    stateful_step_count=40,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow],
)
TestAnything = pytest.mark.slow(Anything.TestCase)


CALLS_OF_A_START = 8  # two to look, to name the dump, to claim it, to create, to look, to say so, an Event


def nothing(here: Scheduled) -> None:
    pass


def rival_claims(here: Scheduled) -> None:
    here.rob(MAY)


def run_ends_while_suspended(here: Scheduled) -> None:
    """The history's limit is 0: nothing is left of it."""
    here.apply(suspend=True)
    here.look()
    finish_all(here)
    here.look()
    here.let_go()
    here.look()
    here.apply(suspend=False)


def made_anew(here: Scheduled) -> None:
    here.cluster.delete(SCHEDULES, NAME)
    here.let_go()
    here.apply(**EAGER)


def another_dump_comes_out(here: Scheduled) -> None:
    here.publish(JULY)


def deadline_passes(here: Scheduled) -> None:
    here.apply(startingDeadlineSeconds=60)
    here.wait(hours=1)


def finish_all(here: Scheduled) -> None:
    for dump in [dump for dump, recaption in here.recaptions().items() if not is_finished(recaption)]:
        here.finish(dump)


EAGER: dict[str, Any] = {"dumps": "since CC-MAIN-2026-10", "successfulHistoryLimit": 0}
MEANWHILE = [nothing, rival_claims, run_ends_while_suspended, made_anew, another_dump_comes_out, deadline_passes]


@pytest.fixture
def fused(tmp_path: Path) -> tuple[Scheduled, Direct, Fuse]:
    fuse, api = Fuse(), Api("research")
    cluster = Direct(api, fuse)
    here = Scheduled(tmp_path, cluster, api, fuse)
    here.publish(MAY)
    here.apply(**EAGER)
    here.look()
    return here, cluster, fuse


@pytest.mark.parametrize("meanwhile", MEANWHILE)
@pytest.mark.parametrize("calls", range(CALLS_OF_A_START + 1))
def test_killed_at_every_call(
    fused: tuple[Scheduled, Direct, Fuse], calls: int, meanwhile: Callable[[Scheduled], None]
) -> None:
    here, cluster, fuse = fused
    with fuse.lit(calls):
        here.tomorrow()
    assert fuse.burnt == (calls < CALLS_OF_A_START)
    meanwhile(here)
    for _ in range(4):
        here.look()
        finish_all(here)
        here.look()
        here.let_go()
        here.tomorrow()
    made, holder = sorted(cluster.made), claimed_by(here.storage, claim_path(NAME, MAY))
    assert len(made) == len(set(made))
    wanted = {MARCH, MAY, *here.dumps}
    if holder != claimant(here.object() or {}):  # the rival, or a schedule that is gone, whether it came to it or not
        wanted -= {MAY}
        assert f"{NAME}-{MAY.lower()}" not in made or meanwhile is made_anew
    assert set(made) >= {f"{NAME}-{dump.lower()}" for dump in wanted}
    assert here.status()["behind"] == 0
    assert "pending" not in here.status()


def test_a_late_watch_starts_nothing_anew(fused: tuple[Scheduled, Direct, Fuse]) -> None:
    here, cluster, _ = fused
    here.tomorrow()
    finish_all(here)
    here.look()
    here.let_go()
    assert here.recaptions() == {}
    for version in list(cluster.versions):
        with suppress(Conflict):
            reconcile.reconcile(version, here.deps)
    assert any("pending" in version.get("status", {}) for version in cluster.versions)
    assert cluster.made == [f"{NAME}-{MAY.lower()}"]


def test_two_clusters_that_share_a_storage_do_a_dump_once(tmp_path: Path) -> None:
    """Whatever the names: each has got as far as to name the dump, and then both go on."""
    places = []
    for _ in range(2):
        fuse, api = Fuse(), Api("research")
        cluster = Direct(api, fuse)
        places.append((Scheduled(tmp_path, cluster, api, fuse), cluster, fuse))
    for here, _, fuse in places:
        here.apply()
        here.look()
        with fuse.lit(3):
            here.tomorrow()
        assert here.status()["pending"] == MARCH
    assert claimed_by(here.storage, claim_path(NAME, MARCH)) is None
    for here, _, _ in places:
        here.look()
    assert [cluster.made for _, cluster, _ in places] == [[f"{NAME}-{MARCH.lower()}"], []]
    assert "DumpTaken" in here.events()
    assert "pending" not in here.status()
