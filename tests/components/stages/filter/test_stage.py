"""The filters against hand-made cases of DataComp's rules, and through the worker loop and the plan."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from components.base.errors import PermanentError
from components.engine.stage import Batch
from components.engine.worker import run_task
from components.miniature.demo import WEIGHTS
from components.pool.shards import Shard
from components.pool.specs import ColumnSpec
from components.recipe.columns import kinds
from components.recipe.recipe import parse_recipe
from components.stages.filter.language import english
from components.stages.filter.stage import NO_SIZE, FilterStage
from components.stages.filter.wordnet import Entities, WordNet
from components.stages.index.stage import IndexStage
from pipelines.planning.plan import plan_run
from tests.components.stages.filter.wordnet import write_wordnet
from tests.pools import indexed, sample, uid, write_shard, write_tar

ENGLISH = "a brown dog runs on the beach"
SHARD = Shard("00000000", "00000000.tar", 0, None, "")


def spec_of(kind: str, index: ColumnSpec | None = None, **options: Any) -> ColumnSpec:
    index = index or IndexStage.make_index()
    inputs = {"index": index, "text": index}
    return FilterStage.make_spec(kinds()[kind](**options), f"spec.columns[1].{kind}", inputs)


def flags(rows: list[tuple[str | None, int | None, int | None]], **wanted: Any) -> list[bool | None]:
    """What a filter says of (text, width, height)."""
    stage = FilterStage(spec_of(**wanted))
    stage.setup(list)
    text, width, height = zip(*rows, strict=True)
    index = pa.table({"text": pa.array(text, pa.string()), "width": width, "height": height})
    found = stage.process(Batch(SHARD, [uid(i) for i in range(len(rows))], inputs={"text": index}))
    assert [e == NO_SIZE for e in found["error"]] == [flag is None for flag in found["flag"]]
    return list(found["flag"])


@pytest.mark.parametrize(
    ("text", "width", "height", "passes"),
    [
        (ENGLISH, 200, 200, True),
        (ENGLISH, 199, 400, False),  # the short side is at least 200
        (ENGLISH, 200, 600, True),
        (ENGLISH, 600, 200, True),
        (ENGLISH, 200, 601, False),  # the sides are at most 3:1
        (ENGLISH, None, 600, None),
        (ENGLISH, 600, None, None),
        ("ein brauner Hund läuft am Strand entlang", 600, 600, False),
        ("ein brauner Hund läuft am Strand entlang", None, None, False),  # false, whatever the size is
        ("brown dog", 600, 600, False),  # more than 2 words
        ("the brown dog", 600, 600, True),
        ("I am a", 600, 600, True),  # more than 5 characters
        ("I a m", 600, 600, False),
        ("the\nbrown dog", 600, 600, True),
        (None, 600, 600, False),
        (None, None, None, False),
    ],
)
def test_basic(text: str | None, width: int | None, height: int | None, passes: bool | None) -> None:
    assert flags([(text, width, height)], kind="basic") == [passes]


def test_english() -> None:
    texts = [ENGLISH, "ein brauner Hund läuft am Strand", "こんにちは世界", None, "un chien brun court sur la plage"]
    assert flags([(text, None, None) for text in texts], kind="language") == [True, False, False, False, False]


def test_imagenet21k(tmp_path: Path) -> None:
    folder, wnids = write_wordnet(tmp_path / "dict"), tmp_path / "wnids.txt"
    wnids.write_text("n02084071\nn02114100\n")
    texts = [ENGLISH, "a picture of the wolves in the forest", "a picture of the church in the forest",
             "a picture of the hotdog", "ein brauner dog läuft am Strand entlang", None]  # fmt: skip
    found = flags([(t, None, None) for t in texts], kind="imagenet21k", wordnet=str(folder), wnids=str(wnids))
    assert found == [True, True, False, False, False, False]


@pytest.mark.parametrize(
    ("word", "offset"),
    [
        ("dog", 2084071),  # the first of its synsets
        ("DOG", 2084071),
        ("dogs", 2084071),
        ("dog,", None),
        ("wolves", 2114100),  # irregular
        ("churches", 8081668),  # ches:ch
        ("runs", 556313),  # a noun before a verb
        ("ran", 1926311),
        ("walking", 1904930),
        ("baked", 319886),
        ("baking", 319886),  # ing:e
        ("redder", None),  # er: gives redd, which is no word
        ("fast", 86000),
        ("faster", None),  # adverbs have no rules
        ("bus", 2924116),  # a word comes before what its letters could be cut to
        ("kissss", 139919),  # nltk 3.8.1 cuts again and again
        ("kissing", None),  # a noun here; ing is cut of verbs only
        ("s", None),
        ("", None),
    ],
)
def test_the_first_synset(tmp_path: Path, word: str, offset: int | None) -> None:
    assert WordNet(str(write_wordnet(tmp_path))).first_synset(word) == offset


def test_a_long_word_takes_no_long_time(tmp_path: Path) -> None:
    assert WordNet(str(write_wordnet(tmp_path))).first_synset("sses" * 1000) is None


def test_through_the_worker(tmp_path: Path) -> None:
    sizes: list[dict[str, Any]] = [
        {"width": 512, "height": 340, "original_width": 1024, "original_height": 680},
        {"width": 512, "height": 100, "original_width": 5120, "original_height": 1000},
        {},
        {"original_width": 0, "original_height": 300},
    ]
    samples = {
        f"k{i}": sample(i, ENGLISH, json=json.dumps({"uid": uid(i), **size}).encode()) for i, size in enumerate(sizes)
    }
    samples["k4"] = sample(4, "", json=json.dumps({"uid": uid(4)}).encode())
    write_tar(tmp_path / "pool" / "00000000.tar", samples)
    pool, columns, index = indexed(tmp_path / "pool", tmp_path / "out")
    spec = spec_of("basic", index)
    summary = run_task(FilterStage(spec), pool, pool.shards, columns)
    table = columns.read(spec, pool.shards[0])
    assert table.column("uid").to_pylist() == [uid(i) for i in range(5)]
    assert table.column("flag").to_pylist() == [True, False, None, None, False]
    assert table.schema.field("flag").type == pa.bool_()
    assert summary.failures == {f"sample: {NO_SIZE}": 2}


def recipe(tmp_path: Path, filters: list[dict[str, Any]], **spec: Any) -> str:
    if not (tmp_path / "shards").exists():
        write_shard(tmp_path / "shards", 0, 3)
    return json.dumps(
        {
            "apiVersion": "recaption.dev/v1alpha1",
            "kind": "Recaption",
            "metadata": {"name": "test"},
            "spec": {
                "storage": str(tmp_path / "out"),
                "pool": {"name": "pool", "shards": str(tmp_path / "shards")},
                "scorer": {"model": f"local-dir:{WEIGHTS / 'scorer'}"},
                "columns": [{"name": "blip", "caption": {"model": str(WEIGHTS / "captioner")}}, *filters],
                "mixtures": [
                    {"name": "m", "rules": [{"text": "blip", "where": [{"flag": f["name"]} for f in filters]}]}
                ],
                **spec,
            },
        }
    )


def test_the_plan_has_flags_before_captions(tmp_path: Path) -> None:
    run = plan_run(parse_recipe(recipe(tmp_path, [{"name": "basic", "basic": {}}])))
    assert list(run.nodes) == ["index", "filter:basic", "caption:blip"]
    assert run.flag("basic") == run.nodes["filter:basic"].spec
    assert run.nodes["caption:blip"].demand == "blip"  # only what passes is captioned


def test_what_decides_a_flag_is_in_its_hash(tmp_path: Path) -> None:
    def spec(**wanted: Any) -> str:
        return spec_of(**wanted).hash

    folder, wnids = write_wordnet(tmp_path / "dict"), tmp_path / "wnids.txt"
    wnids.write_text("n02084071\n")
    paths = {"wordnet": str(folder), "wnids": str(wnids)}
    before = spec(kind="imagenet21k", **paths)
    assert before == spec(kind="imagenet21k", **paths)
    assert len({spec(kind="language"), spec(kind="basic"), before}) == 3
    wnids.write_text("n02114100\n")
    again = spec(kind="imagenet21k", **paths)
    write_wordnet(folder, version="3.1")
    assert len({before, again, spec(kind="imagenet21k", **paths)}) == 3


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        (
            {"language": {"model": "/nowhere/lid.176.bin"}},
            r"^spec.columns\[1\].language.model: /nowhere/lid.176.bin does not exist; give a file or folder",
        ),
        (
            {"imagenet21k": {"wordnet": "nowhere", "wnids": __file__}},
            r"^spec.columns\[1\].imagenet21k.wordnet: nowhere does not exist",
        ),
        ({"imagenet21k": {"wordnet": "/nowhere"}}, r"spec.columns\[1\].imagenet21k.wnids: missing"),
        ({"basic": {"wnids": "/nowhere"}}, r"spec.columns\[1\].basic.wnids: unknown key; allowed are model"),
        ({"language": {"is": "fr"}}, r'spec.columns\[1\].language.is: found "fr"'),
        ({}, r"spec.columns\[1\]: .*expected one key that says what it is, found none; give one of aesthetic, basic"),
        ({"basic": {}, "language": {}}, r"spec.columns\[1\]: .*found basic and language; give one of"),
        ({"basic": {}, "name": "blip"}, r"spec.columns\[1\].name: blip is taken"),
        ({"basic": {}, "name": "raw"}, r"spec.columns\[1\]: .*name: raw is taken"),
    ],
)
def test_mistakes_are_one_line(tmp_path: Path, wanted: dict[str, Any], message: str) -> None:
    with pytest.raises(PermanentError, match=message) as caught:
        plan_run(parse_recipe(recipe(tmp_path, [{"name": "f", **wanted}])))
    assert "\n" not in str(caught.value)


def test_a_flag_that_is_no_filter(tmp_path: Path) -> None:
    rules = [{"text": "raw", "where": [{"flag": "long"}]}]
    text = recipe(tmp_path, [{"name": "basic", "basic": {}}], mixtures=[{"name": "m", "rules": rules}])
    with pytest.raises(PermanentError, match="long is no flag; there is basic"):
        parse_recipe(text)


def test_files_that_are_something_else(tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.write_text("no model")
    with pytest.raises(PermanentError, match="other is no fastText model"):
        english(str(other))
    with pytest.raises(PermanentError, match=r"index.noun: No such file"):
        WordNet(str(tmp_path))
    with pytest.raises(PermanentError, match=r"index.noun is not of WordNet 3.0"):
        WordNet(str(write_wordnet(tmp_path / "new", version="3.1")))
    with pytest.raises(PermanentError, match="other: found 'no model', expected an id a line"):
        Entities(str(write_wordnet(tmp_path / "dict")), str(other))
    other.write_text("")
    with pytest.raises(PermanentError, match="other: is empty"):
        Entities(str(tmp_path / "dict"), str(other))
