"""The names of what a run makes: only what decides the content is in them."""

from __future__ import annotations

from pathlib import Path

import pytest

from components.pool.run import Run
from components.recipe.recipe import parse_recipe
from pipelines.planning.plan import plan_run
from tests.filled import with_index

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
    """Of what the run makes; they are those of the content, wherever and whenever it was written."""
    mixture = with_index(run).spec.mixtures[0]
    return [*(node.spec.folder for node in run.nodes.values()), run.mixture_folder(mixture), run.model_folder(mixture)]


def test_names_stay_what_they_were() -> None:
    """What users have computed must be found again."""
    assert names(plan_run(parse_recipe(RECIPE))) == [
        "index.shards-1b74448b4404",
        "embed.vit-l-14-openai-b8540a1e1dee",
        "score.raw-by-vit-l-14-openai-b0ff67315b25",
        "caption.blip2-opt-2.7b-t1-b243a14ce82c",
        "score.blip2-opt-2.7b-t1-by-vit-l-14-openai-d91f511030be",
        "mixtures/raw30-blip2-e7ac4c913b59",
        "models/raw30-blip2-0d55ce675831",
    ]


@pytest.mark.parametrize("added", ["suspend: true", "compute: {decoders: 2}", "evaluate: null", "filters: []"])
def test_what_changes_no_result_is_in_no_name(added: str) -> None:
    assert names(plan_run(parse_recipe(f"{RECIPE}  {added}\n"))) == names(plan_run(parse_recipe(RECIPE)))


def test_a_run_that_was_suspended_meanwhile_is_the_same_run() -> None:
    first = plan_run(parse_recipe(RECIPE))
    first.save()
    again = plan_run(parse_recipe(f"{RECIPE}  suspend: true\n"))
    again.save()
    assert again.name == first.name
