"""The entry points of KFP's own nodes: plan and claim, a schedule's dumps, what the exit step leaves."""

from __future__ import annotations

import gzip
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from components.base.errors import PermanentError, TemporaryError, Terminated
from components.pool.run import load_run
from pipelines.kubeflow import step_retry, steps
from pipelines.kubeflow.parameters import IN_A_BUCKET, NOT_HERE, parameters
from pipelines.kubeflow.steps import ExecutorInput, markdown, metrics
from tests.pools import sample, write_tar

OUTPUTS = ("run", "claimant", "mine", "reason")
NEWEST, OLDER = "CC-MAIN-2026-43", "CC-MAIN-2026-38"


class Place:
    """A storage, pools, an index of dumps, and calls of the steps as KFP makes them."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.storage, self.calls = folder, folder / "storage", 0
        self.ended: list[str] = []
        self.cleanup_exits = 0
        self.pool("pool")
        self.index(OLDER)

    def pool(self, name: str) -> None:
        write_tar(self.folder / name / "00000000.tar", {"0": sample(0)})

    def index(self, *dumps: str) -> None:
        (self.folder / "collinfo.json").write_text(json.dumps([{"id": dump} for dump in dumps]))

    def crawl(self, dump: str) -> None:
        """In the mirror that the folder is."""
        folder = self.folder / "crawl-data" / dump
        folder.mkdir(parents=True)
        (folder / "wat.paths.gz").write_bytes(gzip.compress(f"{dump}/0.wat.gz\n{dump}/1.wat.gz\n".encode()))

    def crawled(self, dump: str = "latest", **spec: Any) -> str:
        crawl = {"dump": dump, "sample": 1, "base": str(self.folder), "index": str(self.folder)}
        whole = yaml.safe_load(self.recipe(name="cc-{dump}" if dump == "{dump}" else "cc"))
        del whole["spec"]["pool"]["shards"]
        whole["spec"]["pool"]["commonCrawl"] = crawl
        return yaml.safe_dump({**whole, "spec": {**whole["spec"], **spec}})

    def recipe(self, **pool: str) -> str:
        return yaml.safe_dump({
            "apiVersion": "recaption.dev/v1alpha1",
            "kind": "Recaption",
            "metadata": {"name": "test"},
            "spec": {
                "storage": str(self.storage),
                "pool": {"name": "pool", "shards": str(self.folder / "pool"), **pool},
                "mixtures": [{"name": "raw", "rules": [{"text": "raw"}]}],
            },
        })  # fmt: skip

    def given(self, kfp_run: str, **values: Any) -> ExecutorInput:
        whole = {p.name: p.default for p in parameters()} | {"recipe": self.recipe(), "kfp_run": kfp_run} | values
        self.calls += 1
        files = {n: {"outputFile": str(self.folder / f"kfp/{self.calls}/{n}")} for n in OUTPUTS}
        return ExecutorInput.parse(json.dumps({"inputs": {"parameterValues": whole}, "outputs": {"parameters": files}}))

    def plan(self, kfp_run: str, **values: Any) -> tuple[str, bool, str]:
        given = self.given(kfp_run, **values)
        steps.plan(given)
        run, by, mine, reason = (Path(v["outputFile"]).read_text() for v in given.outputs["parameters"].values())
        assert by == (values.get("claim") or kfp_run)
        return run, json.loads(mine), reason

    def scheduled(self, kfp_run: str, **values: Any) -> tuple[str, bool, str]:
        recipe = self.recipe(name="cc-{dump}", shards=str(self.folder / "{dump}"))
        return self.plan(kfp_run, **{"recipe": recipe, "schedule": "weekly", "dumps": str(self.folder), **values})

    def cleanup(self, kfp_run: str, **values: Any) -> None:
        steps.cleanup(self.given(kfp_run, **values))


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    place = Place(tmp_path)
    monkeypatch.setenv("RECAPTION_LAUNCHER", "local")  # so that a folder may be the storage

    def run(command: list[str], check: bool) -> SimpleNamespace:
        place.ended.append(command[-1])
        return SimpleNamespace(returncode=place.cleanup_exits)

    monkeypatch.setattr(step_retry, "subprocess", SimpleNamespace(run=run))
    monkeypatch.setattr(step_retry, "PAUSES", (0.0,))
    return place


def test_the_first_one_executes_and_a_second_one_ends_having_done_nothing(place: Place) -> None:
    run, mine, reason = place.plan("kfp-1")
    assert mine
    assert reason == ""
    assert load_run(run).spec.mixtures[0].name == "raw"
    assert place.plan("kfp-1") == (run, True, "")  # a plan step that is tried again
    again, mine, reason = place.plan("kfp-2")
    assert (again, mine) == (run, False)
    assert "is claimed by kfp-1; to go on in its place, give its id as `claim`" in reason
    assert place.plan("kfp-2", claim="kfp-1") == (run, True, "")


def test_latest_is_the_dump_that_was_the_newest_when_the_run_was_planned(place: Place) -> None:
    place.crawl(OLDER)
    run, mine, _ = place.plan("kfp-1", recipe=place.crawled())
    assert mine
    place.index(NEWEST, OLDER)
    place.crawl(NEWEST)
    again = place.crawled(compute={"pools": [{"name": "cpu"}]}, suspend=False)
    assert place.plan("kfp-1", recipe=again) == (run, True, "")  # a plan step that is tried again
    assert [pool.name for pool in load_run(run).spec.compute.pools] == ["cpu"]
    assert place.plan("kfp-2", claim="kfp-1", recipe=place.crawled()) == (run, True, "")
    edited = place.plan("kfp-1", recipe=place.crawled(columns=[{"name": "faces", "faces": {}}]))
    other = place.plan("kfp-3", recipe=place.crawled())
    dumps = [load_run(found[0]).ingest for found in ((run,), edited, other)]
    assert [ingest and ingest.candidates.partition("/")[2][:15] for ingest in dumps] == [OLDER, NEWEST, NEWEST]


def test_a_schedule_may_be_of_the_dumps_themselves(place: Place) -> None:
    place.crawl(OLDER)
    recipe = place.crawled("{dump}")
    run, mine, _ = place.scheduled("kfp-1", recipe=recipe)
    assert mine
    planned = load_run(run)
    assert planned.pool.name.startswith("cc-cc-main-2026-38-")
    assert planned.spec.pool.common_crawl
    assert planned.spec.pool.common_crawl.dump == OLDER
    assert place.scheduled("kfp-1", recipe=recipe) == (run, True, "")
    assert place.scheduled("kfp-2", recipe=recipe)[1:] == (False, f"schedule weekly has done {OLDER}, the newest dump")


def test_private_networks_are_refused_but_where_no_cluster_does_the_work(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RECAPTION_LAUNCHER")
    place.crawl(OLDER)
    recipe = place.crawled(download={"allowNetworks": ["127.0.0.0/8"]})
    with pytest.raises(PermanentError, match=f"^recipe: spec.download.allowNetworks: {NOT_HERE}"):
        place.plan("kfp-1", recipe=recipe)
    assert [path.name for path in place.storage.iterdir()] == ["claims"], "but for why there is no run"
    monkeypatch.setenv("RECAPTION_LAUNCHER", "local")
    assert place.plan("kfp-1", recipe=recipe)[1]


def test_a_folder_is_refused_but_where_no_cluster_does_the_work(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RECAPTION_LAUNCHER")
    with pytest.raises(PermanentError) as caught:
        place.plan("kfp-1", recipe=place.recipe())
    assert str(caught.value).splitlines() == [
        f"recipe: spec.storage: found {place.storage}; {IN_A_BUCKET}",
        f"recipe: spec.pool.shards: found {place.folder}/pool; {IN_A_BUCKET}",
    ]


def test_of_many_that_start_at_once_one_executes(place: Place) -> None:
    calls = [place.given(f"kfp-{i}") for i in range(6)]
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(steps.plan, calls))
    mine = [json.loads(Path(c.outputs["parameters"]["mine"]["outputFile"]).read_text()) for c in calls]
    assert sorted(mine) == [False] * 5 + [True]


def test_bad_input_is_said_before_anything_is_written(place: Place) -> None:
    with pytest.raises(PermanentError, match=r"recipe: spec\.pool\.nme: unknown key"):
        place.plan("kfp-1", recipe=place.recipe(nme="x"))
    with pytest.raises(PermanentError, match="parameter claim: found a/b; expected letters"):
        place.plan("kfp-1", claim="a/b")
    assert not place.storage.exists()


def test_a_failed_run_is_free_again_and_a_finished_one_is_not(place: Place) -> None:
    run, *_ = place.plan("kfp-1")
    place.cleanup("kfp-2")  # of one that claimed nothing
    assert place.ended == []
    place.cleanup("kfp-1")
    assert place.ended == [run]
    assert place.plan("kfp-2")[1]
    load_run(run).save_status({"stages": {"report": {"state": "done"}}})
    place.cleanup("kfp-2")
    assert place.ended == [run, run]
    assert not place.plan("kfp-3")[1]


def test_the_claim_is_given_up_only_when_the_jobs_are_ended(place: Place) -> None:
    run, *_ = place.plan("kfp-1")
    place.cleanup_exits = 75
    with pytest.raises(TemporaryError, match=r"cleanup of run test-\w+ failed, see above; some Jobs may be left"):
        place.cleanup("kfp-1")
    assert not place.plan("kfp-2")[1]
    place.cleanup_exits = 0
    place.cleanup("kfp-1")
    place.cleanup("kfp-1")  # the exit step of a run that KFP was told to retry: nobody holds it now
    assert place.ended == [run, run, run, run], "twice by the first one, which tries again"
    assert place.plan("kfp-2")[1]


def test_the_exit_step_of_what_never_was_a_run_ends_well(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    place.cleanup("kfp-1")
    place.cleanup("kfp-1", recipe="kind: Recaption")
    place.cleanup("kfp-1", recipe="")
    place.plan("kfp-1")
    place.plan("kfp-2")
    place.cleanup("kfp-2")  # another holds the run: its Jobs are not ours to end
    assert place.ended == []


def test_a_schedule_does_each_dump_once(place: Place) -> None:
    place.pool(OLDER)
    run, mine, _ = place.scheduled("kfp-1")
    assert mine
    assert load_run(run).pool.name == "cc-cc-main-2026-38"
    assert json.loads((place.storage / f"schedules/weekly/{OLDER}.json").read_text()) == {"by": "kfp-1"}
    assert place.scheduled("kfp-1") == (run, True, "")
    assert place.scheduled("kfp-2") == ("", False, f"schedule weekly has done {OLDER}, the newest dump")
    place.index(NEWEST, OLDER)
    place.pool(NEWEST)
    second, mine, _ = place.scheduled("kfp-3")
    assert mine
    assert second != run
    place.cleanup("kfp-3", recipe=place.recipe(name="cc-{dump}", shards=str(place.folder / "{dump}")))
    assert place.ended == [second]
    assert not place.scheduled("kfp-4")[1]  # it failed, but it stays done: by hand, or not at all


def test_a_dump_without_shards_is_left_for_later(place: Place) -> None:
    place.index(NEWEST, OLDER)
    place.pool(OLDER)
    run, mine, reason = place.scheduled("kfp-1")
    assert (run, mine) == ("", False)
    assert reason == f"dump {NEWEST} has nothing in {place.folder}/{NEWEST} yet"
    assert place.scheduled("kfp-1", oldest_dump=OLDER)[1]
    place.pool(NEWEST)
    assert place.scheduled("kfp-2")[1]


@pytest.mark.parametrize("at", ["claim", "plan_run"])
def test_a_crash_between_the_two_claims_is_made_good_by_the_same_run(
    place: Place, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    place.pool(OLDER)
    real = getattr(steps, at)
    steps_left = [1]

    def crash(*arguments: Any) -> Any:
        result = real(*arguments)
        if steps_left:
            steps_left.pop()
            raise Terminated
        return result

    monkeypatch.setattr(steps, at, crash)
    with pytest.raises(Terminated):
        place.scheduled("kfp-1")
    place.index(NEWEST, OLDER)  # meanwhile a newer one appears
    place.pool(NEWEST)
    other, mine, _ = place.scheduled("kfp-2")
    assert mine
    assert load_run(other).pool.name == "cc-cc-main-2026-43"
    again = place.scheduled("kfp-1")
    if at == "claim":  # it had its dump
        assert load_run(again[0]).pool.name == "cc-cc-main-2026-38"
        assert again[1]
    else:
        assert not again[1]


def test_many_ticks_at_once_do_one_run_per_dump(place: Place) -> None:
    place.pool(OLDER)
    recipe = place.recipe(name="cc-{dump}", shards=str(place.folder / "{dump}"))
    calls = [
        place.given(f"kfp-{i}", recipe=recipe, schedule="weekly", dumps=str(place.folder)) for i in range(6)
    ]  # fmt: skip
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(steps.plan, calls))
    mine = [json.loads(Path(c.outputs["parameters"]["mine"]["outputFile"]).read_text()) for c in calls]
    assert sorted(mine) == [False] * 5 + [True]


@pytest.mark.parametrize(("values", "message"), [
    ({"schedule": "a b"}, "parameter schedule: found a b"),
    ({"recipe": "STATIC"}, r"recipe: a schedule's needs \{dump\}"),
    ({"recipe": "MOVING"}, r"spec.storage: found \{dump\} in it; a schedule's runs share one storage"),
])  # fmt: skip
def test_a_schedules_mistakes(place: Place, values: dict[str, Any], message: str) -> None:
    moving = place.recipe(name="cc-{dump}", shards="/{dump}").replace(str(place.storage), "/storage/{dump}")
    texts = {"STATIC": place.recipe(), "MOVING": moving}
    given = {k: texts.get(v, v) for k, v in values.items()}
    with pytest.raises(PermanentError, match=message):
        place.scheduled("kfp-1", **given)
    with pytest.raises(PermanentError, match=message):
        steps.check_schedule({"schedule": "weekly", "recipe": place.recipe(name="cc-{dump}"), **given})


def test_the_table_and_the_numbers() -> None:
    rows: list[dict[str, object]] = [
        {"mixture": "raw", "pairs": 12_800, "mean cosine": 0.20949, "classification": None},
        {"mixture": "synthetic", "pairs": 9, "mean cosine": 0.25, "classification": 0.5},
    ]
    assert markdown(rows) == (
        "| mixture | pairs | mean cosine | classification |\n"
        "| --- | ---: | ---: | ---: |\n"
        "| raw | 12,800 | 0.209 |  |\n"
        "| synthetic | 9 | 0.250 | 0.500 |\n"
    )
    assert metrics(rows) == {
        "raw pairs": 12800.0, "raw mean cosine": 0.20949,
        "synthetic pairs": 9.0, "synthetic mean cosine": 0.25, "synthetic classification": 0.5,
    }  # fmt: skip
