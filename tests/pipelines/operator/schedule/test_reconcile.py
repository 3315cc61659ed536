"""A schedule as a user sees it: over HTTP against the stand-in API server, with real folders for index and storage."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from math import inf
from pathlib import Path

import pytest
from kubernetes import client

from components.base.errors import PermanentError, TemporaryError
from components.base.guard import Guard
from components.pool import shards
from components.stages.discover import dumps
from components.storage.interface import Entry
from pipelines.kubeflow import steps
from pipelines.kubeflow.parameters import NOT_HERE, parameters
from pipelines.kubeflow.steps import ExecutorInput
from pipelines.kubernetes.cluster import RECAPTIONS, SCHEDULES, Cluster
from pipelines.operator.recaption.attempt import recipe_of
from pipelines.operator.runtime.dump_lists import DumpLists
from pipelines.operator.runtime.tenants import Tenants
from pipelines.operator.schedule.decide import OFTEN, SOON
from tests.components.stages.discover.test_dumps import NEWEST_FIRST, index
from tests.pipelines.kubernetes.api_server import api_server
from tests.pipelines.operator.scheduled import JULY, MARCH, MAY, NAME, Scheduled
from tests.pools import sample, write_tar

NAMESPACE = "research"


@pytest.fixture(autouse=True)
def _no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dumps, "PAUSE", 0.01)


@pytest.fixture
def loopback_is_public(monkeypatch: pytest.MonkeyPatch) -> None:
    """The operator reads no index at a private address; here an index on loopback stands for a public one."""
    monkeypatch.setattr(Guard, "refusal", lambda *_: None)


@pytest.fixture
def here(tmp_path: Path) -> Iterator[Scheduled]:
    with api_server(NAMESPACE) as (api, address):
        configuration = client.Configuration(host=address)
        configuration.retries = False
        cluster = Cluster(client.ApiClient(configuration), NAMESPACE, outage=0.2)
        yield Scheduled(tmp_path, cluster, api)
        cluster.client.rest_client.pool_manager.clear()
        cluster.client.close()


def started(here: Scheduled) -> list[str]:
    return [dump.upper() for dump in here.recaptions()]


def test_from_apply_to_the_first_run(here: Scheduled) -> None:
    here.apply()
    assert here.look() == OFTEN
    assert (here.reason(), here.status()["behind"], started(here)) == ("Waiting", 1, [])
    assert here.status()["nextScheduleTime"] == "2026-08-03T06:00:00Z"
    here.wait(minutes=59, seconds=30)
    assert here.look() == 30
    here.wait(seconds=30)
    here.look()
    assert started(here) == [MARCH]
    assert here.reason() == "Started"
    status = here.status()
    assert (status["lastDump"], status["behind"]) == (MARCH, 0)
    assert status["active"] == [f"{NAME}-{MARCH.lower()}"]
    assert status["lastScheduleTime"] == "2026-08-03T06:00:00Z"
    assert status["nextScheduleTime"] == "2026-08-04T06:00:00Z"
    assert here.events() == ["Valid", "Listed", "Waiting", "Started"]
    claim = json.loads((here.folder / f"storage/schedules/{NAME}/{MARCH}.json").read_text())
    uid = (here.object() or {})["metadata"]["uid"]
    assert claim == {"by": f"recaption/{NAMESPACE}/{NAME}/{uid}"}


def test_a_dump_is_done_once_and_the_next_one_when_it_comes_out(here: Scheduled) -> None:
    here.apply()
    here.tomorrow()
    here.finish(MARCH)
    here.tomorrow()
    assert (started(here), here.reason()) == ([MARCH], "UpToDate")
    assert here.status()["active"] == []
    here.publish(MAY)
    here.publish(JULY)
    here.tomorrow()
    assert started(here) == [MARCH, JULY]  # `new` is the newest only


def test_since_does_all_the_newest_first_one_a_tick(here: Scheduled) -> None:
    here.publish(MAY)
    here.publish(JULY)
    here.apply(dumps=f"since {MAY}")
    here.look()
    assert here.status()["behind"] == 2
    for dump, behind in ((JULY, 1), (MAY, 0)):
        here.tomorrow()
        assert (started(here)[-1], here.status()["behind"]) == (dump, behind)
        here.finish(dump)
    here.tomorrow()
    assert here.reason() == "UpToDate"
    assert started(here) == [JULY, MAY]


def test_missed_mornings_are_made_up_for_once(here: Scheduled) -> None:
    here.publish(MAY)
    here.apply(dumps=f"since {MARCH}", concurrencyPolicy="Allow")
    here.look()
    here.wait(days=9)
    here.look()
    here.look()
    assert started(here) == [MAY]
    assert here.status()["lastScheduleTime"] == "2026-08-11T06:00:00Z"


def test_a_morning_that_is_too_long_ago_is_given_up(here: Scheduled) -> None:
    here.apply(startingDeadlineSeconds=3600)
    here.look()
    here.wait(hours=3)
    here.look()
    assert (started(here), here.reason()) == ([], "MissedDeadline")
    assert here.message() == "nothing could be started for 2026-08-03T06:00:00Z within 3600 s (startingDeadlineSeconds)"
    here.tomorrow()
    assert (started(here), here.reason()) == ([MARCH], "Started")
    assert here.events().count("MissedDeadline") == 1


def test_suspended_nothing_starts_and_resumed_one_does(here: Scheduled) -> None:
    here.apply(suspend=True)
    assert here.look() == inf
    for _ in range(3):
        here.tomorrow()
    assert (started(here), here.reason()) == ([], "Suspended")
    here.apply(suspend=False)
    here.look()
    assert (started(here), here.reason()) == ([MARCH], "Started")


def test_forbid_waits_until_the_run_is_finished(here: Scheduled) -> None:
    here.apply()
    here.tomorrow()
    here.publish(MAY)
    here.tomorrow()
    assert (started(here), here.reason(), here.status()["behind"]) == ([MARCH], "StillRunning", 1)
    assert "StillRunning" in here.events()
    here.wait(hours=5)
    here.finish(MARCH, "Failed")
    here.look()
    assert started(here) == [MARCH, MAY]


def test_allow_does_not_wait(here: Scheduled) -> None:
    here.apply(concurrencyPolicy="Allow")
    here.tomorrow()
    here.publish(MAY)
    here.tomorrow()
    assert started(here) == [MARCH, MAY]
    assert len(here.status()["active"]) == 2


def test_replace_ends_what_runs_only_for_another_dump(here: Scheduled) -> None:
    here.apply(concurrencyPolicy="Replace")
    here.tomorrow()
    here.tomorrow()
    assert "deletionTimestamp" not in here.recaptions()[MARCH.lower()]["metadata"]
    here.publish(MAY)
    here.tomorrow()
    assert "deletionTimestamp" in here.recaptions()[MARCH.lower()]["metadata"]  # its finalizer ends its KFP run
    assert started(here) == [MARCH, MAY]
    here.let_go()
    here.look()
    assert here.status()["active"] == [f"{NAME}-{MAY.lower()}"]
    assert "Replaced" in here.events()


def test_a_dump_without_shards_is_not_claimed(here: Scheduled) -> None:
    here.publish(MAY, shards=False)
    here.apply()
    here.tomorrow()
    assert (started(here), here.reason()) == ([], "NotReady")
    assert here.message() == f"dump {MAY}: nothing in {here.folder}/{MAY} yet; checked again next time"
    assert list((here.folder / "storage").rglob("*")) == []
    here.fill(MAY)
    here.look()
    assert started(here) == []
    here.tomorrow()
    assert started(here) == [MAY]


def test_a_bucket_of_other_things_is_not_listed_to_its_end(here: Scheduled, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a recipe names: Common Crawl's own bucket has hundreds of thousands of objects of a dump."""

    class Endless:
        def list(self) -> Iterator[Entry]:
            yield from (Entry(f"{i}.warc.gz", 1) for i in count())

    monkeypatch.setattr(shards, "open_storage", lambda _: Endless())
    here.apply()
    here.tomorrow()
    assert (started(here), here.reason()) == ([], "NotReady")


def test_the_tables_of_a_dump_are_waited_for(here: Scheduled) -> None:
    here.apply(template={"spec": here.template(pool={"name": "cc-{dump}", "urls": f"{here.folder}/{{dump}}.parquet"})})
    here.tomorrow()
    assert (started(here), here.reason()) == ([], "NotReady")
    assert here.message() == f"dump {MARCH}: nothing in {here.folder}/{MARCH}.parquet yet; checked again next time"
    (here.folder / f"{MARCH}.parquet").touch()
    here.tomorrow()
    assert started(here) == [MARCH]


def test_a_dump_that_is_listed_is_ready(here: Scheduled) -> None:
    """The dump itself is the pool: nobody has to fill a folder first."""
    here.publish(MAY, shards=False)
    crawl = {"dump": "{dump}", "sample": 100}
    download = {"contact": "https://example.org/crawler", "retry": ["transient"]}
    spec = here.template(pool={"name": "cc-{dump}", "commonCrawl": crawl}, download=download)
    here.apply(template={"spec": spec})
    here.tomorrow()
    assert (started(here), here.reason()) == ([MAY], "Started")
    made = here.recaptions()[MAY.lower()]["spec"]
    assert made["pool"] == {"name": f"cc-{MAY.lower()}", "commonCrawl": {"dump": MAY, "sample": 100}}
    assert made["download"] == download
    recipe = recipe_of(here.recaptions()[MAY.lower()], Tenants())
    assert recipe.spec.pool.common_crawl
    assert recipe.spec.pool.common_crawl.dump == MAY


def test_private_networks_are_refused_whatever_the_crd_says(here: Scheduled) -> None:
    pool = {"name": "cc-{dump}", "commonCrawl": {"dump": "{dump}"}}
    spec = here.template(pool=pool, download={"allowNetworks": ["10.0.0.0/8"]})
    here.apply(template={"spec": spec})
    here.tomorrow()
    assert (started(here), here.reason("Accepted")) == ([], "Invalid")
    assert here.message("Accepted") == f"spec.template.spec.download.allowNetworks: {NOT_HERE}"


def test_an_older_dump_whose_shards_are_there_goes_first(here: Scheduled) -> None:
    here.publish(MAY, shards=False)
    here.apply(dumps=f"since {MARCH}", concurrencyPolicy="Allow")
    here.tomorrow()
    here.tomorrow()
    assert (started(here), here.reason(), here.status()["behind"]) == ([MARCH], "NotReady", 1)


def test_the_history_keeps_what_it_is_told_to(here: Scheduled) -> None:
    here.apply(dumps=f"since {MARCH}", successfulHistoryLimit=1, failedHistoryLimit=0)
    for dump, phase in ((MARCH, "Succeeded"), (MAY, "Succeeded"), (JULY, "Refused")):
        if dump != MARCH:
            here.publish(dump)
        here.tomorrow()
        here.finish(dump, phase)
        here.look()
        here.let_go()
    assert started(here) == [MAY]
    here.tomorrow()
    assert here.reason() == "UpToDate"  # what is deleted is still done


def test_a_schedule_made_anew_does_nothing_twice(here: Scheduled) -> None:
    here.apply()
    here.tomorrow()
    here.cluster.delete(SCHEDULES, NAME)
    assert "deletionTimestamp" in here.recaptions()[MARCH.lower()]["metadata"]
    here.let_go()
    assert started(here) == []
    here.apply()
    here.tomorrow()
    assert (started(here), here.reason()) == ([], "UpToDate")
    here.publish(MAY)
    here.tomorrow()
    assert started(here) == [MAY]


def test_while_a_schedule_is_being_deleted_nothing_is_done(here: Scheduled) -> None:
    here.apply()
    here.cluster.patch(SCHEDULES, NAME, {"metadata": {"finalizers": ["foregroundDeletion"]}})
    here.cluster.delete(SCHEDULES, NAME)
    assert here.tomorrow() == inf
    assert (started(here), here.status()) == ([], {})


def plan_step(here: Scheduled, kfp_run: str) -> tuple[bool, str]:
    """The first node of KFP's own recurring run of the same name: whether it has a dump to do; else why not."""
    recipe = {**(here.object() or {})["spec"]["template"], "metadata": {"name": "weekly"}}
    recipe |= {"apiVersion": "recaption.dev/v1alpha1", "kind": "Recaption"}
    values = {p.name: p.default for p in parameters()} | {"recipe": json.dumps(recipe), "kfp_run": kfp_run}
    values |= {"schedule": NAME, "dumps": str(here.folder)}
    files = {n: {"outputFile": str(here.folder / "kfp" / kfp_run / n)} for n in ("run", "claimant", "mine", "reason")}
    whole = {"inputs": {"parameterValues": values}, "outputs": {"parameters": files}}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RECAPTION_LAUNCHER", "local")  # so that it takes a folder as storage
        steps.plan(ExecutorInput.parse(json.dumps(whole)))
    read = {name: Path(file["outputFile"]).read_text() for name, file in files.items()}
    return json.loads(read["mine"]), read["reason"]


def test_a_recurring_run_of_kfp_of_the_same_name_shares_the_dumps(here: Scheduled) -> None:
    for dump in (MARCH, MAY):
        write_tar(here.folder / dump / "00000000.tar", {"0": sample(0)})
    here.apply()
    here.tomorrow()
    assert plan_step(here, "kfp-1") == (False, f"schedule {NAME} has done {MARCH}, the newest dump")
    here.finish(MARCH)
    here.publish(MAY)
    assert plan_step(here, "kfp-2") == (True, "")
    here.tomorrow()
    assert (started(here), here.reason(), here.status()["behind"]) == ([MARCH], "UpToDate", 0)


def test_an_index_at_a_private_address_is_not_asked(here: Scheduled) -> None:
    with index(200) as (url, asked):
        here.apply(index=url)
        here.wait(hours=1, seconds=1)
        here.look()
        assert "no public address" in here.message("DumpsListed")
    assert asked == []


@pytest.mark.usefixtures("loopback_is_public")
def test_an_outage_of_the_index_is_a_condition(here: Scheduled) -> None:
    with index(503) as (url, asked):
        here.apply(index=url)
        here.wait(hours=1, seconds=1)
        assert here.look() == SOON
        assert here.reason("DumpsListed") == "Unreachable"
        assert "503" in here.message("DumpsListed")
        assert len(asked) == dumps.ATTEMPTS
        writes = here.api.requests["patch recaptionschedules"]
        here.wait(minutes=5)
        assert here.look() == 300
        assert here.api.requests["patch recaptionschedules"] == writes
        assert "lastScheduleTime" not in here.status()
    here.apply(index=str(here.folder))
    here.look()
    assert (here.reason("DumpsListed"), started(here)) == ("Listed", [MARCH])


@pytest.mark.parametrize(("listed", "message"), [
    ("[]", "found none; expected ids such as CC-MAIN-2026-43"),
    ("<html>", "expected a JSON list of objects with `id`"),
])  # fmt: skip
def test_an_index_that_is_none(here: Scheduled, listed: str, message: str) -> None:
    (here.folder / "collinfo.json").write_text(listed)
    here.apply()
    here.tomorrow()
    assert here.reason("DumpsListed") == "NoList"
    assert message in here.message("DumpsListed")


def test_a_storage_that_refuses_is_a_condition(here: Scheduled) -> None:
    (here.folder / "storage").write_text("a file, no folder")
    here.apply()
    assert here.tomorrow() == SOON
    assert (here.reason(), started(here)) == ("StorageRefused", [])
    (here.folder / "storage").unlink()
    here.look()
    assert (here.reason(), started(here)) == ("Started", [MARCH])


def test_a_name_that_is_taken_waits_until_it_is_free(here: Scheduled) -> None:
    name = f"{NAME}-{MARCH.lower()}"
    made = {"apiVersion": "recaption.dev/v1alpha1", "kind": "Recaption", "metadata": {"name": name}}
    here.cluster.create(RECAPTIONS, {**made, "spec": {}})
    here.apply()
    here.tomorrow()
    assert here.reason() == "NameTaken"
    assert here.status()["pending"] == MARCH
    here.cluster.delete(RECAPTIONS, name)
    here.look()
    assert (here.reason(), started(here)) == ("Started", [MARCH])
    assert "pending" not in here.status()


def test_a_refusal_of_the_api_server_is_a_condition(here: Scheduled) -> None:
    here.api.forbidden.add(("create", "recaptions"))
    here.apply()
    assert here.tomorrow() == SOON
    assert here.reason() == "Refused"
    assert "may not create recaptions.recaption.dev" in here.message()
    here.api.forbidden.clear()
    here.look()
    assert (here.reason(), started(here)) == ("Started", [MARCH])


def test_an_invalid_one_says_why_and_is_left_alone(here: Scheduled) -> None:
    here.apply(timeZone="Mars/Olympus")
    assert here.look() == inf
    assert here.reason("Accepted") == "Invalid"
    requests = here.api.requests.copy()
    here.tomorrow()
    assert here.api.requests - requests == {"list recaptions": 1}
    here.apply(timeZone="Europe/Zurich")
    here.look()
    assert here.reason("Accepted") == "Valid"
    assert here.status()["nextScheduleTime"] == "2026-08-04T04:00:00Z"
    here.wait(hours=22)
    here.look()
    assert started(here) == [MARCH]


@pytest.mark.usefixtures("loopback_is_public")
def test_looks_between_the_ticks_are_cheap(here: Scheduled) -> None:
    """One list of its Recaptions; neither index nor storage is asked."""
    with index(200) as (url, asked):
        here.apply(index=url, dumps="since CC-MAIN-2099-01")
        here.tomorrow()
        before, requests = len(asked), here.api.requests.copy()
        for _ in range(5):
            here.wait(hours=1)
            here.look()
        assert len(asked) == before == 1
        assert here.api.requests - requests == {"list recaptions": 5}


@pytest.mark.usefixtures("loopback_is_public")
def test_an_answer_serves_all_who_ask_within_a_minute() -> None:
    with index(200) as (url, asked):
        lists = DumpLists()
        assert [lists.get(url) for _ in range(3)] == [NEWEST_FIRST] * 3
        assert len(asked) == 1
        fresh = DumpLists(kept=0.0)
        assert [fresh.get(url) for _ in range(2)] == [NEWEST_FIRST] * 2
        assert len(asked) == 3
    with index(404) as (url, asked):
        for _ in range(3):
            with pytest.raises(PermanentError, match="404"):
                lists.get(url)
        assert len(asked) == 1


def test_one_waits_for_the_index_and_the_others_come_back_later(
    here: Scheduled, monkeypatch: pytest.MonkeyPatch
) -> None:
    asking, answered = threading.Event(), threading.Event()

    def slow(index: str) -> list[str]:
        asking.set()
        assert answered.wait(20)
        raise TemporaryError(f"dumps {index}: timed out, after 4 attempts")

    monkeypatch.setattr("pipelines.operator.runtime.dump_lists.list_dumps", slow)
    here.deps.dumps = DumpLists()
    here.apply("one")
    here.apply("two")
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(here.look, "one")
        assert asking.wait(20)
        assert here.look("two") == 5
        assert here.status("two") == {}
        answered.set()
        assert first.result(20) == SOON
    assert here.look("two") == SOON
    assert [c["reason"] for c in here.status("two")["conditions"]] == ["Valid", "Unreachable"]
