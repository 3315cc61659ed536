"""The mix step on a real storage whose columns the test writes itself."""

from __future__ import annotations

import hashlib
import html
import json
import logging
import re
import shutil
from collections import Counter
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from components.base.errors import PermanentError
from components.miniature.demo import WEIGHTS
from components.pool.run import Run
from components.pool.shards import Shard
from components.recipe.recipe import load_recipe
from components.selection.demand import Demand, load_demand, write_demand
from components.selection.rules import columns_of
from components.selection.score_reader import ScoreReader
from components.stages.analyze.stage import AnalyzeStep
from components.stages.mix import stage as mix
from components.stages.mix.stage import MixStep
from components.stages.report.stage import ReportStep
from components.stages.report.table import result_table, results
from components.stages.reshard.stage import ReshardStep
from components.storage.local import LocalStorage
from pipelines.execution.local import run_column
from tests.components.stages.mix.test_strategies import FILES
from tests.filled import fill, planned
from tests.pipelines.execution.test_local import BLIP
from tests.pools import sample, uid, write_tar

GOOD = {"name": "good", "text": "raw", "where": [{"score": "raw", "top": 0.25}]}
REST = {"text": "blip", "where": [{"score": "blip", "atLeast": {"rule": "good"}}]}
REST_ONLY = {"name": "rest", "rules": [{"text": "blip"}]}
MIXED = {"name": "mixed", "rules": [GOOD, REST]}


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Two shards of six: 3 has no raw text, 4 and 10 will not be read, each shard has one without an image."""
    for shard in range(2):
        numbers = range(6 * shard, 6 * shard + 6)
        samples = {f"{i:04d}": sample(i, "" if i == 3 else f"raw of {i}") for i in numbers}
        write_tar(tmp_path / "shards" / f"{shard:08d}.tar", samples | {"bad": sample(90 + shard, jpg=None)})
    return tmp_path / "shards"


UNREADABLE = {uid(i): "not an image" for i in (4, 10)}
READABLE = [i for i in range(12) if i not in (4, 10)]


def raw_scores(run: Run) -> None:
    """0.00, 0.01, 0.02, …: the raw text of the last image is the best; 3 has none."""
    fill(run, "score:raw", {uid(i): None if i == 3 else i / 100 for i in READABLE}, UNREADABLE)


def captions(run: Run, scores: dict[int, float], partial: bool = False) -> None:
    fill(run, "caption:blip", {uid(i): f"blip of {i}" for i in scores}, {} if partial else UNREADABLE)
    fill(run, "score:blip", {uid(i): s for i, s in scores.items()}, {} if partial else UNREADABLE)


def result(run: Run, number: int = 0) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(
        run.storage.read(f"{run.mixture_folder(run.spec.mixtures[number])}/mixture.json")
    )
    return found


def pairs(run: Run, number: int = 0) -> list[tuple[int, int, str, str]]:
    """(image, rule, text, source) of all shards, each file as its record says."""
    folder = run.mixture_folder(run.spec.mixtures[number])
    found = []
    for shard in result(run, number)["shards"]:
        data = run.storage.read(f"{folder}/{shard['name']}.parquet")
        assert hashlib.sha256(data).hexdigest() == shard["sha256"]
        table = pq.read_table(pa.BufferReader(data))
        assert table.num_rows == shard["rows"]
        found += [(int(r["uid"], 16), r["rule"], r["text"], r["source"]) for r in table.to_pylist()]
    return found


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_counts_add_up(tmp_path: Path, shards: Path) -> None:
    run = planned(tmp_path / "out", shards, [MIXED])
    raw_scores(run)
    captions(run, {0: 0.5, 1: 0.08, 2: 0.09, 3: 0.2, 5: 0.01, 6: 0.02}, partial=True)
    MixStep().run(run)
    # Of nine raw scores the third best is the threshold: 8 (0.08), so 8, 9 and 11 have raw texts.
    assert pairs(run) == [
        (0, 1, "blip of 0", "blip"),
        (1, 1, "blip of 1", "blip"),  # exactly the threshold, in float32 too
        (2, 1, "blip of 2", "blip"),
        (3, 1, "blip of 3", "blip"),
        (8, 0, "raw of 8", "raw"),
        (9, 0, "raw of 9", "raw"),
        (11, 0, "raw of 11", "raw"),
    ]
    found = result(run)
    assert (found["usable"], found["images"], found["pairs"], found["scored"]) == (12, 7, 7, 7)
    assert found["dropped"] == {"no rule's conditions hold": 3, "the image can't be read": 2}
    assert [(r["name"], r["pairs"], r["mean_cosine"]) for r in found["rules"]] == [
        ("good", 3, pytest.approx((0.08 + 0.09 + 0.11) / 3)),
        (None, 4, pytest.approx((0.5 + 0.08 + 0.09 + 0.2) / 4)),
    ]
    assert found["thresholds"] == [{"score": "raw", "top": 0.25, "threshold": pytest.approx(0.08)}]
    assert found["usable"] == found["images"] + sum(found["dropped"].values())
    assert found["warnings"] == []


def test_every_match_is_a_pair(tmp_path: Path, shards: Path) -> None:
    both = {"name": "both", "emit": "all", "rules": [{"text": "raw"}, {"text": "blip"}]}
    joined = {"name": "joined", "rules": [{"text": {"concat": ["raw", "blip"]}}]}
    run = planned(tmp_path / "out", shards, [both, joined, MIXED])
    raw_scores(run)
    captions(run, dict.fromkeys(READABLE, 0.1))
    MixStep().run(run)
    assert (result(run)["images"], result(run)["pairs"]) == (10, 19)  # 3 has no raw text
    assert pairs(run)[6:8] == [(3, 1, "blip of 3", "blip"), (5, 0, "raw of 5", "raw")]
    assert result(run, 1)["pairs"] == 9
    assert result(run, 1)["mean_cosine"] is None  # nobody has scored the two together
    assert result(run, 1)["dropped"] == {"no text that a rule could use": 1, "the image can't be read": 2}


def test_a_rerun_changes_no_bytes(tmp_path: Path, shards: Path) -> None:
    run = planned(tmp_path / "out", shards, [{"name": "raw", "rules": [{"text": "raw"}]}, MIXED])
    raw_scores(run)
    captions(run, {1: 0.5}, partial=True)
    MixStep().run(run)
    before = bytes_of(tmp_path / "out")
    MixStep().run(run)
    assert bytes_of(tmp_path / "out") == before
    # One mixture's record is lost: only that one is made anew, and it is the same.
    (tmp_path / "out" / run.mixture_folder(run.spec.mixtures[1]) / "mixture.json").unlink()
    MixStep().run(run)
    assert bytes_of(tmp_path / "out") == before


def test_each_part_of_a_score_is_read_once(tmp_path: Path, shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For its threshold, its values and its errors; where there is no room to keep it, twice, to the same end."""
    read: list[str] = []
    reading = LocalStorage.read

    def noted(storage: LocalStorage, path: str, start: int = 0, length: int | None = None) -> bytes:
        read.append(path)
        return reading(storage, path, start, length)

    monkeypatch.setattr(LocalStorage, "read", noted)
    found = []
    for kept, times in ((1 << 26, 1), (0, 2)):
        monkeypatch.setattr(mix, "ScoreReader", partial(ScoreReader, kept=kept))
        run = planned(tmp_path / f"out{kept}", shards, [MIXED])
        raw_scores(run)
        captions(run, {0: 0.5, 1: 0.08}, partial=True)
        read.clear()
        MixStep().run(run)
        parts = Counter(path for path in read if "/score.raw" in path and path.endswith(".parquet"))
        assert [*parts.values()] == [times, times]
        found.append(pairs(run))
    assert found[0] == found[1]
    assert len(found[0]) == 5


def test_the_share_of_a_partial_column_is_an_error(tmp_path: Path, shards: Path) -> None:
    run = planned(tmp_path / "out", shards, [MIXED])
    fill(run, "score:raw", {uid(i): i / 100 for i in READABLE if i != 7}, UNREADABLE)
    captions(run, {1: 0.5}, partial=True)
    with pytest.raises(PermanentError, match=r"top of raw: column score\..* covers 11 of 12 usable samples"):
        MixStep().run(run)
    assert not (tmp_path / "out" / "mixtures").exists()


def test_a_shard_that_is_not_finished_is_an_error(tmp_path: Path, shards: Path) -> None:
    run = planned(tmp_path / "out", shards, [MIXED])
    raw_scores(run)
    with pytest.raises(PermanentError, match=r"caption:blip: not finished for 2 of 2 shards, the first is 00000000"):
        MixStep().run(run)


def test_scores_of_two_scorers_are_compared_with_a_warning(
    tmp_path: Path, shards: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pq.write_table(pa.table({"uid": [uid(i) for i in range(12)], "l14": [0.0] * 12}), tmp_path / "l14.parquet")
    lender = {"name": "a", "text": "raw", "where": [{"score": "l14", "top": 0.25}]}
    own = {"name": "a", "text": "raw", "where": [{"score": "raw", "top": 0.25}]}

    def borrower(score: str) -> dict[str, Any]:
        return {"text": "raw", "where": [{"score": score, "atLeast": {"rule": "a"}}]}

    found = [
        {"name": "imported-to-own", "rules": [lender, borrower("raw")]},
        {"name": "own-to-imported", "rules": [own, borrower("l14")]},
        {"name": "imported-to-itself", "rules": [lender, borrower("l14")]},
        {"name": "own-to-own", "rules": [own, borrower("raw")]},
    ]
    columns = [{"name": "l14", "import": {"from": str(tmp_path / "l14.parquet"), "field": "l14", "as": "score"}}]
    run = planned(tmp_path / "out", shards, found, columns=columns)
    raw_scores(run)
    fill(run, "import:l14", {uid(i): i / 100 for i in range(12)})
    with caplog.at_level(logging.WARNING):
        MixStep().run(run)
    assert [len(result(run, i)["warnings"]) for i in range(4)] == [1, 1, 0, 0]
    assert "compares raw with the threshold of rule a" in result(run)["warnings"][0]
    assert caplog.text.count("were not made by the same scorer") == 2


def test_another_scorer_has_its_own_cosines(tmp_path: Path, shards: Path) -> None:
    """The mean cosines and the samples that can be read are by the scorer."""
    another = shutil.copytree(WEIGHTS / "scorer", tmp_path / "another")
    (another / "README").write_text("another scorer")
    means = []
    for model, cosine in ((WEIGHTS / "scorer", 0.1), (another, 0.2)):
        scorer = {"model": f"local-dir:{model}"}
        found = [{"name": "raw", "rules": [{"text": "raw", "where": [{"score": "raw", "atLeast": 0}]}]}]
        run = planned(tmp_path / "out", shards, found, scorer=scorer, columns=[])
        fill(run, "score:raw", {uid(i): cosine for i in READABLE}, UNREADABLE)
        MixStep().run(run)
        means.append(result_table(run)[0]["mean cosine"])
    assert means == [pytest.approx(0.1), pytest.approx(0.2)]


NOBODY = {
    "name": "nobody",
    "rules": [
        {"name": "a", "text": "raw", "where": [{"score": "raw", "atLeast": 0.05}, {"score": "raw", "atMost": 0.01}]},
        {"text": {"concat": ["raw", "raw"]}, "where": [{"score": "raw", "atLeast": 1}]},
    ],
}
WHY = (
    "of 12 usable images 5 are left out before the rules: 3 (dropped: score raw ≥ 0.08), 2 (the image can't be read); "
    "rule 1 (a): 6 have its text, 3 of these meet score raw ≥ 0.05, 0 of these meet score raw ≤ 0.01; "
    "rule 2: 6 have its text, 0 of these meet score raw ≥ 1"
)
DROP = [{"score": "raw", "atLeast": 0.08}]


def test_an_empty_mixture_is_reported_with_its_reason_and_the_others_go_on(tmp_path: Path, shards: Path) -> None:
    some = {"name": "some", "rules": [{"text": "raw"}]}
    run = planned(tmp_path / "out", shards, [NOBODY, some], columns=[], drop=DROP, train={"scale": "small"})
    raw_scores(run)
    for step in (MixStep(), AnalyzeStep(), ReshardStep(), ReportStep()):
        step.run(run)
    assert result(run)["warnings"] == [f"empty, so that nothing is written, trained or evaluated: {WHY}"]
    assert pairs(run) == []
    assert [folder.name for folder in (tmp_path / "out/datasets").iterdir()] == [
        run.dataset_folder(run.spec.mixtures[1]).removeprefix("datasets/")
    ]
    ReshardStep().run_task(run, 0, 1)
    assert [(row["mixture"], row["pairs"], row["words"]) for row in result_table(run)] == [
        ("nobody", 0, None),
        ("some", 6, 3.0),
    ]
    assert [found["mixture"] for found in results(run)["datasets"]] == ["some"]
    [said] = results(run)["empty"]
    assert said == {"mixture": "nobody", "why": f"empty, so that nothing is written, trained or evaluated: {WHY}"}
    assert MixStep().outcome(run) == {"empty": {"nobody": said["why"]}}
    page = html.unescape(run.storage.read(f"{run.folder}/report.html").decode())
    assert f"nobody: empty, so that nothing is written, trained or evaluated: {WHY}" in page
    assert "Still to come: columns embed; training of some." in page
    assert [mixture.name for mixture in run.trained] == ["some"]


def test_nothing_is_among_the_best_share_of_a_score_that_nobody_has(tmp_path: Path, shards: Path) -> None:
    """Nothing is above that threshold either, so no caption is asked for; the other mixture goes on."""
    run = planned(tmp_path / "out", shards, [MIXED, {"name": "some", "rules": [{"text": "raw"}]}])
    fill(run, "score:raw", dict.fromkeys(map(uid, READABLE)), UNREADABLE)
    write_demand(run, "blip")
    captions(run, {}, partial=True)
    index = run.columns.read(run.index, run.pool.shards[0], ["text", "error"])
    assert not load_demand(run, "blip")(run.pool.shards[0], index).any()
    for step in (MixStep(), ReportStep()):
        step.run(run)
    assert (pairs(run), len(pairs(run, 1))) == ([], 9)
    assert result(run)["thresholds"] == [{"score": "raw", "top": 0.25, "threshold": None}]
    assert results(run)["empty"][0]["why"].endswith("; no image has a score raw")
    json.loads(run.storage.read(run.demand_path("blip")), parse_constant=pytest.fail)


def test_dropping_the_best_share_of_a_score_that_nobody_has_is_an_error(tmp_path: Path, shards: Path) -> None:
    some = [{"name": "some", "rules": [{"text": "raw"}]}]
    run = planned(tmp_path / "out", shards, some, columns=[], drop=[{"score": "raw", "top": 0.1}])
    fill(run, "score:raw", dict.fromkeys(map(uid, READABLE)), UNREADABLE)
    with pytest.raises(PermanentError, match=r"^top of raw: there is no finite score .*; see why in column score\."):
        MixStep().run(run)


@pytest.mark.parametrize("train", [None, ["nobody"]])
def test_a_run_whose_mixtures_are_all_empty_ends_with_why(
    tmp_path: Path, shards: Path, train: list[str] | None
) -> None:
    spec: dict[str, Any] = {"train": {"scale": "small", "mixtures": train}} if train else {}
    others = [{"name": "untrained", "rules": [{"text": "raw"}]}] if train else []
    run = planned(tmp_path / "out", shards, [*others, NOBODY], columns=[], drop=DROP, **spec)
    raw_scores(run)
    for _ in range(2):  # the second finds the mixture there
        with pytest.raises(PermanentError, match=re.escape("no mixture has a pair: nobody: empty, so that")) as raised:
            MixStep().run(run)
        assert str(raised.value).endswith(WHY)


def test_a_cosine_that_another_mixture_asks_for_makes_no_mixture_anew(tmp_path: Path, shards: Path) -> None:
    """Its name stays, and so do its training set and model; its mean cosine is told from then on."""
    blip = {"name": "blip", "rules": [{"text": "blip"}]}
    good = {"name": "good", "rules": [{"text": "raw", "where": [{"score": "raw", "atLeast": 0}]}]}
    first = planned(tmp_path / "out", shards, [blip, good])
    assert not first.has("score", "blip")
    raw_scores(first)
    fill(first, "caption:blip", {uid(i): f"blip of {i}" for i in READABLE}, UNREADABLE)
    second = planned(tmp_path / "out", shards, [blip, good, MIXED])
    for run, cosine, analyzed in ((first, None, 0), (second, 0.5, 10), (first, 0.5, 10)):
        if run.has("score", "blip"):
            captions(run, dict.fromkeys(READABLE, 0.5))
        MixStep().run(run)
        AnalyzeStep().run(run)
        folder = run.mixture_folder(run.spec.mixtures[0])
        assert folder == first.mixture_folder(first.spec.mixtures[0])
        assert result(run)["mean_cosine"] == cosine
        assert json.loads(run.storage.read(f"{folder}/analysis.json"))["cosine"]["count"] == analyzed


def test_what_meets_a_condition_of_drop_is_in_no_mixture(tmp_path: Path, shards: Path) -> None:
    """Of its reasons a sample counts for the first; without a score (3) or a flag (0) it stays."""
    flags = {uid(i): i < 3 for i in range(1, 12)}
    pq.write_table(pa.table({"uid": [*flags], "f": [*flags.values()]}), tmp_path / "f.parquet")
    flag = {"name": "f", "import": {"from": str(tmp_path / "f.parquet"), "field": "f", "as": "flag"}}
    columns = [BLIP, flag]
    drop = [{"score": "raw", "top": 0.25}, {"score": "raw", "atLeast": 0.07}, {"flag": "f"}]
    found = [{"name": "raw", "rules": [{"text": "raw"}]}, {"name": "blip", "rules": [{"text": "blip"}]}]
    run = planned(tmp_path / "out", shards, found, columns=columns, drop=drop)
    raw_scores(run)
    fill(run, "import:f", flags)
    fill(run, "caption:blip", {uid(i): f"blip of {i}" for i in READABLE}, UNREADABLE)
    MixStep().run(run)
    dropped = {
        "dropped: score raw is among the pool's top 25 %": 3,  # 8, 9 and 11, as test_counts_add_up says
        "dropped: score raw ≥ 0.07": 1,
        "dropped: f": 2,
        "the image can't be read": 2,
    }
    assert [number for number, *_ in pairs(run, 1)] == [0, 3, 5, 6]
    assert result(run, 1)["dropped"] == dropped
    assert result(run, 1)["thresholds"] == [{"score": "raw", "top": 0.25, "threshold": pytest.approx(0.08)}]
    assert result(run, 0)["dropped"] == dropped | {"no text that a rule could use": 1}
    write_demand(run, "blip")
    demand = load_demand(run, "blip")
    wanted = [u for s in run.pool.shards for u in asked(run, demand, s)]
    assert wanted == [uid(i) for i in (0, 3, 4, 5, 6, 10)], "4 and 10 can't be read, which the captioner finds itself"


def asked(run: Run, demand: Demand, shard: Shard) -> list[str]:
    index = run.columns.read(run.index, shard, ["error"])
    index = index.filter(pc.is_null(index.column("error")))
    return index.column("uid").filter(pa.array(demand(shard, index))).to_pylist()  # type: ignore[no-any-return]


def test_what_is_dropped_and_by_which_column_is_in_a_mixtures_name(tmp_path: Path, shards: Path) -> None:
    found = [{"name": "m", "rules": [{"text": "raw"}]}]

    english, basic = {"language": {"is": "en"}}, {"basic": {}}

    def named(drop: list[dict[str, Any]], kind: Mapping[str, Any] = english) -> tuple[str, str]:
        run = planned(tmp_path / "out", shards, [*found, REST_ONLY], columns=[BLIP, {"name": "f", **kind}], drop=drop)
        return run.mixture_folder(run.spec.mixtures[0]), run.nodes["caption:blip"].part

    drops: list[list[dict[str, Any]]] = [
        [], [{"score": "raw", "atLeast": 0.3}], [{"score": "raw", "atMost": 0.3}], [{"score": "raw", "top": 0.3}],
        [{"flag": "f"}], [{"flag": "f", "equals": False}], [{"flag": "f"}, {"score": "raw", "top": 0.3}],
    ]  # fmt: skip
    names = [named(drop) for drop in drops]
    assert len({folder for folder, _ in names}) == len({part for _, part in names}) == len(drops)
    assert named([{"flag": "f", "equals": True}]) == names[4], "as it is by default"
    assert named([{"flag": "f"}], kind=basic)[0] != names[4][0]
    assert named([], kind=basic)[0] == names[0][0]


def test_a_filter_is_a_flag(tmp_path: Path) -> None:
    sized = {"original_width": 400, "original_height": 300}
    texts = ["the brown dog runs on the beach", "ein brauner Hund läuft am Strand", "dog", "the brown cat sleeps here"]
    samples = {
        f"k{i}": sample(i, text, json=json.dumps({"uid": uid(i), **(sized if i < 3 else {})}).encode())
        for i, text in enumerate(texts)
    }
    write_tar(tmp_path / "shards" / "00000000.tar", samples)
    mixtures = [
        {"name": "basic", "rules": [{"text": "raw", "where": [{"flag": "basic"}]}]},
        {"name": "others", "rules": [{"text": "raw", "where": [{"flag": "basic", "equals": False}]}]},
    ]
    filters = [{"name": "basic", "basic": {}}]
    run = planned(tmp_path / "out", tmp_path / "shards", mixtures, columns=filters)
    run_column(run, run.nodes["filter:basic"])
    MixStep().run(run)
    assert [number for number, *_ in pairs(run)] == [0]
    assert [number for number, *_ in pairs(run, 1)] == [1, 2]
    assert result(run)["dropped"] == {"no rule's conditions hold": 2, "no score or flag that a rule asks for": 1}


def test_another_filter_is_another_mixture(tmp_path: Path, shards: Path) -> None:
    found = {"name": "m", "rules": [{"text": "raw", "where": [{"flag": "f"}]}]}
    folders = set()
    for kind in ("basic", "language"):
        run = planned(tmp_path / kind, shards, [found], columns=[{"name": "f", kind: {}}])
        folders.add(run.mixture_folder(run.spec.mixtures[0]))
    assert len(folders) == 2


@pytest.mark.parametrize("file", FILES)
def test_every_strategy_is_a_recipe(file: str) -> None:
    spec = load_recipe(FILES[file]).spec
    texts, scores, flags = columns_of(spec.mixtures)
    unused = {"raw", *spec.texts, *spec.scores, *spec.flags} - texts - scores - flags - {"raw"}
    assert not unused, "a recipe computes nothing that no mixture looks at"
    assert FILES[file].read_text().startswith("# ")
