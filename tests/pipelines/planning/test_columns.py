"""Which columns are computed: those that something looks at, and what they are made of."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from components.base.errors import PermanentError
from components.miniature.demo import WEIGHTS
from components.recipe.recipe import parse_recipe
from pipelines.cli import app
from pipelines.planning.plan import plan_run
from tests.pipelines.execution.test_local import recipe_text
from tests.pools import sample, write_tar

COLUMNS: dict[str, dict[str, Any]] = {
    "blip": {"caption": {"model": str(WEIGHTS / "captioner")}},
    "l14": {"import": {"from": "l14.csv", "field": "l14", "as": "score"}},
    "coco": {"import": {"from": "l14.csv", "field": "coco", "as": "text"}},
    "english": {"language": {"is": "en"}},
    "faces": {"faces": {}},
    "pretty": {"aesthetic": {"weights": "head.pth"}},
    "copies": {"duplicates": {"index": "index.npy"}},
    "coco-b32": {"clip": {"model": "ViT-B-32", "weights": "openai", "text": "coco"}},
}
PLAIN = [{"text": "raw"}]


def where(*conditions: dict[str, Any], text: Any = "raw") -> list[dict[str, Any]]:
    return [{"text": text, "where": [*conditions]}]


GOOD = {"name": "good", "text": "raw", "where": [{"score": "l14", "top": 0.3}]}
BORROWED = [GOOD, *where({"score": "blip", "atLeast": {"rule": "good"}}, text="blip")]
ASKED: list[tuple[str, list[dict[str, Any]], dict[str, Any], set[str]]] = [
    ("nothing but texts", PLAIN, {}, set()),
    ("an imported score", where({"score": "l14", "top": 0.3}), {}, {"import:l14"}),
    ("raw's cosine", where({"score": "raw", "top": 0.3}), {}, {"embed", "score:raw"}),
    ("a caption", [{"text": "blip"}], {}, {"caption:blip"}),
    ("a caption's cosine", BORROWED, {}, {"import:l14", "embed", "caption:blip", "score:blip"}),
    ("a text only for its cosine", where({"score": "coco", "atLeast": 0}), {}, {"import:coco", "embed", "score:coco"}),
    ("texts joined", [{"text": {"concat": ["raw", "coco"]}}], {}, {"import:coco"}),
    (
        "the best text",
        [{"text": {"bestOf": ["raw", "coco"]}}],
        {},
        {"import:coco", "embed", "score:raw", "score:coco"},
    ),
    ("a flag", where({"flag": "english"}), {}, {"filter:english"}),
    ("a head over the embedding", where({"score": "pretty", "atLeast": 5}), {}, {"embed", "aesthetic:pretty"}),
    ("a screen", PLAIN, {"drop": [{"score": "copies", "atLeast": 0.9}]}, {"embed", "screen:copies"}),
    ("a flag of drop", PLAIN, {"drop": [{"flag": "english", "equals": False}]}, {"filter:english"}),
    ("boxes", PLAIN, {"trainingSets": {"blur": ["faces"]}}, {"faces:faces"}),
    (
        "another CLIP's cosine with an imported text",
        where({"score": "coco-b32", "top": 0.5}),
        {},
        {"import:coco", "embed:coco-b32", "score:coco-b32"},
    ),
]


@pytest.fixture(autouse=True)
def pool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_tar(tmp_path / "shards/00000000.tar", {"0": sample(0)})
    Path("l14.csv").write_text("uid,l14,coco\n0,0.5,a cat\n")
    for name in ("head.pth", "index.npy"):
        Path(name).write_bytes(b"x" * 512)


def text_of(rules: list[dict[str, Any]], spec: dict[str, Any]) -> str:
    columns = [{"name": name, **kind} for name, kind in COLUMNS.items()]
    return recipe_text(Path("out"), Path("shards"), [{"name": "m", "rules": rules}], columns=columns, **spec)


@pytest.mark.parametrize(("rules", "spec", "asked"), [case[1:] for case in ASKED], ids=[case[0] for case in ASKED])
def test_a_column_is_computed_where_something_looks_at_it(
    rules: list[dict[str, Any]], spec: dict[str, Any], asked: set[str]
) -> None:
    run = plan_run(parse_recipe(text_of(rules, spec)))
    assert {*run.nodes} == {"index", *asked}
    known = [node.spec.hash for node in run.nodes.values()]
    for place, node in enumerate(run.nodes.values()):
        assert all(spec.hash in known[:place] for spec in node.spec.inputs.values()), "inputs come first"


def test_a_plan_says_what_is_not_computed() -> None:
    Path("recipe.yaml").write_text(text_of(where({"score": "l14", "top": 0.3}), {}))
    result = CliRunner().invoke(app, ["plan", "recipe.yaml"], env={"COLUMNS": "200"})
    assert result.exit_code == 0, result.output
    unused = [name for name in COLUMNS if name != "l14"]
    lines = result.output.splitlines()
    assert [line for line in lines if "nothing uses it" in line] == [
        *(f"column {name}: nothing uses it; not computed" for name in unused),
        "cosine of raw with its image: nothing uses it; not computed, so no figure has it",
    ]
    assert [line.split()[0] for line in lines if line.startswith(("index", "import:", "embed", "score:"))] == [
        "index",
        "import:l14",
    ]


def test_what_an_unused_column_names_must_be_there() -> None:
    """Whoever lists it is about to use it, or meant to."""
    Path("head.pth").unlink()
    with pytest.raises(PermanentError, match=r"aesthetic\.weights: head\.pth does not exist"):
        plan_run(parse_recipe(text_of(PLAIN, {})))
