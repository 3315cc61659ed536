"""From the pipeline's parameters to a recipe, and every mistake in one line."""

from __future__ import annotations

import json
from typing import Any

import pytest
import yaml

from components.base.errors import PermanentError
from components.recipe.recipe import Recipe, parse_recipe
from components.recipe.sources import CommonCrawl, Pool
from pipelines.kubeflow.parameters import parameters, recipe_of


def given(recipe: str) -> dict[str, str]:
    return {p.name: p.default for p in parameters()} | {"recipe": recipe}


def test_the_recipe_is_said_once_and_the_rest_is_the_clusters() -> None:
    assert [p.name for p in parameters()] == [
        *("recipe", "claim", "job_service_account", "job_secret", "schedule", "dumps", "oldest_dump"),
        *("operator_image", "cpu_image", "gpu_image"),
    ]


def test_a_recipe_is_yaml_or_json_on_one_line_as_kfps_form_has_it() -> None:
    text = recipe_text()
    line = json.dumps(yaml.safe_load(text))
    assert "\n" not in line
    assert recipe_of(given(line)) == recipe_of(given(text)) == parse_recipe(text)


def test_the_dump_of_a_schedule_may_be_the_pool_itself() -> None:
    text = recipe_text(name="cc-{dump}").replace(
        "    shards: gs://bucket/pool\n", "    commonCrawl: {dump: '{dump}'}\n"
    )
    spec = recipe_of(given(text), "CC-MAIN-2026-43").spec
    assert spec.pool == Pool(name="cc-cc-main-2026-43", common_crawl=CommonCrawl(dump="CC-MAIN-2026-43"))


@pytest.mark.parametrize(("recipe", "message"), [
    ("", "^parameter recipe: found nothing; expected a recipe as YAML or JSON$"),
    (" \n", "^parameter recipe: found nothing"),
    ("kind: Recaption", "recipe: apiVersion: missing"),
    ("a: [", "recipe: not YAML"),
])  # fmt: skip
def test_mistakes(recipe: str, message: str) -> None:
    with pytest.raises(PermanentError, match=message):
        recipe_of(given(recipe))


def test_only_a_schedule_has_a_dump() -> None:
    with pytest.raises(PermanentError, match=r"recipe: \{dump\} stands only in the recipe of a schedule"):
        recipe_of(given(recipe_text(shards="gs://b/{dump}/shards")))


def recipe_text(**pool: str) -> str:
    whole: dict[str, Any] = {
        "apiVersion": "recaption.dev/v1alpha1",
        "kind": "Recaption",
        "metadata": {"name": "weekly"},
        "spec": {
            "storage": "gs://bucket/storage",
            "pool": {"name": "pool", "shards": "gs://bucket/pool", **pool},
            "mixtures": [{"name": "raw", "rules": [{"text": "raw"}]}],
        },
    }
    return yaml.safe_dump(whole)


def test_the_dump_stands_as_it_is_and_in_names_in_lower_case() -> None:
    def made(text: str) -> Recipe:
        return recipe_of(given(text), "CC-MAIN-2026-43")

    block = made(recipe_text(name="cc-{dump}", shards="gs://pools/{dump}/shards"))
    assert block.spec.pool.name == "cc-cc-main-2026-43"
    assert block.spec.pool.shards == "gs://pools/CC-MAIN-2026-43/shards"
    text = recipe_text(shards="/{dump}").replace("name: weekly", "{name: weekly-{dump}}")
    flow = made(text.replace("metadata:\n  ", "metadata: "))
    assert flow.name == "weekly-cc-main-2026-43"


def test_a_schedules_mistakes() -> None:
    with pytest.raises(PermanentError, match=r"recipe: a schedule's needs \{dump\}, in spec.pool.name and in shards,"):
        recipe_of(given(recipe_text()), "CC-MAIN-2026-43")
    with pytest.raises(
        PermanentError, match=r"recipe: spec\.pool: found gs://bucket/pool, without \{dump\}; every dump is"
    ):
        recipe_of(given(recipe_text(name="cc-{dump}")), "CC-MAIN-2026-43")
    latest = recipe_text(name="cc-{dump}").replace(
        "    shards: gs://bucket/pool\n", "    commonCrawl: {dump: latest}\n"
    )
    with pytest.raises(PermanentError, match=r"recipe: spec\.pool: found latest, without \{dump\}"):
        recipe_of(given(latest), "CC-MAIN-2026-43")
    with pytest.raises(PermanentError, match=r"recipe: spec\.pool\.nme: unknown key"):
        recipe_of(given(recipe_text(nme="{dump}")), "CC-MAIN-2026-43")
