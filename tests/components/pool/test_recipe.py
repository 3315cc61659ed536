"""Recipes: defaults from the paper, and one line for every mistake."""

from pathlib import Path

import pytest

from components.pool.errors import PermanentError
from components.pool.recipe import dump_recipe, load_recipe, parse_recipe

GOOD = """
apiVersion: recaption.dev/v1alpha1
kind: Recaption
metadata: {name: medium-blip2}
spec:
  storage: gs://bucket/recaption
  pool: {name: commonpool-medium, shards: gs://bucket/commonpool/shards}
  captioners:
  - {name: blip2, model: Salesforce/blip2-opt-2.7b}
  columns:
  - {name: l14, kind: score, from: /data/metadata, field: clip_l14_similarity_score}
  mixtures:
  - name: raw30-blip2
    rules:
    - {name: good, text: raw, where: [{score: raw, top: 0.3}]}
    - {text: blip2, where: [{score: blip2, atLeast: {rule: good}}]}
    - {text: {concat: [raw, blip2]}, where: [{score: l14, atLeast: 0.25}]}
  train: {scale: medium}
  evaluate: {root: /data/tasks, tasks: datacomp}
"""


def test_defaults_are_the_papers() -> None:
    spec = parse_recipe(GOOD).spec
    blip2 = spec.captioners[0]
    assert (blip2.top_k, blip2.min_length, blip2.max_length, blip2.temperature) == (50, 5, 40, 0.75)
    assert (spec.scorer.model, spec.scorer.weights) == ("ViT-L-14", "openai")


def test_dump_is_the_same_recipe() -> None:
    recipe = parse_recipe(GOOD)
    assert parse_recipe(dump_recipe(recipe)) == recipe


def test_pools_of_nodes_say_what_kubernetes_says() -> None:
    pools = (
        "{name: a100, nodeSelector: {gpu: a100}, tolerations: [{key: gpu, operator: Exists}], accelerator: {count: 2}}"
    )
    recipe = parse_recipe(f"{GOOD}  compute: {{pools: [{pools}, {{name: cpu, memory: 4Gi, spot: true}}]}}")
    a100, cpu = recipe.spec.compute.pools
    assert a100.node_selector == {"gpu": "a100"}
    assert a100.accelerator is not None
    assert (a100.accelerator.resource, a100.accelerator.count) == ("nvidia.com/gpu", 2)
    assert (cpu.accelerator, cpu.memory, cpu.share) == (None, "4Gi", 1.0)
    assert parse_recipe(dump_recipe(recipe)) == recipe


@pytest.mark.parametrize(
    ("pools", "expected"),
    [
        ("[{name: a}, {name: a}]", "spec.compute.pools[1].name: a is taken"),
        ("[{name: a, memory: lots}]", 'spec.compute.pools[0].memory: found "lots"'),
        ("[{name: a, parallelism: 0}]", "spec.compute.pools[0].parallelism: found 0"),
        ("[{name: a, accelerator: {resource: gpu}}]", 'spec.compute.pools[0].accelerator.resource: found "gpu"'),
        ("[{name: a, tolerations: [{operator: Exists, value: x}]}]", "operator Exists has no value"),
        ("[{name: a, nodeselector: {}}]", "spec.compute.pools[0].nodeselector: unknown key; allowed are name, nodeSel"),
    ],
)
def test_mistakes_in_pools_of_nodes_are_one_line(pools: str, expected: str) -> None:
    with pytest.raises(PermanentError) as caught:
        parse_recipe(f"{GOOD}  compute: {{pools: {pools}}}")
    assert expected in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("top: 0.3", "top: 0", "spec.mixtures[0].rules[0].where[0].top: found 0: Input should be greater than 0"),
        ("top: 0.3", "top: 1.1", "spec.mixtures[0].rules[0].where[0].top: found 1.1: Input should be less than or"),
        ("rule: good", "rule: bad", "spec.mixtures[0].rules[1].where[0].atLeast.rule: bad is no rule with a `top`"),
        ("text: blip2", "text: blip", "spec.mixtures[0].rules[1].text: blip is no text; there is raw, blip2"),
        ("score: blip2", "score: b", "spec.mixtures[0].rules[1].where[0].score: b is no score; there is raw, blip2"),
        ("scale: medium", "scale: big", "spec.train.scale: found \"big\": Input should be 'debug', 'small'"),
        ("scale: medium", "scale: {model: x}", "spec.train.scale.batchSize: missing"),
        ("  train:", "  trian:", "spec.trian: unknown key; allowed are storage, pool, scorer, captioners"),
        ("top: 0.3", "tpo: 0.3", "spec.mixtures[0].rules[0].where[0].tpo: unknown key; allowed are score, top"),
        ("concat: [raw, blip2]", "conact: [raw]", "spec.mixtures[0].rules[2].text: found {\"conact\": [\"raw\"]}"),
        ("score: raw, ", "", "spec.mixtures[0].rules[0].where[0]: found {\"top\": 0.3}: expected {score: …}"),
        ("name: raw30-blip2", "name: Raw 30", "spec.mixtures[0].name: found \"Raw 30\": String should match pattern"),
        ("kind: score", "kind: flag", "spec.mixtures[0].rules[2].where[0].score: l14 is no score; there is raw, blip2"),
        ("name: blip2,", "name: raw,", "spec.captioners[0].name: raw is taken"),
        (", field: clip_l14_similarity_score", "", "spec.columns[0]"),
        ("kind: Recaption", "kind: Caption", "kind: found \"Caption\": Input should be 'Recaption'"),
        ("metadata: {name: medium-blip2}", "", "metadata: missing"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line(old: str, new: str, expected: str) -> None:
    assert old in GOOD
    with pytest.raises(PermanentError) as caught:
        parse_recipe(GOOD.replace(old, new), "recipe.yaml")
    lines = str(caught.value).splitlines()
    assert any(line.startswith(f"recipe.yaml: {expected}") for line in lines), lines


def test_two_mixtures_of_one_name() -> None:
    twice = GOOD.replace("  train:", "  - {name: raw30-blip2, rules: [{text: raw}]}\n  train:")
    with pytest.raises(PermanentError, match=r"spec.mixtures\[1\].name: raw30-blip2 is taken"):
        parse_recipe(twice)


@pytest.mark.parametrize("text", ["", "- a list", "a: [1", "just words"])
def test_not_a_recipe(text: str) -> None:
    with pytest.raises(PermanentError, match="recipe"):
        parse_recipe(text)


def test_a_recipe_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(PermanentError, match="No such file"):
        load_recipe(tmp_path / "absent.yaml")
