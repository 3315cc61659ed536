"""The command line as a person meets it: figures of a plan, errors of one line, exit codes, signals, progress."""

from __future__ import annotations

import io
import json
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from unittest import mock

import pytest
from typer.testing import CliRunner

from components.miniature.pool import write_pool
from components.pool.run import Run, load_run
from components.recipe.recipe import parse_recipe
from pipelines.cli import app, main
from pipelines.planning.estimate import plan_lines
from pipelines.planning.plan import plan_run
from tests.components.stages.report.test_stage import Page
from tests.filled import fill, planned
from tests.pipelines.execution.test_local import GOOD, REST, recipe_text
from tests.pools import sample, uid, write_shard, write_tar

MIXED = {"name": "mixed", "rules": [GOOD, REST]}
SYNTHETIC = {"name": "synthetic", "rules": [{"text": "blip", "where": [{"score": "blip", "atLeast": -1}]}]}
RAW = {"name": "raw", "rules": [{"text": "raw"}]}
COMMAND = [sys.executable, "-m", "pipelines.cli"]
PLAIN = {**os.environ, "COLUMNS": "200", "TERM": "dumb"}


def invoke(*arguments: object) -> str:
    """Its output, of a call that succeeds."""
    result = CliRunner().invoke(app, [str(a) for a in arguments], env={"COLUMNS": "200"})
    assert result.exit_code == 0, result.output
    return " ".join(result.output.split())


def refused(*arguments: object, code: int = 42) -> str:
    """The one line on stderr, of a call that fails."""
    before, out, said = signal.getsignal(signal.SIGTERM), io.StringIO(), io.StringIO()
    with (
        mock.patch.object(sys, "argv", ["recaption", *map(str, arguments)]),
        redirect_stdout(out),
        redirect_stderr(said),
        pytest.raises(SystemExit) as left,
    ):
        main()
    signal.signal(signal.SIGTERM, before)
    assert (left.value.code, out.getvalue(), said.getvalue().count("\n")) == (code, "", 1), said.getvalue()
    return said.getvalue().strip()


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Two shards of 10 samples, one of each with a broken image."""
    for shard in range(2):
        samples = {f"{i:04d}": sample(10 * shard + i) for i in range(9)} | {"bad": sample(90 + shard, jpg=None)}
        write_tar(tmp_path / "shards" / f"{shard:08d}.tar", samples)
    return tmp_path / "shards"


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    return path


def figures(run: Run) -> dict[str, tuple[float, float, int, bool]]:
    return {line.key: (line.asked, line.todo, line.done, line.exact) for line in plan_lines(run)}


def scores() -> dict[str, float]:
    return {uid(10 * shard + i): (10 * shard + i) / 100 for shard in range(2) for i in range(9)}


def test_the_plan_of_a_new_pool(tmp_path: Path, shards: Path) -> None:
    recipe = write(tmp_path, recipe_text(tmp_path / "out", shards, [MIXED]))
    said = invoke("plan", recipe)
    assert re.search(r"pool pool, 2 shards \(.* kB\), 20 samples, 1 tasks", said)
    assert "index 20 20 0 of 2 2.2 kB –" in said
    assert "embed 18 18 0 of 2" in said
    assert "caption:blip about 13 about 13 0 of 2" in said  # 18 × 0.7, before any score is known
    assert "training sets: 1, at most" in said
    assert not (tmp_path / "out").exists()


def test_a_plan_counts_once_scores_are_there(tmp_path: Path, shards: Path) -> None:
    run = planned(tmp_path / "out", shards, [MIXED])
    assert figures(run)["index"] == (20, 0, 2, True)
    assert figures(run)["caption:blip"] == (
        pytest.approx(18 * 0.7, abs=0.2),
        pytest.approx(18 * 0.7, abs=0.2),
        0,
        False,
    )
    fill(run, "embed", {u: [0.0] * 4 for u in scores()})
    fill(run, "score:raw", scores())
    # ⌊18 × 0.3⌋ = 5: the threshold is the sixth best score, so 12 of 18 samples need a caption
    assert figures(run) == {
        "index": (20, 0, 2, True), "embed": (18, 0, 2, True), "score:raw": (18, 0, 2, True),
        "caption:blip": (12, 12, 0, True), "score:blip": (12, 12, 0, True),
    }  # fmt: skip
    assert not (tmp_path / "out" / "pools" / "pool" / "demands").exists()


def test_the_plan_of_a_second_recipe_counts_what_the_first_one_left(tmp_path: Path, shards: Path) -> None:
    run = planned(tmp_path / "out", shards, [MIXED])
    fill(run, "embed", {u: [0.0] * 4 for u in scores()})
    fill(run, "score:raw", scores())
    below = {u: "a caption" for u, score in scores().items() if score < 0.13}
    assert len(below) == 12
    fill(run, "caption:blip", below)
    fill(run, "score:blip", dict.fromkeys(below, 0.5))
    assert figures(run)["caption:blip"] == (12, 0, 2, True)
    again = recipe_text(tmp_path / "out", shards, [SYNTHETIC])
    second = figures(plan_run(parse_recipe(again)))
    assert second["embed"] == (18, 0, 2, True)
    assert second["caption:blip"] == second["score:blip"] == (18, 6, 0, True)
    said = invoke("plan", write(tmp_path, again))
    assert "caption:blip 18 6 0 of 2 420 B no stated rate" in said
    assert "all 576 B no stated rate" in said


def test_gpu_hours_are_of_what_is_left(tmp_path: Path) -> None:
    write_shard(tmp_path / "shards", 0, 9)
    write_shard(tmp_path / "shards", 1, 9)
    paper = {
        "scorer": {"model": "ViT-L-14"},
        "columns": [{"name": "blip", "caption": {"model": "Salesforce/blip2-opt-2.7b"}}],
        "train": {"scale": "medium"},
    }
    recipe = recipe_text(tmp_path / "out", tmp_path / "shards", [SYNTHETIC], **paper)
    lines = {line.key: line for line in plan_lines(plan_run(parse_recipe(recipe)))}
    assert lines["embed"].hours == pytest.approx(18 / 490 / 3600)
    assert lines["caption:blip"].hours == pytest.approx(18 / 75 / 3600)
    assert lines["score:blip"].hours == pytest.approx(18 / 490 / 13 / 3600)
    assert lines["embed"].bytes == 18 * (32 + 768 * 2)
    assert "train synthetic: 128,000,000 samples, 40 A100-hours" in invoke("plan", write(tmp_path, recipe))


def test_figures_of_a_pool_that_is_only_probed(tmp_path: Path) -> None:
    for shard in range(5):
        write_shard(tmp_path / "shards", shard, 6)
    said = invoke("plan", write(tmp_path, recipe_text(tmp_path / "out", tmp_path / "shards", [SYNTHETIC])))
    assert re.search(r"about (29|30|31) samples", said)
    assert re.search(r"index about (29|30|31) about", said)


def test_what_there_is() -> None:
    for name in ("validate", "plan", "run", "demo", "report", "stages", "stage"):
        assert name in invoke("--help")
        assert "Usage:" in invoke(name, "--help")
    assert "--samples" in invoke("demo", "--help")
    assert "cosine of each image with one text" in invoke("stages")
    assert invoke("--version").startswith("recaption 0.")


def test_a_valid_recipe(tmp_path: Path, shards: Path) -> None:
    recipe = write(tmp_path, recipe_text(tmp_path / "out", shards, [MIXED]))
    assert invoke("validate", recipe).endswith("recipe.yaml: valid")


def test_no_message_moves_the_terminal(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Names of files and fields, and what others' servers say, are part of messages and of the log."""
    assert "/[31mred.yaml: No such file" in refused("validate", tmp_path / "\x1b[31mred.yaml")
    code = (
        "import logging, pipelines.cli as cli\n"
        "cli._log_to_stderr()\n"
        "logging.warning('a \\x1b[2J%s', 'b\\u202e')\n"
        "try: raise ValueError('c\\x9b1m')\n"
        "except ValueError: logging.exception('d')\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env=PLAIN)
    said = capfd.readouterr().err
    assert "WARNING a [2Jb\n" in said
    assert "ValueError: c1m\n" in said


def test_every_mistake_of_a_recipe_is_a_line(tmp_path: Path, shards: Path) -> None:
    text = recipe_text(tmp_path / "out", shards, [{"name": "a", "rules": [{"text": "none"}, {"text": "neither"}]}])
    result = subprocess.run(
        [*COMMAND, "validate", str(write(tmp_path, text))], capture_output=True, text=True, env=PLAIN, check=False
    )
    assert result.returncode == 42
    lines = result.stderr.splitlines()
    assert len(lines) == 2
    assert "rules[0].text: none is no text" in lines[0]
    assert "rules[1].text: neither is no text" in lines[1]


def test_files_that_are_no_recipe(tmp_path: Path) -> None:
    assert "recipe /nowhere.yaml: No such file" in refused("run", "/nowhere.yaml")
    assert "Is a directory" in refused("plan", tmp_path)
    assert "not YAML" in refused("validate", write(tmp_path, "a: ["))


def test_a_report_of_a_recipe_is_that_of_its_run(tmp_path: Path, shards: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(recipe_text(tmp_path / "out", shards, [MIXED]))
    said = refused("report", recipe)
    assert re.search(r"there is no run of it as it is now, .*/out/runs/\S+; run it first, or give one .*: none$", said)
    run = planned(tmp_path / "out", shards, [MIXED])
    assert invoke("report", recipe) == f"{tmp_path}/out/{run.folder}/report.html"
    assert (tmp_path / "out" / run.folder / "report.html").exists()
    recipe.write_text(recipe_text(tmp_path / "out", shards, [SYNTHETIC]))
    assert refused("report", recipe).endswith(f": {run.name}")
    assert "no-such.yaml" in refused("report", tmp_path / "no-such.yaml")


SCREENED = {"name": "kept", "import": {"from": "kept.csv", "field": "kept", "as": "flag"}}
NOBODY = {"name": "nobody", "rules": [{"text": "raw", "where": [{"flag": "kept"}]}]}
EMPTY = (
    "mixture nobody: empty, so that nothing is written, trained or evaluated: "
    "of 18 usable images rule 1: 18 have its text, 0 of these meet kept"
)


def test_a_run_says_which_mixture_is_empty_and_the_others_go_on(
    tmp_path: Path, shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("kept.csv").write_text(f"uid,kept\n{uid(0)},false\n")
    others = {"name": "others", "rules": [{"text": "raw", "where": [{"flag": "kept", "equals": False}]}]}
    path = write(tmp_path, recipe_text(tmp_path / "out", shards, [NOBODY, others], columns=[SCREENED]))
    for _ in range(2):  # the second finds all of it there
        said = invoke("run", path)
        assert EMPTY in said
    assert [folder.name.rpartition("-")[0] for folder in (tmp_path / "out" / "datasets").iterdir()] == ["others"]
    path.write_text(recipe_text(tmp_path / "out", shards, [NOBODY], columns=[SCREENED]))
    ended = subprocess.run([*COMMAND, "run", path], capture_output=True, text=True, check=False)
    assert ended.returncode == 42
    why = EMPTY.removeprefix("mixture nobody: ")
    assert ended.stderr.splitlines()[-1].endswith(f"write, as no mixture has a pair: nobody: {why}")


def test_files_that_are_not_read_are_counted_in_the_report(tmp_path: Path, shards: Path) -> None:
    for name in ("00000002.tar.gz", "00000003.tgz", *(f"more/{i}.tgz" for i in range(4))):
        (shards / name).parent.mkdir(exist_ok=True)
        (shards / name).write_bytes(b"")
    (shards / "00000004.tar").symlink_to("/nowhere.tar")
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "a.csv").write_text(f"uid,kept\n{uid(0)},true\n")
    (tmp_path / "made" / "b.jsonl").write_bytes(b"")
    column = {"name": "kept", "import": {"from": str(tmp_path / "made"), "field": "kept", "as": "flag"}}
    path = write(tmp_path, recipe_text(tmp_path / "out", shards, [NOBODY, RAW], columns=[column]))
    invoke("run", path)
    [folder] = (tmp_path / "out" / "runs").iterdir()
    found = json.loads((folder / "results.json").read_text())["unread"]
    assert found == [
        {"place": str(shards), "reason": "link that leads nowhere", "count": 1, "examples": ["00000004.tar"]},
        {
            "place": str(shards), "reason": "looks like a shard: .tar.gz", "count": 1, "examples": ["00000002.tar.gz"]
        },
        {
            "place": str(shards),
            "reason": "looks like a shard: .tgz",
            "count": 5,
            "examples": ["00000003.tgz", "more/0.tgz", "more/1.tgz"],
        },
        {
            "place": str(tmp_path / "made"), "reason": "looks like a table: .jsonl", "count": 1, "examples": ["b.jsonl"]
        },
    ]  # fmt: skip
    counts = {"looks like a shard: .tgz": 5, "looks like a table: .jsonl": 1}
    assert counts.items() <= json.loads((folder / "status.json").read_text())["stages"]["report"]["unread"].items()
    page = Page((folder / "report.html").read_text())
    assert [f"looks like a shard: .tgz, in {shards}: 00000003.tgz, more/0.tgz, more/1.tgz, …", "5"] in page.rows
    for name in ("00000002.tar.gz", "00000003.tgz", "00000004.tar"):
        (shards / name).unlink()
    shutil.rmtree(shards / "more")
    (tmp_path / "made" / "b.jsonl").unlink()
    invoke("run", path)
    assert json.loads((folder / "results.json").read_text())["unread"] == []
    assert "not read" not in (folder / "report.html").read_text()


@pytest.mark.parametrize("command", [["report"], ["stage", "mix"]])
def test_a_run_that_is_not_there(tmp_path: Path, command: list[str]) -> None:
    hint = "expected <storage>/runs/<run>, as `recaption run` prints it"
    assert refused(*command, tmp_path / "elsewhere" / "x") == f"error: run {tmp_path}/elsewhere/x: {hint}"
    assert refused(*command, tmp_path / "demoruns" / "x") == f"error: run {tmp_path}/demoruns/x: {hint}"
    assert refused(*command, tmp_path / "runs" / "x") == f"error: run {tmp_path}/runs/x: there is no plan.json; {hint}"
    assert "scheme ftp:// is not supported" in refused(*command, "ftp://host/runs/x")


def test_stages_and_tasks_that_are_not_there(tmp_path: Path, shards: Path) -> None:
    run = planned(tmp_path / "out", shards, [MIXED])
    uri = f"{run.storage.uri}/{run.folder}"
    there = "index, embed, score:raw, caption:blip, score:blip, "
    assert f"stage captoin: run {run.name} has {there}" in refused("stage", "captoin", uri)
    assert f"stage caption: run {run.name} has {there}" in refused("stage", "caption", uri)
    assert f"task 1: run {run.name} has tasks 0 to 0" in refused("stage", "index", uri, "--task", 1)
    assert "task -1: run" in refused("stage", "index", uri, "--task", -1)
    assert "stage mix: has no tasks, it works on the whole run" in refused("stage", "mix", uri, "--task", 0)
    assert "score:raw: not finished for 2 of 2 shards" in refused("stage", "mix", uri)
    assert invoke("stage", "index", uri, "--task", 0) == ""


def test_a_storage_that_cannot_be_written(tmp_path: Path, shards: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    recipe = write(tmp_path, recipe_text(tmp_path / "file" / "out", shards, [MIXED]))
    assert f"cannot write {tmp_path}/file/out/" in refused("run", recipe)
    text = recipe_text(tmp_path / "out", shards, [MIXED]).replace(f"storage: {tmp_path}/out", "storage: ftp://host/x")
    assert "scheme ftp:// is not supported" in refused("run", write(tmp_path, text))


def test_bad_luck_has_its_own_exit_code(tmp_path: Path, shards: Path) -> None:
    run = planned(tmp_path / "out", shards, [MIXED])
    data = next((tmp_path / "out").rglob("00000000.*.all.*.parquet"))
    data.write_bytes(bytes(data.stat().st_size))
    said = refused("stage", "analyze", f"{run.storage.uri}/{run.folder}", code=75)
    assert "was altered; run again to make it anew" in said


def test_a_stage_without_its_libraries_says_what_to_install(tmp_path: Path, shards: Path) -> None:
    run = planned(tmp_path / "out", shards, [MIXED])
    with mock.patch.dict(sys.modules, {"components.models.clip": None, "open_clip": None}):
        sys.modules.pop("components.models.clip")
        said = refused("stage", "embed", f"{run.storage.uri}/{run.folder}")
    assert "import of open_clip halted" in said
    assert said.endswith("this stage needs what `pip install 'recaption[stages]'` brings")


def test_a_terminal_obeys_no_message(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text("kind: Recaption\n'\\x1b[2Jboo': 1\n".replace("'", '"'))
    done = subprocess.run([*COMMAND, "validate", str(path)], capture_output=True, env=PLAIN, check=False)
    assert done.returncode == 42
    assert b"\x1b" not in done.stderr
    assert b"[2Jboo: unknown key" in done.stderr


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cli-world")
    write_pool(folder, 96, 8, seed=5)
    return folder


@pytest.mark.slow
@pytest.mark.timeout(120)
@pytest.mark.parametrize(("sent", "code", "name"), [(signal.SIGTERM, 143, "SIGTERM"), (signal.SIGINT, 130, "Ctrl-C")])
def test_a_signal_stops_a_run_with_nothing_half_written(
    tmp_path: Path, world: Path, sent: signal.Signals, code: int, name: str
) -> None:
    compute = {"decoders": 1}
    planned(tmp_path / "out", world, [SYNTHETIC], compute=compute)
    recipe = write(tmp_path, recipe_text(tmp_path / "out", world, [SYNTHETIC], compute=compute))
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # in the background of a shell it is ignored
    child = subprocess.Popen([*COMMAND, "run", str(recipe)], stderr=subprocess.PIPE, text=True, env=PLAIN)
    signal.signal(signal.SIGINT, before)
    try:
        while child.poll() is None and not list((tmp_path / "out").glob("pools/pool/columns/embed.*/*.done.json")):
            time.sleep(0.02)
        child.send_signal(sent)
        _, said = child.communicate(timeout=30)
    finally:
        child.kill()
    assert child.returncode == code, said
    last = said.strip().splitlines()[-1]
    assert last.endswith(f"stopped by {name}; finished work is kept, run the same command to go on")
    assert "Traceback" not in said
    assert not list((tmp_path / "out").rglob(".tmp-*"))
    status = json.loads(next((tmp_path / "out").glob("runs/*/status.json")).read_text())
    assert [s["state"] for s in status["stages"].values()] == ["done"] * (len(status["stages"]) - 1) + ["stopped"]
    records = list((tmp_path / "out").rglob("*.done.json"))
    assert len(records) > 12  # the index, and some of the next
    assert all((tmp_path / "out" / json.loads(record.read_text())["file"]).exists() for record in records)
    left = plan_lines(plan_run(parse_recipe(recipe.read_text())))
    assert next(line for line in left if line.key == "embed").todo < 96


def on_terminal(command: list[str]) -> tuple[int, str]:
    """Exit code and what a terminal of 120 columns showed."""
    parent, terminal = pty.openpty()
    child = subprocess.Popen(
        command, stdout=terminal, stderr=terminal, env={**os.environ, "COLUMNS": "120", "TERM": "xterm"}
    )
    os.close(terminal)
    shown = b""
    try:
        while data := os.read(parent, 65536):
            shown += data
    except OSError:  # Linux' way to say that the other end is closed
        pass
    finally:
        os.close(parent)
    return child.wait(), shown.decode()


@pytest.mark.slow
def test_progress_with_and_without_a_terminal(tmp_path: Path, world: Path) -> None:
    raw = [{"name": "raw", "rules": [{"text": "raw", "where": [{"score": "raw", "atLeast": -1}]}]}]
    text = recipe_text(tmp_path / "out", world, raw, columns=[], compute={"decoders": 0, "shardsPerTask": 6})
    run = plan_run(parse_recipe(text))
    run.save()
    uri = f"{run.storage.uri}/{run.folder}"
    code, shown = on_terminal([*COMMAND, "stage", "index", uri])
    assert code == 0
    assert re.search(r"12/12\S* shards · .*\d samples/s", re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", shown))
    result = subprocess.run([*COMMAND, "stage", "embed", uri], capture_output=True, text=True, env=PLAIN, check=True)
    assert re.search(r"INFO embed: 12 of 12 shards, 9\d samples, [\d.]+ samples/s\n", result.stderr)
    assert "\x1b" not in result.stderr
    assert figures(load_run(uri))["embed"][1] == 0
