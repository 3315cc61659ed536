"""The samples are recipes that the CLI takes too, and fit the sample queues and the trainer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from components.miniature.demo import WEIGHTS
from components.recipe.nodes import gpus_per_node, train_pool
from components.recipe.recipe import Recipe, parse_recipe
from components.recipe.training import ScaleConfig
from pipelines.kubernetes.trainjobs import training_needs
from pipelines.operator.schedule.model import RecaptionSchedule
from tests.manifests.rendering import MANIFESTS, named, render

SAMPLES = sorted((MANIFESTS / "samples").glob("*.yaml"))
SCALES = {"small": "small-blip2", "medium": "medium-blip2", "large": "large-blip2"}
DUMP = "CC-MAIN-2026-43"


def recipe_of(path: Path) -> Recipe:
    """A sample, or what a schedule makes of its template for a dump."""
    value = yaml.safe_load(path.read_text())
    if value["kind"] == "RecaptionSchedule":
        value = filled(value, DUMP)
    return parse_recipe(yaml.safe_dump(value, sort_keys=False), path.name)


def filled(schedule: dict[str, Any], dump: str) -> dict[str, Any]:
    spec = schedule["spec"]["template"]["spec"]
    crawl = spec["pool"]["commonCrawl"]
    assert crawl["dump"] == "{dump}"
    pool = {"name": spec["pool"]["name"].replace("{dump}", dump.lower()), "commonCrawl": {**crawl, "dump": dump}}
    assert pool["name"] != spec["pool"]["name"]
    metadata = {"name": f"{schedule['metadata']['name']}-{dump.lower()}"}
    return {**schedule, "kind": "Recaption", "metadata": metadata, "spec": {**spec, "pool": pool}}


def test_there_is_a_sample_for_each_of_datacomps_scales_one_without_gpus_one_that_downloads_and_a_schedule() -> None:
    kinds = {path.stem: yaml.safe_load(path.read_text())["kind"] for path in SAMPLES}
    recaptions = dict.fromkeys((*SCALES, "datacomp-urls", "without-gpus"), "Recaption")
    assert kinds == {**recaptions, "common-crawl": "RecaptionSchedule"}


@pytest.mark.parametrize("path", SAMPLES, ids=lambda p: p.stem)
def test_whoever_downloads_says_who_they_are(path: Path) -> None:
    """And is told to, by a placeholder that nobody takes for an address."""
    spec = recipe_of(path).spec
    if spec.pool.shards is None:
        assert spec.download
        assert spec.download.contact == "https://example.org/REPLACE-ME"
    else:
        assert spec.download is None


@pytest.mark.parametrize("path", SAMPLES, ids=lambda p: p.stem)
def test_a_sample_is_a_recipe_whose_nodes_can_train_it(path: Path) -> None:
    spec = recipe_of(path).spec
    assert spec.mixtures
    if spec.train:
        assert spec.evaluate
        nodes, pool = spec.compute.train, train_pool(spec.compute)
        needs = training_needs(spec.train, nodes, pool)  # refuses GPUs that don't divide a batch
        assert needs.gpu == (gpus_per_node(nodes, pool) > 0) == (path.stem != "without-gpus")
        if path.stem in SCALES:
            assert (recipe_of(path).name, spec.train.scale) == (SCALES[path.stem], path.stem)


def test_the_sample_without_gpus_has_models_that_the_images_have() -> None:
    """By the path at which the Dockerfile installs our packages; tests/pipelines/kubernetes runs the recipe itself."""
    spec = recipe_of(MANIFESTS / "samples" / "without-gpus.yaml").spec
    assert spec.train
    assert isinstance(spec.train.scale, ScaleConfig)
    models = [
        spec.scorer.model.removeprefix("local-dir:"),
        *(c.options.model for c in spec.columns),
        spec.train.scale.model,
    ]
    installed = "/opt/recaption/lib/python3.11/site-packages/components/miniature/weights/"
    assert all((WEIGHTS / model.removeprefix(installed)).exists() for model in models)
    dockerfile = (MANIFESTS.parent / "images" / "Dockerfile").read_text()
    assert "python3 -m venv --without-pip /opt/recaption" in dockerfile
    assert "PYTHON_IMAGE=python:3.11-" in dockerfile


@pytest.mark.parametrize("path", SAMPLES, ids=lambda p: p.stem)
def test_a_queued_pool_has_its_queue_and_a_flavor_among_kueues_samples(path: Path) -> None:
    rendered = render("components/kueue")
    queues = {o["metadata"]["name"] for o in named(rendered, "LocalQueue").values()}
    labels = [o.get("spec", {}).get("nodeLabels", {}) for o in named(rendered, "ResourceFlavor").values()]
    for pool in (p for p in recipe_of(path).spec.compute.pools if p.queue):
        assert pool.queue in queues
        assert any(pool.node_selector.items() <= flavor.items() for flavor in labels), pool.name


def test_kueues_samples_belong_together() -> None:
    rendered = render("components/kueue")
    queue = named(rendered, "ClusterQueue")["recaption"]["spec"]
    (group,) = queue["resourceGroups"]
    assert {flavor["name"] for flavor in group["flavors"]} == set(named(rendered, "ResourceFlavor"))
    for flavor in group["flavors"]:
        assert [resource["name"] for resource in flavor["resources"]] == group["coveredResources"]
    (local,) = named(rendered, "LocalQueue").values()
    assert local["spec"]["clusterQueue"] == "recaption"
    assert queue["namespaceSelector"]["matchLabels"]["kubernetes.io/metadata.name"] == local["metadata"]["namespace"]


def test_the_schedule_is_one() -> None:
    schedule = RecaptionSchedule.model_validate(
        yaml.safe_load((MANIFESTS / "samples" / "common-crawl.yaml").read_text())
    )
    assert schedule.spec.dumps == "new"
