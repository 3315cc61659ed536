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
  columns:
  - {name: blip2, caption: {model: Salesforce/blip2-opt-2.7b, temperature: 1}}
  - {name: english, language: {is: en}}
  - {name: basic, basic: {}}
  - {name: faces, faces: {}}
  - {name: nsfw, imageNsfw: {weights: head.pth}}
  - {name: rude, textNsfw: {model: org/classifier, label: nsfw}}
  - {name: eval, duplicates: {index: index.npy}}
  - {name: pretty, aesthetic: {weights: head.pth}}
  - {name: b32, clip: {model: ViT-B-32, weights: openai}}
  drop: [{score: nsfw, atLeast: 0.9}]
  mixtures:
  - name: raw30-blip2
    rules:
    - {name: good, text: raw, where: [{score: raw, top: 0.3}, {flag: english}]}
    - {text: blip2, where: [{score: blip2, atLeast: {rule: good}}]}
    - {text: {concat: [raw, blip2]}, where: [{score: pretty, atMost: 0}]}
  - name: others
    rules:
    - {text: raw, where: [{flag: basic}, {score: faces, atMost: 1}, {score: rude, atMost: 0}]}
    - {text: raw, where: [{score: eval, atMost: 0.9}, {score: b32, atLeast: 0}]}
  train: {scale: {model: ViT-B-32, batchSize: 64, learningRate: 1, warmup: 5, samples: 100}}
  evaluate: {root: tasks, tasks: [wds_mnist]}
"""


@pytest.fixture(autouse=True)
def pool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("pool/00000000.tar", "head.pth", "index.npy", "tasks/wds_mnist/test/0.tar"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_bytes(b"x" * 512)


def names(run: Run) -> list[str]:
    """Of what the run makes; they are those of the content, wherever and whenever it was written."""
    mixture = with_index(run).spec.mixtures[0]
    return [
        *(node.spec.folder for node in run.nodes.values()),
        run.part(run.nodes["caption:blip2"]),
        run.mixture_folder(mixture),
        run.dataset_folder(mixture),
        run.model_folder(mixture),
        run.results_path(mixture),
    ]


def test_names_stay_what_they_were() -> None:
    """What users have computed must be found again, by a recaption that has more options than this one has."""
    assert names(plan_run(parse_recipe(RECIPE))) == [
        "index.shards-1b74448b4404",
        "filter.language-22872b2d9102",
        "filter.basic-ae50390cdb76",
        "faces.cascade-d8e4ac7da481",
        "embed.vit-l-14-openai-5ed5729470e8",
        "embed.vit-b-32-openai-6b3c70c36c7d",
        "score.raw-by-vit-l-14-openai-c6ffd323164e",
        "screen.imagensfw-head.pth-4421928c4c08",
        "screen.textnsfw-classifier-d8361c218948",
        "screen.duplicates-f2b88cf0233c",
        "aesthetic.head.pth-029a8591df81",
        "score.raw-by-vit-b-32-openai-669ad334d77b",
        "caption.blip2-opt-2.7b-t1-1da383fb94f5",
        "score.blip2-opt-2.7b-t1-by-vit-l-14-openai-deaf4ddbc85d",
        "a496566fb958",
        "mixtures/raw30-blip2-174f261c35d0",
        "datasets/raw30-blip2-99ed2c043f40",
        "models/raw30-blip2-958d311cde25",
        "evaluations/raw30-blip2-f68de16556b2/results-2dfa9b79010e.json",
    ]


def test_an_option_that_says_its_default_is_in_no_name() -> None:
    """So that a later version can add one: results are named by what differs from the defaults."""
    said = RECIPE.replace("temperature: 1}", "temperature: 1, topK: 50, minLength: 5, maxLength: 40, seed: 0}")
    said = said.replace("basic: {}", "basic: {model: null}").replace("rules:", "emit: first\n    rules:")
    said = said.replace("label: nsfw}", "label: nsfw, text: raw}").replace(
        "{flag: english}", "{flag: english, equals: true}"
    )
    said = said.replace("  drop:", "  scorer: {model: ViT-L-14, weights: openai}\n  trainingSets: {blur: []}\n  drop:")
    assert said.count("\n") == RECIPE.count("\n") + 4
    assert names(plan_run(parse_recipe(said))) == names(plan_run(parse_recipe(RECIPE)))
    assert plan_run(parse_recipe(said)).name == plan_run(parse_recipe(RECIPE)).name


PRICES = "compute: {pools: [{name: a100, accelerator: {}, price: 2.5}]}"


@pytest.mark.parametrize(
    "added", ["suspend: true", "compute: {decoders: 2}", "trainingSets: {blur: []}", "scorer: {}", PRICES]
)
def test_what_changes_no_result_is_in_no_name(added: str) -> None:
    changed = plan_run(parse_recipe(f"{RECIPE}  {added}\n"))
    assert names(changed) == names(plan_run(parse_recipe(RECIPE)))
    assert changed.name == plan_run(parse_recipe(RECIPE)).name


def test_a_further_name_for_a_choice_makes_nothing_anew() -> None:
    rules = RECIPE[RECIPE.index("    rules:") : RECIPE.index("  - name: others")]
    more = RECIPE.replace("  - name: others", f"  - name: again\n{rules}  - name: others", 1)
    assert names(plan_run(parse_recipe(more))) == names(plan_run(parse_recipe(RECIPE)))


def test_a_run_that_was_suspended_meanwhile_is_the_same_run() -> None:
    first = plan_run(parse_recipe(RECIPE))
    first.save()
    again = plan_run(parse_recipe(f"{RECIPE}  suspend: true\n"))
    again.save()
    assert again.name == first.name
