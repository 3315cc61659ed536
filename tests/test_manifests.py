"""The manifests: valid objects, restricted pods, and the rights that the fan-out uses."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from components.pool.recipe import parse_recipe

ROOT = Path(__file__).parent.parent
MANIFESTS = ROOT / "manifests"
OVERLAYS = sorted(path.parent for path in MANIFESTS.rglob("kustomization.yaml"))
CUSTOM = ("kustomize.config.k8s.io", "trainer.kubeflow.org")  # the latter are checked in test_trainjobs


def objects() -> Iterator[tuple[str, dict[str, Any]]]:
    for path in sorted(MANIFESTS.rglob("*.yaml")):
        for value in yaml.safe_load_all(path.read_text()):
            if not value["apiVersion"].startswith(CUSTOM):
                yield f"{path.relative_to(MANIFESTS)}:{value['kind']}", value


@pytest.mark.parametrize(("place", "value"), list(objects()), ids=lambda v: v if isinstance(v, str) else "")
@pytest.mark.parametrize("version", ["1.33", "1.37"])
def test_objects_are_valid(place: str, value: dict[str, Any], version: str) -> None:
    kubernetes_validate.validate(value, version, strict=True)


@pytest.mark.parametrize("path", sorted(MANIFESTS.rglob("*.yaml")), ids=lambda p: str(p.relative_to(MANIFESTS)))
def test_the_first_line_says_what_a_file_is_for(path: Path) -> None:
    assert path.read_text().startswith("# ")


@pytest.mark.parametrize("folder", OVERLAYS, ids=lambda p: str(p.relative_to(MANIFESTS)))
def test_kustomize_renders(folder: Path) -> None:
    if shutil.which("kubectl") is None:
        pytest.skip("no kubectl")
    version = subprocess.run(["kubectl", "version", "--client"], capture_output=True, text=True, check=False).stdout
    found = re.search(r"v?1\.(\d+)", version)
    if found is None or int(found[1]) < 27:
        pytest.skip(f"kubectl is older than 1.27: {version.splitlines()[:1]}")
    done = subprocess.run(["kubectl", "kustomize", str(folder)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert list(yaml.safe_load_all(done.stdout))


def test_the_sample_run_submits_a_valid_recipe_from_a_restricted_pod() -> None:
    config, job = yaml.safe_load_all((MANIFESTS / "samples" / "run.yaml").read_text())
    recipe = parse_recipe(config["data"]["recipe.yaml"])
    assert {pool.name for pool in recipe.spec.compute.pools} == {"cpu", "l4"}
    pod = job["spec"]["template"]["spec"]
    mounted = next(volume for volume in pod["volumes"] if volume["name"] == "recipe")
    assert mounted["configMap"]["name"] == config["metadata"]["name"]
    assert pod["securityContext"]["runAsNonRoot"]
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    security = pod["containers"][0]["securityContext"]
    assert security["readOnlyRootFilesystem"]
    assert not security["allowPrivilegeEscalation"]
    assert security["capabilities"] == {"drop": ["ALL"]}
