"""The groups of the coarse graph: always the same, and together the whole run in its order."""

from __future__ import annotations

from pathlib import Path

import pytest

from components.miniature.demo import WEIGHTS
from components.recipe.recipe import parse_recipe
from pipelines.execution.local import steps_of
from pipelines.planning.graph_nodes import FANNED_OUT, groups
from pipelines.planning.plan import plan_run
from tests.pipelines.execution.test_local import recipe_text
from tests.pools import sample, write_tar


@pytest.mark.parametrize("captioners", [0, 1, 3])
def test_every_key_of_a_run_is_in_one_group_and_their_order_can_be_computed(tmp_path: Path, captioners: int) -> None:
    write_tar(tmp_path / "shards" / "00000000.tar", {"0": sample(0)})
    names = ["blip", "score", "index"][:captioners]  # names of stages are good names of captioners
    good = {"name": "good", "text": "raw", "where": [{"score": "raw", "top": 0.3}, {"flag": "english"}]}
    rest = [{"text": name, "where": [{"score": name, "atLeast": {"rule": "good"}}]} for name in names]
    text = recipe_text(
        tmp_path / "out",
        tmp_path / "shards",
        [{"name": "mixed", "rules": [good, *rest]}],
        columns=[
            *({"name": name, "caption": {"model": str(WEIGHTS / "captioner")}} for name in names),
            {"name": "english", "language": {"is": "en"}},
        ],
    )
    run = plan_run(parse_recipe(text))
    found = groups(run)
    assert set(FANNED_OUT) < set(found)
    keys = [key for group in found.values() for key in group]
    assert sorted(keys) == sorted([*run.nodes, *steps_of(run)])
    assert found["score"] == ["score:raw"]
    assert found["caption"] == [f"caption:{name}" for name in names]
    assert found["score-captions"] == [f"score:{name}" for name in names]
    assert found["train"] == found["evaluate"] == []
    made = {run.nodes[key].spec.hash: i for i, key in enumerate(k for k in keys if k in run.nodes)}
    for i, key in enumerate(k for k in keys if k in run.nodes):
        assert all(made[spec.hash] < i for spec in run.nodes[key].spec.inputs.values())
