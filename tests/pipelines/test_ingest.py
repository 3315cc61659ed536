"""From a dump of Common Crawl to a report, over a small web on loopback."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from components.pool.run import Run
from tests.pipelines.crawl import Crawl, crawl
from tests.pipelines.test_local import GOOD, REST, recipe_text, run

QUICK = {"retries": 0, "perHostRate": 1000.0, "perHostConnections": 16, "allowNetworks": ["127.0.0.0/8"]}
MIXED = [{"name": "mixed", "rules": [GOOD, REST]}]


@pytest.fixture(scope="module")
def web() -> Iterator[Crawl]:
    with crawl() as found:
        yield found


def recipe(storage: Path, web: Crawl, download: dict[str, Any] | None = None, **spec: Any) -> str:
    pool = {"name": "crawl", **web.source()}
    how = {**QUICK, **(download or {})}
    return recipe_text(storage, storage, MIXED, **{"pool": pool, "download": how, **spec})


def manifest(run: Run) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(run.storage.read(run.pool.manifest_path))
    return found


@pytest.mark.slow
def test_a_dump_runs_through_to_a_report(tmp_path: Path, web: Crawl) -> None:
    done = run(recipe(tmp_path, web))
    found = manifest(done)
    print(json.dumps({k: v for k, v in found.items() if k != "shards"}, indent=1))
    assert done.storage.size(f"{done.folder}/report.html")
