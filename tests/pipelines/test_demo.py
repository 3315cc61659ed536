"""The demo's orderings that are clear at its size, by real trainings; no more of the paper's findings is claimed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from components.miniature.demo import prepare
from components.pool.run import load_run
from components.recipe.recipe import parse_recipe
from components.stages.report.table import result_table
from pipelines.execution.local import run_all
from pipelines.planning.plan import plan_run


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # webdataset leaves its tars open
def test_synthetic_texts_retrieve_better_than_raw_ones(tmp_path: Path) -> None:
    value = yaml.safe_load(prepare(tmp_path, samples=3_000, seed=1).read_text())
    spec = value["spec"]
    spec["mixtures"] = [m for m in spec["mixtures"] if m["name"] in ("raw", "synthetic")]
    for mixture in spec["mixtures"]:
        [rule] = mixture["rules"]
        rule["where"] = [{"score": rule["text"], "atLeast": -1}]  # else no cosine is computed
    spec["train"]["scale"]["samples"] = 19_200
    planned = plan_run(parse_recipe(json.dumps(value)))
    planned.save()
    run_all(planned)
    done = load_run(f"{planned.storage.uri}/{planned.folder}")
    raw, synthetic = result_table(done)
    assert synthetic["mean cosine"] > raw["mean cosine"] + 0.1  # type: ignore[operator]
    assert synthetic["unique trigrams"] < raw["unique trigrams"]  # type: ignore[operator]
    assert synthetic["retrieval"] > raw["retrieval"] + 0.05  # type: ignore[operator]
    assert "synthetic" in done.storage.read(f"{done.folder}/report.html").decode()
