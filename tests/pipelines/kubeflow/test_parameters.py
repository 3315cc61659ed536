"""From the pipeline's parameters to a recipe, and every mistake in one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

import components.stages.mix
from components.base.errors import PermanentError
from components.recipe.recipe import Recipe, parse_recipe
from components.recipe.sources import CommonCrawl, Download, Pool
from pipelines.kubeflow.parameters import CAPTIONED, STRATEGIES, parameters, recipe_of

STRATEGY_FILES = Path(str(components.stages.mix.__file__)).parent / "strategies"
NEEDED = {"storage": "gs://bucket/recaption", "pool_name": "medium", "shards": "gs://bucket/medium/shards"}

CRAWL = {"shards": "", "common_crawl": "latest"}


def values(**given: Any) -> dict[str, Any]:
    return {p.name: p.default for p in parameters()} | given


def test_what_a_person_must_give_is_little() -> None:
    spec = recipe_of(values(**NEEDED)).spec
    assert (spec.storage, spec.pool.name, spec.pool.shards) == tuple(NEEDED.values())
    assert (spec.scorer.model, spec.scorer.weights) == ("ViT-L-14", "openai")
    assert spec.columns[0].caption.model == "Salesforce/blip2-opt-2.7b"
    assert [m.name for m in spec.mixtures] == ["raw-top-plus-synthetic-filtered"]
    assert spec.train
    assert spec.train.scale == "medium"
    assert spec.evaluate is None


@pytest.mark.parametrize(("strategy", "file", "mixture"), [
    ("raw", "no-filter.yaml", None),
    ("raw-top", "raw-top.yaml", "raw30"),
    ("synthetic", "blip2.yaml", None),
    ("synthetic-top", "blip2-top.yaml", "blip2-50"),
    ("raw-top-plus-synthetic", "raw-top-plus-blip2-rest.yaml", "raw30-blip2"),
    ("raw-top-plus-synthetic-filtered", "raw-top-plus-blip2-filtered.yaml", "raw30-blip2"),
])  # fmt: skip
def test_a_strategy_is_the_papers(strategy: str, file: str, mixture: str | None) -> None:
    """As the recipe files that reproduce the paper's tables have it, but for the captioner's name."""
    paper = parse_recipe((STRATEGY_FILES / file).read_text()).spec.mixtures
    wanted = next(m for m in paper if mixture is None or m.name.startswith(mixture))
    tops = [c.top for rule in wanted.rules for c in rule.where if getattr(c, "top", None)]
    made = recipe_of(values(**NEEDED, strategies=[strategy], fraction=tops[0] if tops else 0.3)).spec.mixtures[0]
    renamed = wanted.model_dump_json(exclude={"name"}).replace('"blip2"', f'"{CAPTIONED}"')
    assert made.model_dump_json(exclude={"name"}) == renamed


def test_every_strategy_can_be_made_and_only_those_with_captions_have_a_captioner() -> None:
    everything = recipe_of(values(**NEEDED, strategies=list(STRATEGIES))).spec
    assert [m.name for m in everything.mixtures] == list(STRATEGIES)
    assert recipe_of(values(**NEEDED, strategies=["raw", "raw-top"])).spec.captioners == []


def test_kfps_numbers_are_doubles() -> None:
    pools = [{"name": "a100", "accelerator": {"count": 1.0}, "parallelism": 64.0, "share": 0.5}]
    spec = recipe_of(
        values(**NEEDED, top_k=50.0, shards_per_task=4.0, train_seed=1.0, train_nodes=2.0, node_pools=pools)
    ).spec
    assert spec.compute.train.nodes == 2
    assert (spec.columns[0].caption.top_k, spec.compute.shards_per_task) == (50, 4)
    assert spec.compute.pools[0].accelerator
    assert (spec.compute.pools[0].accelerator.count, spec.compute.pools[0].parallelism) == (1, 64)


def test_a_pool_may_be_downloaded() -> None:
    spec = recipe_of(values(**{**NEEDED, **CRAWL}, crawl_files=100.0, contact="https://example.org/us")).spec
    assert spec.pool == Pool(name="medium", common_crawl=CommonCrawl(dump="latest", sample=100))
    assert spec.download == Download(contact="https://example.org/us")
    spec = recipe_of(values(**{**NEEDED, **CRAWL, "common_crawl": "CC-MAIN-2026-43"})).spec
    assert spec.pool.common_crawl == CommonCrawl(dump="CC-MAIN-2026-43")
    assert spec.download is None
    spec = recipe_of(values(**{**NEEDED, "shards": "", "urls": "gs://bucket/metadata"})).spec
    assert spec.pool == Pool(name="medium", urls="gs://bucket/metadata")


def test_the_dump_of_a_schedule_may_be_the_pool_itself() -> None:
    given = {**NEEDED, "shards": "", "common_crawl": "{dump}", "pool_name": "cc-{dump}"}
    spec = recipe_of(values(**given), "CC-MAIN-2026-43").spec
    assert spec.pool == Pool(name="cc-cc-main-2026-43", common_crawl=CommonCrawl(dump="CC-MAIN-2026-43"))


def test_evaluation_and_no_training() -> None:
    spec = recipe_of(values(**NEEDED, evaluate_root="/eval", evaluate_tasks=["a", "b"])).spec
    assert spec.evaluate
    assert spec.evaluate.tasks == ["a", "b"]
    assert recipe_of(values(**NEEDED, train_scale="")).spec.train is None


@pytest.mark.parametrize(("given", "message"), [
    ({"shards": ""}, "parameters shards, urls, common_crawl: found none; give one"),
    ({"urls": "/x.csv", "common_crawl": "latest"}, "common_crawl: found shards, urls, common_crawl; give one"),
    ({"crawl_files": 5.0}, "parameter crawl_files: it takes some of a dump's files; give common_crawl"),
    ({"contact": "x"}, "parameters: spec.download: there is nothing to download, spec.pool has shards"),
    ({**CRAWL, "crawl_files": -1.0}, "parameters: spec.pool.commonCrawl.sample: found -1"),
    ({**CRAWL, "common_crawl": "newest"}, "parameters: spec.pool.commonCrawl.dump: found .newest."),
    ({**CRAWL, "contact": "a b"}, "parameters: spec.download.contact: found .a b.: expected an address of a page"),
    ({"storage": ""}, 'parameters: spec.storage: found "": .* at least 1 character'),
    ({"pool_name": "Medium!"}, 'parameters: spec.pool.name: found "Medium!"'),
    ({"temperature": -1.0}, r"parameters: spec.columns\[0\].caption.temperature: found -1.0"),
    ({"strategies": ["best"]}, "parameter strategies: best; there is raw, raw-top,"),
    ({"strategies": []}, "parameter strategies: none given; there is raw,"),
    ({"fraction": 2.0}, "less than or equal to 1"),
    ({"train_scale": "huge"}, "parameters: spec.train.scale"),
    ({"train_scale": "", "evaluate_root": "/eval"}, "nothing to evaluate without spec.train"),
    ({"node_pools": [{"nam": "a100"}]}, r"parameters: spec.compute.pools\[0\].nam: unknown key"),
    ({"shards": "gs://b/{dump}/shards"}, r"parameters: \{dump\} stands only in the recipe of a schedule"),
    ({"recipe": "kind: Recaption"}, "recipe: apiVersion: missing"),
    ({"recipe": "a: [", "storage": ""}, "recipe: not YAML"),
])  # fmt: skip
def test_mistakes(given: dict[str, Any], message: str) -> None:
    with pytest.raises(PermanentError, match=message):
        recipe_of(values(**{**NEEDED, **given}))


def test_a_whole_recipe_counts_alone() -> None:
    text = recipe_text(shards="/pool")
    assert recipe_of(values(recipe=text, storage="/elsewhere", strategies=["no such"])) == parse_recipe(text)


def recipe_text(**pool: str) -> str:
    whole: dict[str, Any] = {
        "apiVersion": "recaption.dev/v1alpha1",
        "kind": "Recaption",
        "metadata": {"name": "weekly"},
        "spec": {
            "storage": "/storage",
            "pool": {"name": "pool", "shards": "/pool", **pool},
            "mixtures": [{"name": "raw", "rules": [{"text": "raw"}]}],
        },
    }
    return yaml.safe_dump(whole)


def test_the_dump_stands_as_it_is_and_in_names_in_lower_case() -> None:
    def made(text: str) -> Recipe:
        return recipe_of(values(recipe=text), "CC-MAIN-2026-43")

    block = made(recipe_text(name="cc-{dump}", shards="gs://pools/{dump}/shards"))
    assert block.spec.pool.name == "cc-cc-main-2026-43"
    assert block.spec.pool.shards == "gs://pools/CC-MAIN-2026-43/shards"
    text = recipe_text(shards="/{dump}").replace("name: weekly", "{name: weekly-{dump}}")
    flow = made(text.replace("metadata:\n  ", "metadata: "))
    assert flow.name == "weekly-cc-main-2026-43"


def test_a_schedules_mistakes() -> None:
    with pytest.raises(PermanentError, match=r"recipe: a schedule's needs \{dump\}, in spec.pool.name and in shards,"):
        recipe_of(values(recipe=recipe_text()), "CC-MAIN-2026-43")
    with pytest.raises(PermanentError, match=r"recipe: spec\.pool: found /pool, without \{dump\}; every dump is"):
        recipe_of(values(recipe=recipe_text(name="cc-{dump}")), "CC-MAIN-2026-43")
    latest = {**NEEDED, **CRAWL, "pool_name": "cc-{dump}"}
    with pytest.raises(PermanentError, match=r"parameters: spec\.pool: found latest, without \{dump\}"):
        recipe_of(values(**latest), "CC-MAIN-2026-43")
    with pytest.raises(PermanentError, match=r"recipe: spec\.pool\.nme: unknown key"):
        recipe_of(values(recipe=recipe_text(nme="{dump}")), "CC-MAIN-2026-43")
