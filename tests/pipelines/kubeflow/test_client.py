"""submit and schedule: the command line's own commands and kfp's own client against a stand-in on loopback."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from components.base.errors import PermanentError, RecaptionError, TemporaryError
from pipelines.cli import app
from pipelines.kubeflow import client
from pipelines.kubeflow.client import Endpoint, Pipelines
from pipelines.kubeflow.naming import version_name
from pipelines.kubeflow.package import compile_package
from pipelines.kubernetes.pod_settings import PodSettings
from tests.pipelines.kubeflow.kfp_server import Kfp, kfp_server
from tests.pipelines.kubeflow.test_parameters import recipe_text

CRON = "0 0 6 * * *"


@pytest.fixture
def served() -> Iterator[tuple[str, Kfp]]:
    with kfp_server() as found:
        yield found


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    (tmp_path / "recipe.yaml").write_text(recipe_text())
    return tmp_path / "recipe.yaml"


@pytest.fixture
def moving(tmp_path: Path) -> Path:
    (tmp_path / "moving.yaml").write_text(recipe_text(name="cc-{dump}", shards="gs://pools/{dump}"))
    return tmp_path / "moving.yaml"


def call(*arguments: object) -> str:
    result = CliRunner().invoke(app, ["pipeline", *map(str, arguments)])
    if result.exception:
        raise result.exception
    return result.stdout


def test_submit_registers_once_and_starts_a_run_each_time(served: tuple[str, Kfp], recipe: Path) -> None:
    host, kfp = served
    options = ["--host", host, "--tag", "1", "--set", "cpu_image=x/cpu@sha256:1", "--set", "claim=me"]
    assert call("submit", recipe, *options) == "KFP run runs-1\n", "the API server's address is no link for a person"
    ui = "https://kfp.example/"
    assert call("submit", recipe, *options, "--ui", ui) == "https://kfp.example/#/runs/details/runs-2\n"
    assert len(kfp.held["pipelines"]) == len(kfp.held["versions"]) == len(kfp.held["experiments"]) == 1
    package = compile_package(tag="1")
    assert kfp.packages == [package.encode()]
    run = kfp.held["runs"][0]
    assert kfp.held["versions"][0]["display_name"] == version_name(package)
    assert run["pipeline_version_reference"] == {"pipeline_id": "pipelines-1", "pipeline_version_id": "versions-1"}
    assert run["runtime_config"]["parameters"] == {
        "recipe": recipe.read_text(), "cpu_image": "x/cpu@sha256:1", "claim": "me",
    }  # fmt: skip
    assert run["display_name"] == "weekly"
    call("submit", recipe, "--host", host, "--tag", "2")
    assert len(kfp.held["pipelines"]) == 1
    assert len(kfp.held["versions"]) == 2


def test_two_that_register_at_once_get_the_same_version(served: tuple[str, Kfp]) -> None:
    host, kfp = served
    package = compile_package(tag="1")
    first = Pipelines(Endpoint(host)).register(package)
    kfp.hidden = 1
    assert Pipelines(Endpoint(host)).register(package) == first
    kfp.held["versions"].clear()
    second = Pipelines(Endpoint(host)).register(package)
    found = Pipelines(Endpoint(host))
    listed, kfp_list = [], kfp.list

    def once_too_early(kind: str, query: dict[str, list[str]]) -> tuple[int, dict[str, object]]:
        if kind == "versions" and not listed:
            listed.append(kind)
            return 200, {}
        return kfp_list(kind, query)

    kfp.list = once_too_early  # type: ignore[method-assign]
    assert found.register(package) == second
    assert len(kfp.held["versions"]) == 1


def test_schedule(served: tuple[str, Kfp], moving: Path) -> None:
    host, kfp = served
    options = ["--host", host, "--cron", CRON, "--tag", "1", "--set", "oldest_dump=CC-MAIN-2026-40"]
    assert call("schedule", "weekly", moving, *options).startswith("KFP recurring run recurringruns-1")
    made = kfp.held["recurringruns"][0]
    assert made["trigger"] == {"cron_schedule": {"cron": CRON}}
    assert (made["max_concurrency"], made["no_catchup"], made["mode"]) == (1, True, "ENABLE")
    assert made["pipeline_version_reference"] == {"pipeline_id": "pipelines-1", "pipeline_version_id": "versions-1"}
    assert made["runtime_config"]["parameters"] == {
        "recipe": moving.read_text(), "schedule": "weekly", "oldest_dump": "CC-MAIN-2026-40",
    }  # fmt: skip
    assert "(was there already)" in call("schedule", "weekly", moving, *options)
    assert len(kfp.held["recurringruns"]) == 1
    with pytest.raises(PermanentError, match=r"schedule weekly: there is one with another .*recurringruns-1"):
        call("schedule", "weekly", moving, *options, "--cron", "0 0 7 * * *")


@pytest.mark.parametrize(("arguments", "message"), [
    (["schedule", "weekly", "MOVING", "--cron", "0 6 * * *"], "found 5 fields, expected 6"),
    (["schedule", "weekly", "RECIPE", "--cron", CRON], r"a schedule's needs \{dump\}"),
    (["schedule", "a/b", "MOVING", "--cron", CRON], "parameter schedule: found a/b"),
    (["submit", "MOVING"], r"\{dump\} stands only in the recipe of a schedule"),
    (["submit", "RECIPE", "--set", "clam=1"], "--set clam=1: expected NAME=VALUE with NAME out of claim,"),
    (["submit", "RECIPE", "--set", "claim"], "--set claim: expected NAME=VALUE"),
    (["submit", "/nowhere.yaml"], "recipe /nowhere.yaml: No such file"),
    (["submit", "/dev/null"], "recipe /dev/null: the file is empty"),
])  # fmt: skip
def test_mistakes_are_said_before_anything_is_made(
    served: tuple[str, Kfp], recipe: Path, moving: Path, arguments: list[str], message: str
) -> None:
    host, kfp = served
    files = {"RECIPE": str(recipe), "MOVING": str(moving)}
    with pytest.raises(PermanentError, match=message):
        call(*[files.get(a, a) for a in arguments], "--host", host)
    assert not any(kfp.held[kind] for kind in ("runs", "recurringruns"))


@pytest.mark.parametrize("arguments", [["submit"], ["schedule", "weekly", "--cron", CRON]])
def test_no_cluster_gets_a_recipe_that_allows_private_networks(
    served: tuple[str, Kfp], recipe: Path, moving: Path, arguments: list[str]
) -> None:
    host, kfp = served
    path = moving if "schedule" in arguments else recipe
    text = path.read_text().replace("shards:", "urls:") + "  download: {allowNetworks: [10.0.0.0/8]}\n"
    path.write_text(text)
    with pytest.raises(PermanentError, match=r"spec\.download\.allowNetworks: not in a cluster"):
        call(*arguments, path, "--host", host)
    assert not any(kfp.held[kind] for kind in ("runs", "recurringruns"))


def test_let_in_by_a_token(served: tuple[str, Kfp], recipe: Path, tmp_path: Path) -> None:
    host, kfp = served
    kfp.token = "secret"
    (tmp_path / "token").write_text("secret\n")
    call("submit", recipe, "--host", host, "--token-file", tmp_path / "token")
    (tmp_path / "token").write_text("wrong")
    for options in ([], ["--token-file", tmp_path / "token"]):
        with pytest.raises(PermanentError, match=f"KFP at {host}: 401 .*: not let in; give a valid token") as raised:
            call("submit", recipe, "--host", host, *options)
        assert "\n" not in str(raised.value)
    assert len(kfp.held["runs"]) == 1


@pytest.mark.parametrize(("status", "kind"), [
    (401, PermanentError), (403, PermanentError), (404, PermanentError), (429, TemporaryError), (503, TemporaryError),
])  # fmt: skip
def test_an_endpoint_that_refuses(
    served: tuple[str, Kfp], recipe: Path, status: int, kind: type[RecaptionError]
) -> None:
    host, kfp = served
    kfp.status = status
    with pytest.raises(kind, match=f"^KFP at {host}: {status} [^\n]*$"):
        call("submit", recipe, "--host", host)


def test_nobody_listening_ends_soon(recipe: Path) -> None:
    with kfp_server() as (host, _):
        pass
    began = time.monotonic()
    with pytest.raises(TemporaryError, match=f"^KFP at {host} can't be reached: [^\n]*refused[^\n]*$"):
        call("submit", recipe, "--host", host)
    assert time.monotonic() - began < 20


@pytest.mark.parametrize("after", [0, 1])
def test_an_endpoint_that_never_answers_ends_soon(
    served: tuple[str, Kfp], monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    """From the start, or once it let us in."""
    host, kfp = served
    monkeypatch.setattr(client, "READ", 1)
    pipelines = Pipelines(Endpoint(host)) if after else None
    kfp.delay, package = 3, compile_package(tag="1")
    began = time.monotonic()
    with pytest.raises(TemporaryError, match=f"^KFP at {host} can't be reached: [^\n]*timed out[^\n]*$"):
        (pipelines or Pipelines(Endpoint(host))).register(package)
    assert time.monotonic() - began < 10


def test_kfp_says_what_it_is(served: tuple[str, Kfp]) -> None:
    host, kfp = served
    assert [(p.version, p.multi_user) for p in (Pipelines(Endpoint(host)),)] == [("2.17.0", False)]
    kfp.answer = lambda *_: (200, ["not", "an", "object"])  # type: ignore[method-assign,return-value,assignment]
    with pytest.raises(PermanentError, match=f"^KFP at {host}: this is no KFP API server: .*; is it a login page?"):
        Pipelines(Endpoint(host))


def test_what_is_no_kfp_at_all(recipe: Path) -> None:
    with pytest.raises(PermanentError, match=r"KFP endpoint kfp\.example: expected http"):
        call("submit", recipe, "--host", "kfp.example")


def test_compile_writes_both_forms(tmp_path: Path) -> None:
    package, manifests = tmp_path / "a/pipeline.yaml", tmp_path / "a/manifests.yaml"
    call("compile", "--output", package, "--manifests", manifests, "--images", "r.example/recaption", "--tag", "1")
    assert package.read_text() == compile_package("r.example/recaption", "1")
    assert [o["kind"] for o in yaml.safe_load_all(manifests.read_text())] == ["Pipeline", "PipelineVersion"]
    options = ["--env", "HTTPS_PROXY=http://proxy", "--pull-secret", "registry", "--cache-volume", "models"]
    call("compile", "--output", package, "--tag", "1", *options)
    pods = PodSettings((("HTTPS_PROXY", "http://proxy"),), ("registry",), "models")
    assert package.read_text() == compile_package(tag="1", pods=pods)
    with pytest.raises(PermanentError, match="variable PATH: expected one of HF_ENDPOINT, "):
        call("compile", "--output", package, "--env", "PATH=/")
    with pytest.raises(PermanentError, match="cannot write /dev/null/x"):
        call("compile", "--output", "/dev/null/x")


def test_while_kfp_is_waited_for_others_are_heard(served: tuple[str, Kfp], capsys: pytest.CaptureFixture[str]) -> None:
    """The doctor prints its table, whether KFP has answered or not."""
    host, kfp = served
    kfp.delay = 0.5
    thread = threading.Thread(target=lambda: Pipelines(Endpoint(host)).submit("a: {}\n", "run", {}, "experiment"))
    thread.start()
    while thread.is_alive():
        print("heard")
        time.sleep(0.05)
    printed = capsys.readouterr().out.splitlines()
    assert set(printed) == {"heard"}, "kfp itself isn't"
    assert len(printed) > 20
