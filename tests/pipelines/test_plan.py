"""The names of what a run makes: only what decides the content is in them."""

from __future__ import annotations

from pathlib import Path

import pytest

from components.pool.recipe import parse_recipe
from components.pool.run import Run
from pipelines.plan import plan_run

RECIPE = """
apiVersion: recaption.dev/v1alpha1
kind: Recaption
metadata: {name: named}
spec:
  storage: storage
  pool: {name: pool, shards: pool}
  captioners:
  - {name: blip2, model: Salesforce/blip2-opt-2.7b, temperature: 1}
  mixtures:
  - name: raw30-blip2
    rules:
    - {name: good, text: raw, where: [{score: raw, top: 0.3}]}
    - {text: blip2, where: [{score: blip2, atLeast: {rule: good}}]}
    - {text: {concat: [raw, blip2]}, where: [{score: raw, atLeast: 0}]}
  train: {scale: {model: ViT-B-32, batchSize: 64, learningRate: 1, warmup: 5, samples: 100}}
"""


@pytest.fixture(autouse=True)
def pool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("pool").mkdir()
    Path("pool", "00000000.tar").write_bytes(b"x" * 512)


def names(run: Run) -> list[str]:
    mixture = run.spec.mixtures[0]
    return [run.name, run.mixture_folder(mixture), run.model_folder(mixture)]


def test_names_stay_what_they_were() -> None:
    """As d17a450 named them, before the recipe's schema grew: what users have computed must be found again."""
    expected = ["named-ec99b900", "mixtures/raw30-blip2-12f7d99e7ec1", "models/raw30-blip2-3e349d5794fc"]
    assert names(plan_run(parse_recipe(RECIPE))) == expected


@pytest.mark.parametrize("added", ["suspend: true", "compute: {decoders: 2}", "evaluate: null", "filters: []"])
def test_what_changes_no_result_is_in_no_name(added: str) -> None:
    assert names(plan_run(parse_recipe(f"{RECIPE}  {added}\n"))) == names(plan_run(parse_recipe(RECIPE)))


def test_a_run_that_was_suspended_meanwhile_is_the_same_run() -> None:
    first = plan_run(parse_recipe(RECIPE))
    first.save()
    again = plan_run(parse_recipe(f"{RECIPE}  suspend: true\n"))
    again.save()
    assert again.name == first.name
