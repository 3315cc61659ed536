"""Recipes: defaults from the paper, and one line for every mistake."""

import json
import re
from pathlib import Path
from typing import Any, cast

import pytest

from components.base.errors import PermanentError
from components.recipe.recipe import Metadata, Spec, dump_recipe, load_recipe, parse_recipe
from components.recipe.types import WORDS
from pipelines.operator.schedule.model import ScheduleSpec

GOOD = """
apiVersion: recaption.dev/v1alpha1
kind: Recaption
metadata: {name: medium-blip2}
spec:
  storage: gs://bucket/recaption
  pool: {name: commonpool-medium, shards: gs://bucket/commonpool/shards}
  columns:
  - {name: blip2, caption: {model: Salesforce/blip2-opt-2.7b}}
  - {name: l14, import: {from: /data/metadata, field: clip_l14_similarity_score, as: score}}
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
    blip2 = cast(Any, spec.columns[0].options)
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
        ("  train:", "  trian:", "spec.trian: unknown key; allowed are storage, pool, scorer, columns"),
        ("top: 0.3", "tpo: 0.3", "spec.mixtures[0].rules[0].where[0].tpo: unknown key; allowed are score, top"),
        ("concat: [raw, blip2]", "conact: [raw]", "spec.mixtures[0].rules[2].text: found {\"conact\": [\"raw\"]}"),
        ("score: raw, ", "", "spec.mixtures[0].rules[0].where[0]: found {\"top\": 0.3}: expected {score: …}"),
        ("name: raw30-blip2", "name: Raw 30", "spec.mixtures[0].name: found \"Raw 30\": expected small letters a-z"),
        ("as: score", "as: flag", "spec.mixtures[0].rules[2].where[0].score: l14 is no score; there is raw, blip2"),
        ("name: blip2,", "name: raw,", "spec.columns[0]: found"),
        (", field: clip_l14_similarity_score", "", "spec.columns[1].import: found"),
        ("kind: Recaption", "kind: Caption", "kind: found \"Caption\": Input should be 'Recaption'"),
        ("metadata: {name: medium-blip2}", "", "metadata: missing"),
        ("metadata: {name: medium-blip2}", "metadata: {name: Medium}", "metadata.name: found \"Medium\": "),
        ("metadata: {name: medium-blip2}", "metadata: {name: a..b}", "metadata.name: found \"a..b\": expected small"),
        ("{name: medium-blip2}", "{name: a, labels: {a: 1}}", "metadata.labels.a: found 1: Input should"),
        ("{name: medium-blip2}", "{name: a, lables: {a: b}}", "metadata: found {\"name\": \"a\", \"lables\""),
        ("top: 0.3", "top: '0.3'", "spec.mixtures[0].rules[0].where[0].top: found \"0.3\": Input should"),
        ("top: 0.3", "top: true", "spec.mixtures[0].rules[0].where[0].top: found true: Input should"),
        ("top: 0.3", "top: .inf", "spec.mixtures[0].rules[0].where[0].top: found Infinity: Input should be"),
        ("caption: {", "caption: {topK: '50', ", "spec.columns[0].caption.topK: found \"50\": Input should"),
        ("caption: {", "caption: {topK: 50.5, ", "spec.columns[0].caption.topK: found 50.5: Input should"),
        ("caption: {", "caption: {topK: true, ", "spec.columns[0].caption.topK: found true: Input should"),
        ("caption: {", "caption: {seed: -1, ", "spec.columns[0].caption.seed: found -1: Input should be greater"),
        ("caption: {", "caption: {revision: 1e3, ", "spec.columns[0].caption.revision: found 1000.0: Input"),
        ("caption: {", "caption: {top_k: 50, ", "spec.columns[0].caption.top_k: unknown key; allowed are model"),
        ("caption: {", "caption: {nmae: null, ", "spec.columns[0].caption.nmae: unknown key; allowed are model"),
        ("name: blip2,", "name: null,", "spec.columns[0].name: missing"),
        ("storage: gs://bucket/recaption", "storage: http://bucket", "spec.storage: found \"http://bucket\": scheme"),
        ("storage: gs://bucket/recaption", "storage: 'gs:/bucket'", "spec.storage: found \"gs:/bucket\": expected gs://"),
        ("shards: gs://bucket/commonpool/shards", "shards: s3://", "spec.pool.shards: found \"s3://\": has no bucket"),
        ("from: /data/metadata", "from: https://data", "spec.columns[1].import.from: found \"https://data\": "),
        ("root: /data/tasks", "root: hdfs://data", "spec.evaluate.root: found \"hdfs://data\": scheme hdfs:// is not"),
        ("  train: {scale: medium}", "  suspend: 'yes'", "spec.suspend: found \"yes\": Input should"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line(old: str, new: str, expected: str) -> None:
    assert old in GOOD
    with pytest.raises(PermanentError) as caught:
        parse_recipe(GOOD.replace(old, new), "recipe.yaml")
    lines = str(caught.value).splitlines()
    assert any(line.startswith(f"recipe.yaml: {expected}") for line in lines), lines


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("top: 0.3", "top: 30", "; 30 % is 0.3"),
        ("top: 0.3", "topp: 0.3", "; did you mean top?"),
        ("  mixtures:", "  mixture:", "; did you mean mixtures?"),
        ("caption: {", "caption: {top_k: 50, ", "; did you mean topK?"),
        ("caption: {", "captoin: {", "; did you mean caption?"),
        ("concat: [raw, blip2]", "concta: [raw, blip2]", "; did you mean concat?"),
        ("score: raw, ", "scroe: raw, ", "; did you mean score?"),
        ("scale: medium", "scale: {modle: x}", "; did you mean model?"),
        ("kind: Recaption", "knid: Recaption", "; did you mean kind?"),
        ("{name: medium-blip2}", "{name: a, lables: {a: b}}", "; did you mean labels?"),
    ],
)
def test_a_mistake_names_what_was_probably_meant(old: str, new: str, says: str) -> None:
    assert old in GOOD
    with pytest.raises(PermanentError) as caught:
        parse_recipe(GOOD.replace(old, new), "recipe.yaml")
    assert any(line.endswith(says) for line in str(caught.value).splitlines()), str(caught.value)


def test_every_regular_expression_is_explained_in_words() -> None:
    schemas = json.dumps([Spec.model_json_schema(), ScheduleSpec.model_json_schema(), Metadata.model_json_schema()])
    patterns = {json.loads(found) for found in re.findall(r'"pattern": ("(?:[^"\\]|\\.)*")', schemas)}
    assert len(patterns) > 8
    assert patterns <= WORDS.keys()


@pytest.mark.parametrize("depth", [700, 3000, 100_000])
def test_brackets_in_brackets_are_one_line(depth: int) -> None:
    deep = "[" * depth + "]" * depth
    with pytest.raises(PermanentError, match=r"^recipe: found brackets in brackets") as caught:
        parse_recipe(GOOD.replace("text: blip2", f"text: {deep}"))
    assert len(str(caught.value).splitlines()) == 1


def test_a_list_that_holds_itself_is_one_line_a_mistake() -> None:
    with pytest.raises(PermanentError, match=r"(?m)^recipe: spec.pool.name: found \[\[") as caught:
        parse_recipe(GOOD.replace("name: commonpool-medium", "name: &a [*a, *a, *a]"))
    assert len(str(caught.value)) < 2000


@pytest.mark.parametrize(("old", "new", "same"), [
    ("caption: {", "caption: {topK: null, minLength: ~, revision: null, ", "caption: {"),
    ("train: {scale: medium}", "train: {scale: medium, seed: null, mixtures: null}", "train: {scale: medium}"),
    ("evaluate: {root: /data/tasks, tasks: datacomp}", "evaluate: null", ""),
    ("top: 0.3", "top: 0.3, atLeast: null, flag: null, equals: null", "top: 0.3"),
    ("concat: [raw, blip2]", "concat: [raw, blip2], bestOf: null", "concat: [raw, blip2]"),
    ("  columns:", "  scorer: {model: null, weights: null}\n  columns:", "  columns:"),
    ("  columns:", "  compute: {pools: [{name: a, nodeSelector: {a: null}}]}\n  columns:",
     "  compute: {pools: [{name: a}]}\n  columns:"),
    ("{name: medium-blip2}", "{name: medium-blip2, labels: {a: null}}", "{name: medium-blip2, labels: {}}"),
])  # fmt: skip
def test_a_null_is_a_key_left_out(old: str, new: str, same: str) -> None:
    """Kubernetes' API server drops it."""
    assert parse_recipe(GOOD.replace(old, new)) == parse_recipe(GOOD.replace(old, same))


def test_whole_numbers_may_be_written_as_doubles_and_doubles_as_whole_numbers() -> None:
    """kubectl sends 50.0 as 50, and KFP 50 as 50.0."""
    written = GOOD.replace("caption: {", "caption: {topK: 5.0e1, temperature: 1, ").replace(
        "atLeast: 0.25", "atLeast: 0"
    )
    options = cast(Any, parse_recipe(written).spec.columns[0].options)
    assert (options.top_k, options.temperature) == (50, 1.0)
    assert [type(n) for n in (options.top_k, options.temperature)] == [int, float]


def test_an_object_read_back_from_a_cluster_is_a_recipe() -> None:
    more = "{name: medium-blip2, namespace: kubeflow, uid: 0-1, generation: 3, managedFields: [{manager: kubectl}]}"
    read_back = GOOD.replace("{name: medium-blip2}", more) + "status: {phase: Running}\n"
    assert parse_recipe(read_back).spec == parse_recipe(GOOD).spec
    assert "phase" not in dump_recipe(parse_recipe(read_back))


def test_texts_that_look_like_numbers_stay_texts() -> None:
    odd = "{name: 1e3, labels: {a: 'y', b: '08', c: '2026-01-02', d: '0o17'}}".replace("1e3", "'1e3'")
    recipe = parse_recipe(GOOD.replace("{name: medium-blip2}", odd))
    assert recipe.name == "1e3"
    assert parse_recipe(dump_recipe(recipe)) == recipe


def test_two_mixtures_of_one_name() -> None:
    twice = GOOD.replace("  train:", "  - {name: raw30-blip2, rules: [{text: raw}]}\n  train:")
    with pytest.raises(PermanentError, match=r"spec.mixtures\[1\].name: raw30-blip2 is taken"):
        parse_recipe(twice)


@pytest.mark.parametrize("text", ["", "- a list", "a: [1", "just words"])
def test_not_a_recipe(text: str) -> None:
    with pytest.raises(PermanentError, match="recipe"):
        parse_recipe(text)


def test_a_schedule_is_no_recipe() -> None:
    text = "{apiVersion: recaption.dev/v1alpha1, kind: RecaptionSchedule, metadata: {name: x}, spec: {}}"
    with pytest.raises(PermanentError, match=r"^x\.yaml: kind: found RecaptionSchedule, .*; expected a Recaption.*$"):
        parse_recipe(text, "x.yaml")


def test_a_recipe_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(PermanentError, match="No such file"):
        load_recipe(tmp_path / "absent.yaml")
