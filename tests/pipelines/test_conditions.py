"""A new condition is one entry of components.recipe.conditions: two are tried on a whole run."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from components.recipe.recipe import parse_recipe
from pipelines.planning.plan import plan_run
from tests.filled import with_index
from tests.pipelines.execution.test_local import BLIP, recipe_text
from tests.pools import jpeg, sample, uid, write_tar

COUNT = 12
GOOD = {"name": "good", "text": "raw", "where": [{"score": "raw", "top": 0.3}]}
PLAIN: dict[str, Any] = {"name": "plain", "rules": [GOOD, {"text": "blip", "where": [{"flag": "odd"}]}]}
NEW: dict[str, Any] = {
    "name": "new",
    "rules": [
        GOOD,
        {"text": "blip", "where": [{"score": "raw", "below": {"rule": "good"}}, {"flag": "odd", "differsFrom": True}]},
    ],
}
DROP = [{"score": "x", "below": 0.25}]


def command(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tests.pipelines.with_more_conditions", *map(str, arguments)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """12 images; flag `odd` and score `x`, a tenth of the number, of all but the last."""
    write_tar(tmp_path / "shards/00000000.tar", {f"{i:04d}": sample(i, jpg=jpeg(i)) for i in range(COUNT)})
    uids = [uid(i) for i in range(COUNT - 1)]
    values = {"odd": [i % 2 == 1 for i in range(COUNT - 1)], "x": [i / 10 for i in range(COUNT - 1)]}
    pq.write_table(pa.table({"uid": uids, **values}), tmp_path / "columns.parquet")
    return tmp_path / "shards"


def recipe(shards: Path, mixtures: list[dict[str, Any]], **spec: Any) -> str:
    table = str(shards.parent / "columns.parquet")
    kinds = {"odd": "flag", "x": "score"}
    columns = [{"name": name, "import": {"from": table, "field": name, "as": kind}} for name, kind in kinds.items()]
    columns = [BLIP, *columns]
    return recipe_text(shards.parent / "out", shards, mixtures, columns=columns, **spec)


def written(shards: Path, text: str) -> Path:
    path = shards.parent / "recipe.yaml"
    path.write_text(text)
    return path


@pytest.mark.slow
def test_a_condition_is_one_entry(shards: Path) -> None:
    path = written(shards, recipe(shards, [PLAIN, NEW], drop=DROP))
    valid = command("validate", path)
    assert (valid.returncode, valid.stderr) == (0, ""), valid.stderr
    done = command("run", path)
    assert done.returncode == 0, done.stderr

    out = shards.parent / "out"
    [raw] = [f for f in (out / "pools/pool/columns").glob("score.*/*.parquet") if len(pq.read_table(f)) == COUNT]
    scores = {row["uid"]: np.float32(row["cosine"]) for row in pq.read_table(raw).to_pylist()}
    threshold = sorted(scores.values(), reverse=True)[int(COUNT * 0.3)]
    kept = [i for i in range(COUNT) if not i / 10 < 0.25 or i == COUNT - 1]  # the last one has no score x
    expected = {uid(i): "raw" for i in kept if scores[uid(i)] >= threshold}
    expected |= {uid(i): "blip" for i in kept if i % 2 == 0 and scores[uid(i)] < threshold}
    [file] = (out / "mixtures").glob("new-*/00000000.parquet")
    assert {row["uid"]: row["source"] for row in pq.read_table(file).to_pylist()} == expected
    assert {"raw", "blip"} == {*expected.values()}

    [report] = (out / "runs").glob("*/report.html")
    page = report.read_text()
    assert "blip, where score raw &lt; the threshold of “good” and odd differs from true" in page
    assert page.count("dropped: score x &lt; 0.25") == 2
    assert "The numbers add up." in page
    [card] = (out / "datasets").glob("new-*/README.md")
    assert "Left out before the rules: score x < 0.25." in card.read_text()


def test_a_mistake_in_a_new_condition_is_one_line(shards: Path) -> None:
    def said(*where: dict[str, Any], **spec: Any) -> str:
        rule = {"text": "raw", "where": list(where)}
        refused = command("validate", written(shards, recipe(shards, [{"name": "m", "rules": [rule]}], **spec)))
        assert refused.returncode == 42
        return refused.stderr.rstrip("\n").partition("recipe.yaml: ")[2]

    at = "spec.mixtures[0].rules[0].where[0]"
    both = said({"score": "raw", "below": 1, "top": 0.5})
    assert both.startswith(f"{at}: found ")
    assert both.endswith("give exactly one of `top`, `atLeast`, `atMost` and `below`")
    assert said({"score": "raw", "blow": 1}) == (
        f"{at}.blow: unknown key; allowed are score, top, atLeast, atMost, below; did you mean below?"
    )
    assert said({"score": "raw", "below": "1"}) == f'{at}.below: found "1": Input should be a valid number'
    assert said({"score": "raw", "below": {"rule": "x"}}) == (
        f"{at}.below.rule: x is no rule with a `top` condition; there is none"
    )
    assert said({"flag": "odd", "equals": True, "differsFrom": True}).endswith(
        "give exactly one of `equals` and `differsFrom`"
    )
    assert said({"flag": "odd", "below": 1}) == f"{at}.below: unknown key; allowed are flag, equals, differsFrom"
    assert said(drop=[{"score": "x", "below": {"rule": "x"}}]) == (
        "spec.drop[0].below: found the threshold of rule x; `drop` is for all mixtures and knows no rule: give a number"
    )


def test_a_new_condition_is_in_the_crd() -> None:
    code = """
import json
import tests.pipelines.with_more_conditions
from pipelines.operator.crd.generate import recaption_crd
print(json.dumps(recaption_crd()))
"""
    made = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert made.count('"below"') == made.count('"atLeast"') == 2
    assert "has(self.flag) ? !has(self.top) && !has(self.atMost) : !has(self.equals) && !has(self.differsFrom)" in made
    assert "`top`, `atLeast`, `atMost` and `below` go with a score, `equals` and `differsFrom` with a flag" in made


def test_a_new_condition_renames_no_result(shards: Path) -> None:
    text = recipe(shards, [PLAIN])
    code = """
import sys
import tests.pipelines.with_more_conditions
from components.recipe.recipe import parse_recipe
from pipelines.planning.plan import plan_run
from tests.filled import with_index
run = with_index(plan_run(parse_recipe(sys.argv[1])))
print(run.mixture_folder(run.spec.mixtures[0]), run.nodes["caption:blip"].part)
"""
    child = subprocess.run([sys.executable, "-c", code, text], capture_output=True, text=True, check=True)
    run = with_index(plan_run(parse_recipe(text)))
    assert child.stdout.split() == [run.mixture_folder(run.spec.mixtures[0]), run.nodes["caption:blip"].part]
