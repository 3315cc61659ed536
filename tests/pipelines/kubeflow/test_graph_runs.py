"""The compiled graph run step by step by kfp, with its containers' real commands, on the miniature."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from components.miniature.demo import student
from components.miniature.pool import write_evaluation
from components.pool.run import load_run
from components.stages.report.table import result_table
from pipelines.kubeflow.graph import pipeline
from pipelines.planning.graph_nodes import NODES, ingest_of
from tests.pipelines.crawl import crawl
from tests.pipelines.execution.test_local import GOOD, REST, recipe_text
from tests.pipelines.kubeflow.on_this_machine import containers_as_processes
from tests.pipelines.planning.test_ingest import QUICK


@pytest.mark.slow
def test_the_whole_graph_from_a_dump(tmp_path: Path) -> None:
    write_evaluation(tmp_path / "evaluation", 20, seed=12)
    (tmp_path / "student.json").write_text(json.dumps(student()))
    scale = {
        "model": str(tmp_path / "student.json"),
        "batchSize": 16,
        "learningRate": 0.001,
        "warmup": 1,
        "samples": 32,
    }
    spec: dict[str, Any] = {
        "train": {"scale": {**scale, "checkpoints": 1}},
        "evaluate": {"root": str(tmp_path / "evaluation"), "tasks": ["miniature-classes"]},
    }
    nobody = {"name": "nobody", "rules": [{"text": "raw", "where": [{"score": "raw", "atLeast": 2}]}]}
    mixtures = [nobody, {"name": "mixed", "rules": [GOOD, REST]}]
    graph = pipeline()
    with crawl() as web, containers_as_processes(tmp_path / "kfp") as commands:
        spec |= {"pool": {"name": "crawl", **web.source()}, "download": QUICK}
        text = recipe_text(tmp_path / "storage", tmp_path, mixtures, **spec)
        graph(recipe=text, claim="first")
        ran = [" ".join(command[1:3]) for command in commands]
        commands.clear()
        graph(recipe=text, claim="second")  # a doubled run
        assert [" ".join(command[1:3]) for command in commands] == ["kfp plan", "kfp cleanup"]

    middle = [f"{'stage' if node == 'mix' else 'launch'} {','.join(groups)}" for node, groups in NODES.items()][:-1]
    assert ran == ["kfp plan", *middle, "kfp report", "kfp cleanup"]
    (folder,) = (tmp_path / "storage" / "runs").iterdir()
    assert json.loads((folder / "claim.json").read_text()) == {"by": "first"}
    run = load_run(str(folder))
    status = run.status()["stages"]
    assert {stage["state"] for stage in status.values()} == {"done"}
    assert set(status) == {*ingest_of(run), *run.nodes, "mix", "analyze", "reshard", "train", "evaluate", "report"}
    assert [*status["mix"]["empty"]] == ["nobody"]
    assert [found.name for found in (tmp_path / "storage" / "models").iterdir()] == [
        run.model_folder(run.spec.mixtures[1]).removeprefix("models/")
    ]
    empty, row = result_table(run)
    assert (empty["pairs"], empty["classification"]) == (0, None)
    assert row["classification"] is not None

    (shown,) = (path.parent for path in (tmp_path / "kfp").rglob("report/table"))
    assert (shown / "table").read_text().splitlines()[3].startswith("| mixed | ")
    assert (shown / "page").read_text() == (folder / "report.html").read_text()
    (artifact,) = json.loads((shown / "executor_output.json").read_text())["artifacts"]["metrics"]["artifacts"]
    assert artifact["metadata"]["mixed classification"] == row["classification"]


@pytest.mark.slow
def test_bad_input_fails_the_run_and_its_exit_step_still_runs(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with containers_as_processes(tmp_path / "kfp") as commands, pytest.raises(RuntimeError, match="plan"):
        pipeline()(recipe=recipe_text(tmp_path / "storage", tmp_path, [], pool={"name": "Pool", "shards": "/x"}))
    assert [command[2] for command in commands] == ["plan", "cleanup"]
    assert 'error: recipe: spec.pool.name: found "Pool"' in capfd.readouterr().out
