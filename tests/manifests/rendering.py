"""What `kubectl kustomize` makes of the manifests, as objects."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

MANIFESTS = Path(__file__).parents[2] / "manifests"
OLDEST = 27  # minor version of the first kubectl whose kustomize is 5

Object = dict[str, Any]


def folders(kind: str) -> list[str]:
    """Those with a kustomization of this kind (Kustomization or Component), below manifests/."""
    files = sorted(MANIFESTS.rglob("kustomization.yaml"))
    return [str(f.parent.relative_to(MANIFESTS)) for f in files if yaml.safe_load(f.read_text())["kind"] == kind]


@cache
def render(folder: str) -> list[Object]:
    """A folder's objects; a component is rendered with the base."""
    if folder in folders("Kustomization"):
        return kustomize(MANIFESTS / folder)
    with tempfile.TemporaryDirectory() as temporary:
        here = Path(temporary).resolve()
        there = Path(os.path.relpath(MANIFESTS.resolve(), here))
        parts = {"resources": [str(there / "base")], "components": [str(there / folder)]}
        (here / "kustomization.yaml").write_text(yaml.safe_dump(parts))
        return kustomize(here)


def one(rendered: list[Object], kind: str, name: str, namespace: str | None = None) -> Object:
    (found,) = (
        o
        for o in rendered
        if (o["kind"], o["metadata"]["name"]) == (kind, name) and namespace in (None, o["metadata"].get("namespace"))
    )
    return found


def named(rendered: list[Object], kind: str) -> dict[str, Object]:
    """The objects of a kind, by `namespace/name` (or name)."""
    metadata = ((o["metadata"], o) for o in rendered if o["kind"] == kind)
    return {f"{m['namespace']}/{m['name']}" if "namespace" in m else m["name"]: o for m, o in metadata}


def pods(value: Any, where: str = "") -> Iterator[tuple[str, Object, Object]]:
    """Every pod template inside an object: its path, metadata and spec."""
    if isinstance(value, dict):
        if isinstance(value.get("spec"), dict) and "containers" in value["spec"]:
            yield where, value.get("metadata", {}), value["spec"]
        for key, part in value.items():
            yield from pods(part, f"{where}.{key}")
    elif isinstance(value, list):
        for i, part in enumerate(value):
            yield from pods(part, f"{where}[{i}]")


def kustomize(folder: Path) -> list[Object]:
    """The objects of any folder. The test is skipped without a kubectl that can."""
    _need_kubectl()
    done = subprocess.run(["kubectl", "kustomize", str(folder)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "deprecated" not in done.stderr, done.stderr
    return list(yaml.safe_load_all(done.stdout))


def _need_kubectl() -> None:
    if shutil.which("kubectl") is None:
        pytest.skip("no kubectl")
    version = subprocess.run(["kubectl", "version", "--client"], capture_output=True, text=True, check=False).stdout
    found = re.search(r"v?1\.(\d+)", version)
    if found is None or int(found[1]) < OLDEST:
        pytest.skip(f"kubectl is older than 1.{OLDEST}: {version.splitlines()[:1]}")
