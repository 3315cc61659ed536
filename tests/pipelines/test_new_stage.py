"""A stage is one file: a package in a folder of its own, on Python's path, is in every door and page."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.pipelines.execution.test_local import recipe_text
from tests.pools import write_shard

ROOT = Path(__file__).parents[2]
STAGE = '''
"""light: how bright an image is."""

from components.engine.images import Geometry
from components.engine.stage import ColumnStage, Field, Needs
from components.recipe.columns import Options


class Light(Options):
    """How bright the image is, from 0 to 1."""

    kind = "light"
    roles = ("score",)

    side: int = 16
    """Pixels of the square that is looked at."""


class LightStage(ColumnStage):
    """Reads the image."""

    name = "light"
    summary = "how bright each image is"
    reads = ("image",)
    writes = "score"
    needs = Needs(memory_gib=1)
    version = 1
    fields = (Field("score", "float32", "[0, 1], higher = brighter; null: the image can't be read"),)
    kinds = (Light,)

    def setup(self, uids):
        self.geometry = Geometry((self.options.side, self.options.side), "squash")

    def process(self, batch):
        return {"score": (batch.images.reshape(len(batch.uids), -1).mean(1) / 255).tolist()}
'''
MIXTURES = [{"name": "bright", "rules": [{"text": "raw", "where": [{"score": "sun", "top": 0.5}]}]}]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the stage's package, a pool, and a recipe that asks for its kind."""
    folder = tmp_path_factory.mktemp("new")
    package = folder / "mine" / "components" / "stages" / "light"
    package.mkdir(parents=True)
    (package / "stage.py").write_text(STAGE)
    write_shard(folder / "shards", 0, 6)
    text = recipe_text(folder / "out", folder / "shards", MIXTURES, columns=[{"name": "sun", "light": {"side": 8}}])
    (folder / "recipe.yaml").write_text(text)
    return folder


def called(place: Path, *command: str) -> str:
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{place / 'mine'}", "COLUMNS": "200"}
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_recipe_with_it_is_planned_and_run(place: Path) -> None:
    cli, recipe = ("-m", "pipelines.cli"), str(place / "recipe.yaml")
    assert "how bright each image is" in called(place, *cli, "stages")
    called(place, *cli, "validate", recipe)
    assert "light:sun" in called(place, *cli, "plan", recipe)
    called(place, *cli, "run", recipe)
    [mixture] = (json.loads(path.read_text()) for path in place.glob("out/mixtures/bright-*/mixture.json"))
    assert mixture["images"] == 4  # of six the best half and the next, as DataComp counts
    [page] = place.glob("out/runs/*/report.html")
    assert "light:sun" in page.read_text()


def test_it_is_in_the_clusters_schema(place: Path) -> None:
    code = "import json; from pipelines.operator.crd.generate import recaption_crd; print(json.dumps(recaption_crd()))"
    crd = json.loads(called(place, "-c", code))
    spec = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]
    kinds = spec["properties"]["columns"]["items"]["properties"]
    assert kinds["light"]["properties"]["side"]["description"] == "Pixels of the square that is looked at."


def test_it_is_in_the_pages(place: Path) -> None:
    code = "import sys; from pipelines.pages.parts import pages, with_parts\n"
    code += "for page in pages(): sys.stdout.write(with_parts(page.read_text()))"
    pages = called(place, "-c", code)
    assert "| light | how bright each image is | image | score float32 | 1 GiB |" in pages
    assert "How bright the image is, from 0 to 1." in pages


def test_a_mistake_in_its_options_is_one_line(place: Path) -> None:
    recipe = place / "bad.yaml"
    recipe.write_text((place / "recipe.yaml").read_text().replace("side:", "size:"))
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{place / 'mine'}"}
    command = [sys.executable, "-m", "pipelines.cli", "validate", str(recipe)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 42
    assert "spec.columns[0].light.size: unknown key; allowed are side" in done.stderr


def test_a_kind_that_two_stages_declare_is_refused_in_one_line(place: Path, tmp_path: Path) -> None:
    twin = tmp_path / "components" / "stages" / "twin"
    twin.mkdir(parents=True)
    (twin / "stage.py").write_text(STAGE.replace('name = "light"', 'name = "twin"'))
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{place / 'mine'}:{tmp_path}"}
    command = [sys.executable, "-m", "pipelines.cli", "validate", str(place / "recipe.yaml")]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 42
    assert "Traceback" not in done.stderr
    assert "kind light is components.stages.light.stage's already" in done.stderr
