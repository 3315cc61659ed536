"""A step of a KFP run: its bad luck, the run's claim, and what it leaves when it fails for good."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import pytest

from components.base.errors import PermanentError, TemporaryError, Terminated
from components.pool.run import Run
from components.recipe.recipe import load_recipe
from pipelines import cli
from pipelines.execution import run_status
from pipelines.kubeflow import step_retry
from pipelines.kubeflow.step_retry import attempted, execute
from pipelines.planning.plan import plan_run
from tests.pools import sample, write_tar

RECIPE = """
apiVersion: recaption.dev/v1alpha1
kind: Recaption
metadata: {{name: test}}
spec:
  storage: {folder}/storage
  pool: {{name: pool, shards: {folder}/pool}}
  mixtures: [{{name: raw, rules: [{{text: raw}}]}}]
"""


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """A run that kfp-1 has planned and claimed."""
    monkeypatch.setenv("RECAPTION_LAUNCHER", "local")  # so that the cleanup asks no cluster
    monkeypatch.setattr(step_retry, "PAUSES", (0.0, 0.0))
    write_tar(tmp_path / "pool" / "00000000.tar", {"0": sample(0)})
    (tmp_path / "recipe.yaml").write_text(RECIPE.format(folder=tmp_path))
    run = plan_run(load_recipe(tmp_path / "recipe.yaml"))
    run.save()
    assert run.claim("kfp-1") == "kfp-1"
    return run


def uri(run: Run) -> str:
    return f"{run.storage.uri}/{run.folder}"


def holder(run: Run) -> str | None:
    path = Path(uri(run)) / "claim.json"
    return path.read_text() if path.exists() else None


def raising(*errors: BaseException) -> Callable[[object], None]:
    """Work that meets these errors, one at each call, and then succeeds."""
    left = list(errors)

    def work(_: object) -> None:
        if left:
            raise left.pop(0)

    return work


def test_bad_luck_is_tried_again_with_a_pause_and_a_line_each(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    slept: list[float] = []
    monkeypatch.setattr(step_retry.time, "sleep", slept.append)
    work = raising(TemporaryError("no route"), TemporaryError("reset"))
    with caplog.at_level(logging.WARNING):
        attempted("embed", lambda: work(None))
    assert slept == list(step_retry.PAUSES[:2])
    assert caplog.messages == ["embed: no route; attempt 2 of 6 in 10 s", "embed: reset; attempt 3 of 6 in 30 s"]
    slept.clear()
    with pytest.raises(TemporaryError, match="still"):
        attempted("embed", lambda: raising(TemporaryError("still"))(None))
    assert slept == list(step_retry.PAUSES), "it has an end"


@pytest.mark.parametrize("error", [PermanentError("no such model"), KeyError("uid"), Terminated()])
def test_what_would_fail_again_is_not_tried_again(error: BaseException) -> None:
    calls: list[int] = []

    def work() -> None:
        calls.append(1)
        raise error

    with pytest.raises(type(error)):
        attempted("embed", work)
    assert len(calls) == 1


def test_a_step_that_fails_for_good_gives_the_claim_up(run: Run) -> None:
    with pytest.raises(PermanentError, match="no such model"):
        execute("embed", uri(run), "kfp-1", raising(PermanentError("no such model")))
    assert holder(run) is None
    assert run.claim("kfp-2") == "kfp-2"


def test_a_step_that_is_evicted_keeps_the_claim_for_its_next_pod(run: Run) -> None:
    with pytest.raises(Terminated):
        execute("embed", uri(run), "kfp-1", raising(Terminated()))
    assert holder(run) == '{"by": "kfp-1"}'
    execute("embed", uri(run), "kfp-1", raising(TemporaryError("once")))
    assert holder(run) == '{"by": "kfp-1"}'


def test_a_run_that_is_retried_in_kfp_takes_its_claim_again(run: Run) -> None:
    """Its plan and its exit step are done and are not run again, and the exit step has given the claim up."""
    run.storage.delete(f"{run.folder}/claim.json")
    seen: list[str | None] = []
    execute("embed", uri(run), "kfp-1", lambda loaded: seen.append(holder(loaded)))
    assert seen == ['{"by": "kfp-1"}']
    with pytest.raises(TemporaryError):
        execute("score", uri(run), "kfp-1", raising(*[TemporaryError("down")] * 3))
    assert holder(run) is None, "and is cleaned up after"


def test_a_run_that_is_retried_in_kfp_leaves_another_alone_that_has_started_meanwhile(run: Run) -> None:
    run.storage.delete(f"{run.folder}/claim.json")
    assert run.claim("kfp-2") == "kfp-2"
    worked: list[Run] = []
    with pytest.raises(PermanentError, match=r"is executed by KFP run kfp-2 by now; wait for its end, or terminate it"):
        execute("embed", uri(run), "kfp-1", worked.append)
    assert not worked
    assert holder(run) == '{"by": "kfp-2"}'


def test_nobody_claims_outside_of_kfp(run: Run) -> None:
    with pytest.raises(TemporaryError):
        execute("embed", uri(run), None, raising(TemporaryError("once")))
    assert holder(run) == '{"by": "kfp-1"}'


def test_a_cleanup_that_fails_leaves_the_claim(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step_retry.sys, "executable", "/bin/false")
    with pytest.raises(PermanentError, match="no such model"):
        execute("embed", uri(run), "kfp-1", raising(PermanentError("no such model")))
    assert holder(run) == '{"by": "kfp-1"}'


@pytest.mark.parametrize(
    ("error", "state", "kind"),
    [
        (PermanentError("spec.x: wrong"), "failed", "mistake"),
        (TemporaryError("network\nis down"), "failed", "bad luck"),
        (KeyError("uid"), "failed", "bug"),
        (Terminated(), "stopped", "stopped"),
    ],
)
def test_what_ended_a_run_is_recorded_in_its_folder(run: Run, error: BaseException, state: str, kind: str) -> None:
    with pytest.raises(type(error)):
        run_status.timed(run, "index", lambda: raising(error)(None))
    found = run.status()["stages"]["index"]
    assert (found["state"], found["error"]["kind"]) == (state, kind)
    assert "\n" not in found["error"]["message"]
    run_status.begin(run)
    assert run.status()["stages"]["index"] == {"state": "waiting", "reused": {"seconds": 0, "samples": 0}}


def test_a_storage_that_is_away_does_not_hide_the_error(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def work() -> None:
        monkeypatch.setattr(run_status, "entry", lambda *_: raising(TemporaryError("away"))(None))
        raise PermanentError("spec.x: wrong")

    with pytest.raises(PermanentError, match=r"spec\.x: wrong"):
        run_status.timed(run, "index", work)


def test_the_line_is_the_containers_termination_message(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kubelet makes the file; Argo and KFP's UI show what is in it."""
    told = tmp_path / "termination-log"
    monkeypatch.setattr(cli, "TERMINATION_LOG", told)
    monkeypatch.setattr("sys.argv", ["recaption", "stage", "captions", "--claimant", "kfp-1", uri(run)])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert stopped.value.code == PermanentError.exit_code
    assert not told.exists()
    told.touch()
    assert run.claim("kfp-1") == "kfp-1"
    with pytest.raises(SystemExit):
        cli.main()
    assert told.read_text().startswith("error: ")
    assert "captions" in told.read_text()
