"""Whole runs on this machine, through the command line's own functions, on the miniature."""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from components.base.errors import PermanentError
from components.miniature.demo import WEIGHTS
from components.miniature.pool import write_pool
from components.pool.columns import Columns
from components.pool.run import Run, load_run
from components.recipe.recipe import parse_recipe
from components.selection.rule_inputs import coverage
from components.stages.report.table import result_table
from pipelines.execution.local import run_all
from pipelines.planning.plan import plan_run
from tests.pools import sample, write_tar

GOOD = {"name": "good", "text": "raw", "where": [{"score": "raw", "top": 0.3}]}
REST = {"text": "blip", "where": [{"score": "blip", "atLeast": {"rule": "good"}}]}

BLIP = {"name": "blip", "caption": {"model": str(WEIGHTS / "captioner")}}


def recipe_text(storage: Path, shards: Path, mixtures: list[dict[str, Any]], **spec: Any) -> str:
    whole = {
        "apiVersion": "recaption.dev/v1alpha1",
        "kind": "Recaption",
        "metadata": {"name": "test"},
        "spec": {
            "storage": str(storage),
            "pool": {"name": "pool", "shards": str(shards)},
            "scorer": {"model": f"local-dir:{WEIGHTS / 'scorer'}"},
            "columns": [BLIP],
            "compute": {"decoders": 0},
            "mixtures": mixtures,
            **spec,
        },
    }
    return yaml.safe_dump(whole)


def run(text: str) -> Run:
    planned = plan_run(parse_recipe(text))
    planned.save()
    run_all(planned)
    return load_run(f"{planned.storage.uri}/{planned.folder}")


def mixture(run: Run, name: str) -> dict[str, Any]:
    found = next(m for m in run.spec.mixtures if m.name == name)
    value: dict[str, Any] = json.loads(run.storage.read(f"{run.mixture_folder(found)}/mixture.json"))
    return value


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    write_pool(folder, 400, 200, seed=11)
    return folder


@pytest.mark.slow
def test_a_second_recipe_adds_only_the_captions_the_first_one_skipped(tmp_path: Path, world: Path) -> None:
    first = run(recipe_text(tmp_path, world, [{"name": "mixed", "rules": [GOOD, REST]}]))
    caption = first.text("blip")
    covered, usable = coverage(first, caption)
    assert 0.65 * usable < covered < 0.75 * usable
    chosen = mixture(first, "mixed")
    assert chosen["rules"][0]["pairs"] == usable - covered
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file() and "columns" in str(p)}

    second = run(recipe_text(tmp_path, world, [{"name": "synthetic", "rules": [{"text": "blip"}]}]))
    assert second.text("blip") == caption
    assert coverage(second, caption) == (usable, usable)
    assert all(p.read_bytes() == data for p, data in before.items())
    columns = Columns(second.storage, "pool")
    for shard in second.pool.shards:
        uids = columns.read(caption, shard, []).column("uid").to_pylist()
        assert len(uids) == len(set(uids))
        assert len(columns.parts(caption, shard)) == 2

    texts = {row["mixture"]: row for row in result_table(second)}
    assert texts["synthetic"]["pairs"] == mixture(second, "synthetic")["pairs"]


@pytest.mark.slow
def test_synthetic_texts_are_closer_and_less_diverse(tmp_path: Path, world: Path) -> None:
    scored = [{"text": name, "where": [{"score": name, "atLeast": -1}]} for name in ("raw", "blip")]
    mixtures = [{"name": "raw", "rules": scored[:1]}, {"name": "synthetic", "rules": scored[1:]}]
    rows = {str(row["mixture"]): row for row in result_table(run(recipe_text(tmp_path, world, mixtures)))}
    assert rows["synthetic"]["mean cosine"] > rows["raw"]["mean cosine"] + 0.1  # type: ignore[operator]
    assert rows["synthetic"]["unique trigrams"] < rows["raw"]["unique trigrams"]  # type: ignore[operator]


@pytest.mark.slow
def test_columns_made_elsewhere(tmp_path: Path, world: Path, caplog: pytest.LogCaptureFixture) -> None:
    index = (
        pq.read_table(world / "00000000.parquet").to_pylist() + pq.read_table(world / "00000001.parquet").to_pylist()
    )
    uids = [row["uid"] for row in index if row["status"] == "success"]
    made = tmp_path / "made"
    made.mkdir()
    pq.write_table(pa.table({"uid": uids, "l14": np.linspace(0, 1, len(uids)).astype(np.float32)}), made / "a.parquet")
    (tmp_path / "captions.csv").write_text(
        "uid,blip2-cap\n" + "".join(f"{uid},a caption of {uid}\n" for uid in uids[:50])
    )
    halves = [(int(uid[:16], 16), int(uid[16:], 16)) for uid in sorted(uids[:80])]
    np.save(tmp_path / "subset.npy", np.array(halves, dtype="u8,u8"))
    columns = [
        {"name": "l14", "import": {"from": str(made), "field": "l14", "as": "score"}},
        {"name": "published", "import": {"from": str(tmp_path / "captions.csv"), "field": "blip2-cap", "as": "text"}},
        {"name": "in1k", "import": {"from": str(tmp_path / "subset.npy"), "as": "flag"}},
    ]
    mixtures = [
        {"name": "top", "rules": [{"text": "raw", "where": [{"score": "l14", "top": 0.25}]}]},
        {"name": "given", "rules": [{"text": "published"}]},
        {"name": "subset", "rules": [{"text": "published", "where": [{"flag": "in1k"}]}]},
        {"name": "mixed", "rules": [
            {"name": "a", "text": "raw", "where": [{"score": "l14", "top": 0.25}]},
            {"text": "raw", "where": [{"score": "raw", "atLeast": {"rule": "a"}}]},
        ]},
    ]  # fmt: skip
    found = run(recipe_text(tmp_path / "out", world, mixtures, columns=columns))
    assert mixture(found, "given")["pairs"] in range(48, 51)  # less the broken images among them
    assert mixture(found, "subset")["pairs"] == mixture(found, "given")["pairs"]
    assert mixture(found, "top")["thresholds"][0]["threshold"] == pytest.approx(0.75, abs=0.01)
    assert "were not made by the same scorer" in " ".join(mixture(found, "mixed")["warnings"])


@pytest.mark.slow
def test_killed_at_random_and_run_again_gives_the_same_bytes(tmp_path: Path, world: Path) -> None:
    mixtures = [{"name": "mixed", "rules": [GOOD, REST]}]
    run(recipe_text(tmp_path / "calm", world, mixtures))
    path = tmp_path / "recipe.yaml"
    path.write_text(recipe_text(tmp_path / "stormy", world, mixtures))
    command = [sys.executable, "-m", "pipelines.cli", "run", str(path)]
    chance = random.Random(1)
    for _ in range(5):
        files, wanted = _files(tmp_path / "stormy"), chance.randint(1, 5)
        child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while child.poll() is None and len(_files(tmp_path / "stormy") - files) < wanted:
            time.sleep(0.02)
        time.sleep(chance.random() * 0.2)
        child.send_signal(signal.SIGKILL)
        assert child.wait() == -signal.SIGKILL  # not done yet: every kill hits work
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    assert _data(tmp_path / "stormy") == _data(tmp_path / "calm")


def _files(storage: Path) -> set[Path]:
    return {p for p in storage.rglob("*") if p.is_file()}


def _data(storage: Path) -> dict[str, str]:
    """Columns, selections and tars by their content; records hold seconds, and the recipe its storage."""
    suffixes = (".parquet", ".tar", ".npy")
    files = [p for p in storage.rglob("*") if p.suffix in suffixes and not p.name.startswith(".tmp-")]
    return {str(p.relative_to(storage)): hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(files)}


class _Loads(HTMLParser):
    """Collects what a page would fetch, and its scripts."""

    def __init__(self) -> None:
        super().__init__()
        self.urls: list[str] = []
        self.scripts = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.scripts += tag == "script"
        self.urls += [str(value) for name, value in attrs if name in ("src", "href", "srcset", "data")]


@pytest.mark.slow
def test_hostile_texts_and_broken_images_end_in_the_report(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script><img src=http://evil.example/x>"
    samples = {f"{i:04d}": sample(i) for i in range(20)} | {
        "x0": sample(100, evil), "x1": sample(101, jpg=b"<html>"), "x2": sample(102, txt=b"\xff\xfe"),
        "x3": sample(103, jpg=None), "x4": sample(104, jpg=b""),
    }  # fmt: skip
    write_tar(tmp_path / "shards" / "00000000.tar", samples)
    mixtures = [{"name": "raw", "rules": [{"text": "raw", "where": [{"score": "raw", "atLeast": -1}]}]}]
    done = run(recipe_text(tmp_path / "out", tmp_path / "shards", mixtures, columns=[]))
    chosen = mixture(done, "raw")
    assert chosen["pairs"] == 21
    assert chosen["dropped"]["the image can't be read"] == 2
    assert sum(chosen["dropped"].values()) + chosen["images"] == chosen["usable"] == 24
    page = done.storage.read(f"{done.folder}/report.html").decode()
    loads = _Loads()
    loads.feed(page)
    assert loads.scripts == 0
    assert all(url.startswith("data:image/") for url in loads.urls)
    for reason in ("not an image", "empty image", "no image", "text: not UTF-8", "The numbers add up."):
        assert reason in page


def test_another_number_of_tasks_is_refused(tmp_path: Path, world: Path) -> None:
    mixtures = [{"name": "raw", "rules": [{"text": "raw"}]}]
    plan_run(parse_recipe(recipe_text(tmp_path, world, mixtures))).save()
    again = plan_run(parse_recipe(recipe_text(tmp_path, world, mixtures, compute={"shardsPerTask": 1})))
    with pytest.raises(PermanentError, match=r"planned before, with another plan \(tasks was 1, is 2"):
        again.save()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"pool": {"name": "pool", "shards": "/nowhere/at/all"}}, "no .tar in"),
        ({"scorer": {"model": "local-dir:/nowhere"}}, "spec.scorer.model: /nowhere does not exist"),
        (
            {"columns": [{"name": "blip", "caption": {"model": "/nowhere"}}]},
            r"spec.columns\[0\].caption.model: /nowhere does not exist",
        ),
    ],
)
def test_what_is_not_there_is_said_before_anything_runs(
    tmp_path: Path, world: Path, changed: dict[str, Any], message: str
) -> None:
    text = recipe_text(tmp_path, world, [{"name": "raw", "rules": [{"text": "raw"}]}], **changed)
    with pytest.raises(PermanentError, match=message):
        plan_run(parse_recipe(text))
    assert not list(tmp_path.iterdir())


def test_the_command_line_says_it_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("kind: Recaption")
    command = [sys.executable, "-m", "pipelines.cli", "validate", str(tmp_path / "recipe.yaml")]
    result = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "COLUMNS": "300"}, check=False)
    assert result.returncode == 42
    assert "Traceback" not in result.stderr
    assert "recipe.yaml: spec: missing" in result.stderr
