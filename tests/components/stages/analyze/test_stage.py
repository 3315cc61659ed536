"""The statistics of a run's texts and mixtures."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from components.base.errors import PermanentError
from components.pool.run import Run
from components.selection.rule_inputs import analysis_path
from components.stages.analyze.stage import AnalyzeStep
from components.stages.mix.stage import MixStep
from tests.filled import fill, planned
from tests.pools import sample, uid, write_tar

RAW = {"name": "raw", "rules": [{"text": "raw"}]}
GOOD = {"name": "good", "text": "raw", "where": [{"score": "raw", "top": 0.5}]}
REST = {"text": "blip", "where": [{"score": "blip", "atLeast": {"rule": "good"}}]}
MIXED = {"name": "mixed", "rules": [GOOD, REST]}


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Two shards of four: raw texts of 3 words, one missing, one image broken."""
    texts = ["one red dog", "two red dogs", "three red dogs", ""]
    for shard in range(2):
        samples = {f"{i:04d}": sample(4 * shard + i, text) for i, text in enumerate(texts)}
        write_tar(tmp_path / "shards" / f"{shard:08d}.tar", samples | {"bad": sample(90 + shard, jpg=None)})
    return tmp_path / "shards"


def of_text(run: Run, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(run.storage.read(analysis_path(run, name)))
    return found


def of_mixture(run: Run) -> dict[str, Any]:
    folder = run.mixture_folder(run.spec.mixtures[0])
    found: dict[str, Any] = json.loads(run.storage.read(f"{folder}/analysis.json"))
    return found


def filled(run: Run, captioned: list[int], blip: float = 0.25) -> None:
    fill(run, "embed", {uid(i): [0.0] * 4 for i in range(8)})
    fill(run, "score:raw", {uid(i): 0.1 * (i % 4) for i in range(8) if i % 4 < 3} | {uid(3): None, uid(7): None})
    fill(run, "caption:blip", {uid(i): f"a drawing of {i}" for i in captioned})
    fill(run, "score:blip", {uid(i): blip for i in captioned})
    MixStep().run(run)


def test_texts_and_mixtures(tmp_path: Path, shards: Path) -> None:
    run = planned(
        tmp_path / "out", shards, [{"name": "both", "emit": "all", "rules": [{"text": "raw"}, {"text": "blip"}]}, MIXED]
    )
    filled(run, list(range(8)))
    AnalyzeStep().run(run)
    raw = of_text(run, "raw")
    assert (raw["captions"], raw["missing"], raw["covered"], raw["usable"]) == (6, 2, 8, 8)
    assert raw["words"]["mean"] == 3
    assert raw["trigrams"] == {"unique": 3, "captions": 6}
    assert raw["cosine"]["count"] == 6
    assert raw["cosine"]["mean"] == pytest.approx(0.1, abs=1e-6)
    blip = of_text(run, "blip")
    assert (blip["captions"], blip["covered"], blip["words"]["mean"]) == (8, 8, 4)
    assert blip["trigrams"]["unique"] == 1 + 8
    assert blip["cosine"]["mean"] == pytest.approx(0.25)
    both = of_mixture(run)
    assert (both["captions"], both["cosine"]["count"]) == (14, 14)
    assert both["trigrams"]["unique"] == 3 + 9
    assert both["cosine"]["mean"] == pytest.approx((6 * 0.1 + 8 * 0.25) / 14, abs=1e-6)


def test_a_captioner_that_saw_a_part_is_marked(tmp_path: Path, shards: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = planned(tmp_path / "out", shards, [MIXED])
    filled(run, [0, 3, 4, 7])
    with caplog.at_level(logging.INFO):
        AnalyzeStep().run(run)
    assert "text blip covers 4 of 8 usable samples; its statistics are of that part" in caplog.text
    blip = of_text(run, "blip")
    assert (blip["covered"], blip["usable"], blip["captions"], blip["missing"]) == (4, 8, 4, 0)
    assert of_mixture(run)["captions"] == 4 + 4


def test_a_mixture_without_scored_texts_has_no_mean_cosine(tmp_path: Path, shards: Path) -> None:
    run = planned(
        tmp_path / "out", shards, [{"name": "joined", "rules": [{"text": {"concat": ["raw", "blip"]}}]}, MIXED]
    )
    filled(run, list(range(8)))
    AnalyzeStep().run(run)
    found = of_mixture(run)
    assert (found["captions"], found["words"]["mean"]) == (6, 7)
    assert found["cosine"]["mean"] is None
    assert found["cosine"]["count"] == 0


def test_an_empty_mixture_has_no_statistics(tmp_path: Path, shards: Path) -> None:
    none = {"name": "none", "rules": [{"text": "raw", "where": [{"score": "raw", "atLeast": 0.9}]}]}
    run = planned(tmp_path / "out", shards, [none, MIXED])
    filled(run, list(range(8)))
    AnalyzeStep().run(run)
    assert not Path(run.storage.uri, run.mixture_folder(run.spec.mixtures[0]), "analysis.json").exists()


def test_again_writes_nothing_and_more_captions_write_anew(tmp_path: Path, shards: Path) -> None:
    run = planned(tmp_path / "out", shards, [MIXED])
    filled(run, [0, 3, 4, 7])
    AnalyzeStep().run(run)
    files = {p: p.stat().st_mtime_ns for p in (tmp_path / "out").rglob("*")}
    AnalyzeStep().run(run)
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "out").rglob("*")} == files

    rules = [{"text": "blip"}, {"text": "raw", "where": [{"score": "blip", "atMost": 0}]}]
    more = planned(tmp_path / "out", shards, [{"name": "synthetic", "rules": rules}])
    for key, value in (("caption:blip", "a drawing"), ("score:blip", 0.5)):
        fill(more, key, {uid(i): value for i in (1, 2, 5, 6)})
    MixStep().run(more)
    AnalyzeStep().run(more)
    assert of_text(more, "blip")["covered"] == 8
    assert of_text(more, "blip")["cosine"]["mean"] == pytest.approx((4 * 0.25 + 4 * 0.5) / 8)
    assert all(p.stat().st_mtime_ns == at for p, at in files.items() if p.is_file())


def test_an_analysis_of_an_earlier_version_is_made_anew(tmp_path: Path, shards: Path) -> None:
    run = planned(tmp_path / "out", shards, [MIXED])
    filled(run, [1])
    AnalyzeStep().run(run)
    whole = of_mixture(run)
    path = f"{run.mixture_folder(run.spec.mixtures[0])}/analysis.json"
    for place in (path, analysis_path(run, "raw")):
        run.storage.write(place, b'{"captions": 1, "trigrams": {"unique": 1}}')
    AnalyzeStep().run(run)
    assert of_mixture(run) == whole
    assert of_text(run, "raw")["diversity"] == {"unique": 3, "captions": 6, "standard_error": 0}


def test_an_unfinished_captioner_is_said(tmp_path: Path, shards: Path) -> None:
    run = planned(tmp_path / "out", shards, [MIXED])
    with pytest.raises(PermanentError, match="has nothing for shard 00000000; run its stage first"):
        AnalyzeStep().run(run)
