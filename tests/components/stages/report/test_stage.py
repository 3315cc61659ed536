"""The page of a run: every number and reason, whatever the texts are and however far the run came."""

from __future__ import annotations

import html
import json
import re
import unicodedata
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import simplejpeg
from PIL import Image

from components.engine.decoding import Decoders
from components.pool.run import Run
from components.stages.analyze import statistics
from components.stages.analyze.stage import AnalyzeStep
from components.stages.mix.stage import MixStep
from components.stages.report import gather, plots
from components.stages.report.stage import ReportStep
from components.stages.reshard.stage import ReshardStep
from pipelines.operator.recaption.status_view import best_of
from tests.filled import fill, planned
from tests.pipelines.execution.test_local import BLIP
from tests.pools import jpeg, sample, uid, write_tar

RAW = {"name": "raw", "rules": [{"text": "raw"}]}
GOOD = {"name": "good", "text": "raw", "where": [{"score": "raw", "top": 0.3}]}
REST = {"text": "blip", "where": [{"score": "blip", "atLeast": {"rule": "good"}}]}
MIXED = {"name": "mixed", "rules": [GOOD, REST]}
EMPTY = {"name": "empty", "rules": [{"text": "raw", "where": [{"score": "raw", "atLeast": 2}]}]}
CONTROL = "\x1b]0;owned\x07\x1b[2Jred\u202egnp\x00\x9b31m"  # a terminal's commands, and a turn of direction
EVIL = "<script>alert(1)</script><img src=http://evil.example/x> & \"quoted\" 'text' {{ 7*7 }}"


class Page(HTMLParser):
    """What a reader sees and what a browser would fetch or run."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.texts: list[str] = []
        self.rows: list[list[str]] = []
        self.tags: Counter[str] = Counter()
        self.fetched: list[str] = []
        self.handlers: list[str] = []
        self.best: list[str] = []
        self.in_cell = self.in_best = False
        self.feed(page)
        self.text = " ".join(" ".join(self.texts).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.fetched += [str(v) for k, v in attrs if k in ("src", "href", "srcset", "data", "xlink:href", "action")]
        self.handlers += [k for k, _ in attrs if k.startswith("on")]
        if tag == "tr":
            self.rows.append([])
        self.in_best = tag == "td" and ("class", "best") in attrs
        self.in_cell = tag in ("td", "th") or (self.in_cell and tag != "tr")
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        self.in_cell = self.in_cell and tag not in ("td", "th")

    def handle_data(self, data: str) -> None:
        self.texts.append(data)
        if self.in_cell:
            self.rows[-1][-1] += data.strip()
        if self.in_best and data.strip():
            self.best.append(data.strip())


def page(run: Run) -> Page:
    ReportStep().run(run)
    text = run.storage.read(f"{run.folder}/report.html").decode()
    found = Page(text)
    assert found.tags["script"] == found.tags["link"] == found.tags["iframe"] == 0
    assert not found.handlers
    assert all(url.startswith("data:image/jpeg;base64,") for url in found.fetched)
    assert not re.search(r"url\(|@import|javascript:", text)
    return found


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Uid 0 hostile, 1 to 9 and 12 whole, 10 and 11 without text, 13 to 15 broken, and 3 failed downloads."""
    samples = {f"{i:04d}": sample(i, EVIL if i == 0 else None) for i in [*range(10), 12]} | {
        "0010": sample(10, ""), "0011": sample(11, txt=b"\xff\xfe"),
        "0013": sample(13, jpg=None), "0014": sample(14, jpg=b""), "0015": sample(15, jpg=b"<html>"),
    }  # fmt: skip
    write_tar(tmp_path / "shards" / "00000000.tar", samples)
    keys = [*samples, "0016", "0017", "0018"]
    status = ["success"] * len(samples) + ["failed_to_download"] * 3
    reasons = [None] * len(samples) + ["HTTP Error 404", "HTTP Error 404", "<b>timeout</b>"]
    table = pa.table({"key": keys, "status": status, "error_message": reasons})
    pq.write_table(table, tmp_path / "shards" / "00000000.parquet")
    return tmp_path / "shards"


BROKEN = {uid(14): "empty image", uid(15): "not an image"}


def filled(run: Run, captioned: list[int]) -> Run:
    """Columns as the stages write them, over all of 15 usable samples or the captioned ones."""
    fill(run, "embed", {uid(i): [0.0] * 4 for i in range(13)}, BROKEN)
    texts = [i for i in range(13) if i not in (10, 11)]
    fill(run, "score:raw", {uid(i): i / 20 for i in texts} | {uid(10): None, uid(11): None}, BROKEN)
    fill(run, "caption:blip", {uid(i): f"a drawing of thing {i}" for i in captioned}, BROKEN)
    fill(run, "score:blip", {uid(i): 0.4 + i / 100 for i in captioned}, BROKEN)
    MixStep().run(run)
    AnalyzeStep().run(run)
    return run


def stages(run: Run, **changed: Any) -> None:
    """What a whole run keeps in status.json."""
    done = {key: {"state": "done", "samples": 14, "work_seconds": 2.0, "seconds": 3.5} for key in run.nodes}
    steps = {key: {"state": "done", "seconds": 1.0} for key in ("mix", "analyze", "reshard")}
    run.save_status({"stages": {**done, **steps, "report": {"state": "running"}, **changed}})


@pytest.fixture
def run(tmp_path: Path, shards: Path) -> Run:
    found = filled(planned(tmp_path / "out", shards, [RAW, MIXED]), list(range(13)))
    stages(found)
    return found


def test_the_funnel_adds_up_with_every_reason(run: Run) -> None:
    found = page(run)
    for row in (
        ["candidates", "19"], ["download: HTTP Error 404: Not Found", "−2"], ["download: timed out", "−1"],
        ["in the tars", "16"], ["sample: no image", "−1"], ["usable", "15"],
        ["text: none", "1"], ["text: not UTF-8", "1"], ["sample: empty image", "−1"],
        ["sample: not an image", "−1"], ["the image can't be read", "−2"],
        ["raw", "11 of 15 images, 11 pairs"], ["no text that a rule could use", "−2"],
        ["embed", "13 of 15 asked"],
    ):  # fmt: skip
        assert row in found.rows, row
    assert "The numbers add up." in found.text
    assert found.tags["b"] == 0


def test_numbers_that_do_not_add_up_are_said(run: Run) -> None:
    path = f"{run.mixture_folder(run.spec.mixtures[0])}/mixture.json"
    run.storage.write(path, json.dumps(json.loads(run.storage.read(path)) | {"images": 12}).encode())
    assert "The numbers do not add up: please report this." in page(run).text


def test_the_gallery_holds_images_with_all_their_texts_and_scores(run: Run) -> None:
    ReportStep().run(run)
    text = run.storage.read(f"{run.folder}/report.html").decode()
    figures = re.findall(r"<figure>(.*?)</figure>", text, re.S)
    assert len(figures) == 12
    shown = {found[1]: figure for figure in figures if (found := re.search(r"a drawing of thing (\d+)", figure))}
    assert len(shown) == 12
    for number, figure in shown.items():
        assert figure.count("data:image/jpeg;base64,") == 1
        assert f"{0.4 + int(number) / 100:.3f}" in figure
        if number not in ("10", "11"):
            assert f"{int(number) / 20:.3f}" in figure
    assert "no text" in shown["10"] if "10" in shown else "no text" in shown["11"]


def test_the_gallery_goes_on_to_the_next_shard(tmp_path: Path) -> None:
    for shard in range(4):
        samples = {f"{i}": sample(10 * shard + i, jpg=None if shard == 0 else jpeg(i)) for i in range(5)}
        write_tar(tmp_path / "shards" / f"{shard:08d}.tar", samples)
    run = planned(tmp_path / "out", tmp_path / "shards", [RAW], columns=[])
    with Decoders(0) as decoders:
        found = [gather._pictures(run, run.columns, shard, 12, decoders) for shard in run.pool.shards]
    assert [len(pictures) for pictures in found] == [0, 5, 5, 5]
    assert len({g["uid"] for g in gather.gallery(run, run.columns)}) == 12


def test_pictures_are_not_decoded_in_the_reports_process(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("decoded here")

    monkeypatch.setattr(Image, "open", refuse)
    monkeypatch.setattr(simplejpeg, "decode_jpeg", refuse)
    assert len(gather.gallery(run, run.columns)) == 12


def test_hostile_texts_are_text(run: Run) -> None:
    found = page(run)
    assert found.text.count("<script>alert(1)</script>") == 1
    assert "{{ 7*7 }}" in found.text
    assert found.tags["img"] == 12


def test_control_characters_are_not_on_the_page(tmp_path: Path) -> None:
    """Neither those of texts nor those of reasons, which a pool's parquet brings."""
    write_tar(tmp_path / "shards" / "00000000.tar", {"a": sample(0, CONTROL)})
    table = pa.table({"key": ["a", "b"], "status": ["success", "failed"], "error_message": [None, CONTROL]})
    pq.write_table(table, tmp_path / "shards" / "00000000.parquet")
    run = planned(tmp_path / "out", tmp_path / "shards", [RAW], columns=[])
    assert "]0;owned[2Jredgnp31m" in page(run).text
    text = run.storage.read(f"{run.folder}/report.html").decode()
    assert {c for c in text if unicodedata.category(c) in ("Cc", "Cf")} == {"\n"}


def test_a_long_text_is_cut_visibly(tmp_path: Path) -> None:
    write_tar(tmp_path / "shards" / "00000000.tar", {"a": sample(0, "long " * 100)})
    found = page(planned(tmp_path / "out", tmp_path / "shards", [RAW], columns=[]))
    assert re.search(r"long long lo?n?g?…", found.text)


def test_histograms_and_noise_against_diversity(run: Run) -> None:
    ReportStep().run(run)
    text = html.unescape(run.storage.read(f"{run.folder}/report.html").decode())
    assert "cosine of image and text: raw mean 0.259; blip mean 0.460" in text  # Σ/20 of 0…9, 12; 0.4 + Σ/100 of 0…12
    assert text.count("<polygon") == 2
    assert "share of captions per 0.02" in text
    assert re.search(r"raw: \d+ trigrams, mean cosine 0\.259; mixed: \d+ trigrams, mean cosine 0\.\d+", text)
    assert text.count("<circle") == 2


def test_figure_5_counts_in_all_texts(tmp_path: Path, shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However few of them the table counts in."""
    monkeypatch.setattr(statistics, "SAMPLE", 1)
    run = filled(planned(tmp_path / "out", shards, [MIXED]), list(range(13)))
    analysis = json.loads(run.storage.read(f"{run.mixture_folder(run.spec.mixtures[0])}/analysis.json"))
    assert analysis["trigrams"]["captions"] < analysis["diversity"]["captions"] == analysis["captions"]
    (circle,) = gather.circles(run)
    assert circle.x == analysis["diversity"]["unique"] > analysis["trigrams"]["unique"]


def test_a_captioner_that_saw_a_part_is_marked(tmp_path: Path, shards: Path) -> None:
    run = filled(planned(tmp_path / "out", shards, [MIXED]), list(range(8)))
    stages(run)
    found = page(run)
    # 8 captions and the broken images, of 15
    assert "blip was computed for 10 of 15 usable samples (66.7 %), those a mixture can use" in found.text
    assert "blip (66.7 % of the pool)" in found.text
    assert ["caption:blip", "8 of 10 asked (66.7 % of the pool)"] in found.rows


SCALE = {"model": "ViT-B-32", "batchSize": 8, "learningRate": 0.001, "warmup": 1, "samples": 80}


def trained(folder: Path) -> dict[str, Any]:
    """A recipe's train and evaluate; nothing of the tasks is read here."""
    for task in ("classes", "pictures"):
        (folder / "tasks" / task / "test").mkdir(parents=True)
        (folder / "tasks" / task / "test" / "nshards.txt").write_text("1")
    return {"train": {"scale": SCALE}, "evaluate": {"root": str(folder / "tasks"), "tasks": ["classes", "pictures"]}}


def evaluated(run: Run, name: str, accuracy: float, retrieval: float, missing: int = 0) -> None:
    """Write what evaluate writes, of three tasks, with so many missing beside them."""
    mixture = next(m for m in run.spec.mixtures if m.name == name)
    run.storage.write(f"{run.model_folder(mixture)}/model.json", b'{"samples": 80}')
    tasks = [
        {"name": "ImageNet 1k", "metric": "acc1", "said": "accuracy", "samples": 60, "value": accuracy / 2},
        {"name": "classes", "metric": "acc1", "said": "accuracy", "samples": 100, "value": accuracy},
        {"name": "pictures", "metric": "mean_recall@1", "said": "recall", "samples": 50, "value": retrieval},
    ]
    tasks = [{**task, "folder": f"wds_{task['name']}", "column": None} for task in tasks]
    gaps = [{"task": f"flowers {i}", "reason": "not below root"} for i in range(missing)]
    means = {"classification": accuracy, "retrieval": retrieval}
    own = {"ImageNet": accuracy / 2}
    results = {"tasks": tasks, "gaps": gaps, "columns": own, "means": means, "average": accuracy + 0.1}
    run.storage.write(run.results_path(mixture), json.dumps(results).encode())


def test_what_was_trained(tmp_path: Path, shards: Path) -> None:
    run = filled(planned(tmp_path / "out", shards, [RAW, MIXED], **trained(tmp_path)), list(range(13)))
    stages(run)
    evaluated(run, "raw", 0.2349, 0.111)
    found = page(run)
    assert "Still to come: training of mixed; evaluation of mixed." in found.text
    evaluated(run, "mixed", 0.3456, 0.099)
    found = page(run)
    assert "not finished" not in found.text
    heads = ["mixture", "pairs", "mean cosine", "unique trigrams of at most a million texts", "words per caption"]
    means = ["classification accuracy", "retrieval recall@1", "average of the tasks"]
    assert [*heads, "ImageNet accuracy", *means] in found.rows
    rows = {row[0]: row for row in found.rows if row[0] in ("raw", "mixed") and len(row) == 9}
    assert rows["raw"][-4:] == ["0.117", "0.235", "0.111", "0.335"]
    assert rows["mixed"][-4:] == ["0.173", "0.346", "0.099", "0.446"]
    assert "Best zero-shot accuracy: mixed with 0.346, of 2 mixtures." in found.text
    assert {"0.173", "0.346", "0.111", "0.446"} <= {*found.best}
    assert ["", "classes (accuracy, 100 images)", "", "0.346"] in found.rows
    assert "One training per mixture, seed 0" in found.text
    assert found.text.index("One training per mixture") < found.text.index("Images and their texts")


def test_averages_over_some_tasks_say_so_and_none_is_the_best(tmp_path: Path, shards: Path) -> None:
    run = filled(planned(tmp_path / "out", shards, [RAW, MIXED], **trained(tmp_path)), list(range(13)))
    stages(run)
    evaluated(run, "raw", 0.2349, 0.111)
    evaluated(run, "mixed", 0.3456, 0.099, missing=2)
    found = page(run)
    rows = {row[0]: row for row in found.rows if row[0] in ("raw", "mixed") and len(row) == 10}
    assert rows["raw"][-5:] == ["0.117", "0.235", "0.111", "0.335", "–"]
    assert rows["mixed"][-5:] == ["0.173", "0.346", "0.099", "0.446", "3 of 5"]
    assert {"0.173"} <= {*found.best}  # ImageNet's, a result of its own
    assert not {"0.346", "0.111", "0.446", "3 of 5"} & {*found.best}
    assert "Best zero-shot accuracy on ImageNet: mixed with 0.173, of 2 mixtures." in found.text
    assert "Averages are over 3 of 5 tasks, those with a result: no average is marked as the best." in found.text
    assert "flowers 1 was not evaluated: not below root" in found.text
    value = json.loads(run.storage.read(f"{run.folder}/results.json"))
    (_, mixed) = value["evaluations"]
    assert mixed["tasks"][1] == {
        "name": "classes", "folder": "wds_classes", "metric": "acc1", "value": 0.3456, "samples": 100,
    }  # fmt: skip
    assert [len(mixed["tasks"]), len(mixed["gaps"])] == [3, 2]
    assert best_of(value["rows"])["best"] == {"mixture": "mixed", "metric": "ImageNet", "value": 0.1728}


def test_mixtures_that_choose_the_same_are_made_once_and_shown_twice(tmp_path: Path, shards: Path) -> None:
    """Whatever they and their rules are called."""
    twin = json.loads(json.dumps(MIXED | {"name": "twin"}).replace("good", "best"))
    run = filled(planned(tmp_path / "out", shards, [RAW, MIXED, twin], **trained(tmp_path)), list(range(13)))
    stages(run)
    evaluated(run, "raw", 0.2, 0.1)
    evaluated(run, "twin", 0.3, 0.2)
    assert [m.name for m in run.trained] == ["raw", "mixed"]
    assert [m.name for m in run.training_only("twin").trained] == ["mixed"]
    found = page(run)
    assert "twin chooses the same as mixed: it was made once and is shown twice." in found.text
    rows = {row[0]: row[1:] for row in found.rows if row[0] in ("raw", "mixed", "twin") and len(row) == 9}
    assert rows["twin"] == rows["mixed"] != rows["raw"]
    assert "not finished" not in found.text
    assert "of 2 mixtures" in found.text
    assert len([*(tmp_path / "out/mixtures").iterdir()]) == len([*(tmp_path / "out/models").iterdir()]) == 2
    sets = json.loads(run.storage.read(f"{run.folder}/results.json"))["datasets"]
    assert [s["mixture"] for s in sets] == ["raw", "mixed", "twin"]
    assert sets[1]["uri"] == sets[2]["uri"] != sets[0]["uri"]
    assert sets[1]["pairs"] == sets[2]["pairs"]


def test_time_recipe_and_versions(run: Run) -> None:
    stages(run, mix={"state": "failed", "seconds": 1.0})
    found = page(run)
    assert ["stage", "samples", "seconds", "samples/s while computing"] in found.rows
    assert ["embed", "14", "3.5", "7.000"] in found.rows
    assert ["mix (failed)", "–", "1.0", "–"] in found.rows
    assert not [row for row in found.rows if row[0].startswith("report")]
    assert "raw, where score raw is among the pool's top 30 %" in found.text
    assert "blip, where score blip ≥ the threshold of “good”" in found.text
    assert "raw, wherever there is one" in found.text
    assert "kind: Recaption" in found.text
    assert "atLeast: rule: good" in found.text
    assert re.search(r"recaption 0\.\S+ Python 3\.", found.text)
    assert run.nodes["embed"].spec.folder in found.text
    assert run.pool.manifest in found.text
    assert "Nothing was trained: the recipe has no spec.train." in found.text


def test_one_mixture_and_an_empty_one(tmp_path: Path, shards: Path) -> None:
    run = filled(planned(tmp_path / "out", shards, [EMPTY, MIXED]), list(range(13)))
    stages(run)
    found = page(run)
    assert "empty: empty, so that nothing is written, trained or evaluated: of 15 usable images " in found.text
    assert ["empty", "0 of 15 images, 0 pairs"] in found.rows
    assert "The numbers add up." in found.text


def test_a_run_by_an_imported_score_alone_says_what_its_figures_leave_out(tmp_path: Path, shards: Path) -> None:
    (tmp_path / "l14.csv").write_text("uid,l14\n" + "".join(f"{uid(i)},{i}\n" for i in range(16)))
    source = {"from": str(tmp_path / "l14.csv"), "field": "l14", "as": "score"}
    best = {"name": "best", "rules": [{"text": "raw", "where": [{"score": "l14", "top": 0.3}]}]}
    run = planned(tmp_path / "out", shards, [best], columns=[BLIP, {"name": "l14", "import": source}])
    fill(run, "import:l14", {uid(i): float(i) for i in range(16)})
    for step in (MixStep(), AnalyzeStep(), ReshardStep()):
        step.run(run)
    found = page(run)
    assert "Column blip: nothing uses it; not computed." in found.text
    assert "Cosine of raw with its image: nothing uses it; not computed, so no figure has it." in found.text
    assert found.text.count("No rule asks for a cosine, so none was computed.") == 2
    assert "No column looked at the images, so that pairs whose image can't be read are not left out." in found.text
    assert "not finished" not in found.text
    assert "The numbers add up." in found.text
    assert ["best", "3 of 15 images, 3 pairs"] in found.rows


def test_a_page_before_anything_ran(tmp_path: Path, shards: Path) -> None:
    run = planned(tmp_path / "out", shards, [RAW, MIXED], **trained(tmp_path))
    found = page(run)
    assert (
        "This run is not finished. Still to come: columns embed, score:raw, caption:blip, score:blip; mixtures raw, "
        "mixed; training of raw, mixed; evaluation of raw, mixed." in found.text
    )
    assert ["raw", "not chosen yet"] in found.rows
    assert found.tags["img"] == 12
    for path in (tmp_path / "out" / "pools").rglob("*.done.json"):
        path.unlink()
    found = page(run)
    assert "Still to come: columns index, embed" in found.text
    assert "No image could be read yet." in found.text
    assert found.tags["img"] == 0


def test_the_same_run_gives_the_same_page(run: Run) -> None:
    ReportStep().run(run)
    first = run.storage.read(f"{run.folder}/report.html")
    ReportStep().run(run)
    assert run.storage.read(f"{run.folder}/report.html") == first


def labels(svg: str) -> list[str]:
    """Of the axes."""
    return re.findall(r"<text(?: class=\"axis\")? x[^>]*>([^<]*)</text>", svg)


@pytest.mark.parametrize("x", [0.0, 3.0, 329.0, 12_345_678.0])
def test_one_circle_has_axes_that_can_be_read(x: float) -> None:
    found = labels(plots.scatter([plots.Circle("only", x, 0.31, 5)], "x", "y"))
    assert len(found) == len(set(found)), found
    assert len(found) >= 7


def test_circles_show_their_numbers_and_areas() -> None:
    circles = [plots.Circle(f"<m{i}>", 100 * i, i / 10, 100 * 4**i) for i in range(3)]
    svg = plots.scatter(circles, "x", "y")
    assert re.findall(r'class="name"[^>]*>([^<]*)<', svg) == ["3", "2", "1"]
    assert re.findall(r"</span>([^<]*)<", svg) == ["1 &lt;m0&gt;", "2 &lt;m1&gt;", "3 &lt;m2&gt;"]
    radii = [float(r) for r in re.findall(r' r="([\d.]+)"', svg)]
    assert radii == pytest.approx([24, 12, 6], abs=0.05)


def test_every_text_of_many_is_drawn() -> None:
    many = [plots.Histogram(f"t{i}", [0, i + 1, 1, 0], -1, 1, 0.0) for i in range(9)]
    svg = plots.histograms(many, "cosine")
    assert svg.count("<polygon") == svg.count("<li>") == 9


def test_nothing_to_draw() -> None:
    assert plots.histograms([plots.Histogram("t", [0, 0], -1, 1, None)], "cosine") == ""
    assert plots.scatter([], "x", "y") == ""
