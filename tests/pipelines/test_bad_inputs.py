"""Whole runs over bad inputs: each is counted with a reason in the ledger, and the run goes on or says one line."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import re
import subprocess
import sys
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image

from components.base.errors import PermanentError, TemporaryError
from components.miniature.demo import WEIGHTS
from components.pool.columns import Columns
from components.pool.run import Run
from components.recipe.recipe import parse_recipe
from pipelines.execution import local
from pipelines.planning.plan import plan_run
from tests.components.engine.test_images import bomb
from tests.components.models import evil
from tests.pipelines.execution.test_local import mixture, recipe_text, run
from tests.pools import encode, jpeg, sample, uid, write_shard, write_tar
from tests.privileges import full_disk, open_to_all, without_root

RAW = {"name": "raw", "rules": [{"text": "raw", "where": [{"score": "raw", "atLeast": -1}]}]}
BEST = {"name": "best", "rules": [{"text": "raw", "where": [{"score": "raw", "top": 0.5}]}]}
SYNTHETIC = {"name": "synthetic", "rules": [{"text": "blip", "where": [{"score": "blip", "atLeast": -1}]}]}


@pytest.fixture(autouse=True)
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "PAUSE", 0.0)


def colour(mode: str, value: Any = 0) -> Image.Image:
    return Image.new(mode, (40, 30), value)


def rotated() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return encode(colour("RGB", (200, 0, 0)), "JPEG", exif=exif)


STRANGE = {  # images that can be used
    "cmyk": encode(colour("CMYK", (0, 200, 200, 0)), "JPEG"),
    "palette": encode(colour("RGB", (9, 200, 0)).quantize(4), "PNG"),
    "alpha": encode(colour("RGBA", (0, 0, 0, 0)), "PNG"),
    "16 bits": encode(Image.fromarray(np.full((30, 40), 0x8000, np.uint16)), "PNG"),
    "animated": encode(colour("P", 1), "GIF", save_all=True, append_images=[colour("P", 2)]),
    "rotated": rotated(),
}
UNUSABLE = {  # images that can't, and why
    "html": (b"<html>not found</html>", "not an image"),
    "corrupt": (b"\xff\xd8\xff\xe0" + bytes(300), "not an image"),
    "truncated": (jpeg(size=(300, 300))[:-500], "truncated image"),
    "zero bytes": (b"", "empty image"),
    "1x1": (jpeg(size=(1, 1)), "image of one pixel's width"),
    "bomb": (bomb(), "image of too many pixels"),
}
TEXTS = {  # texts that can't be used, beside images that can
    "not UTF-8": b"\xff\xfe caf\xe9",
    "over 8192 bytes": b"x" * 100_000,
    "none": b"",
}


def write_bad_pool(folder: Path) -> Path:
    numbers = iter(range(1000))
    images = {name: sample(next(numbers), name, jpg=data) for name, data in STRANGE.items()}
    images |= {name: sample(next(numbers), name, jpg=data) for name, (data, _) in UNUSABLE.items()}
    images |= {f"text {name}": sample(next(numbers), "", txt=data) for name, data in TEXTS.items()}
    images |= {"no txt": sample(next(numbers), "", txt=None), "no image": sample(next(numbers), jpg=None)}
    images |= {"no json": sample(next(numbers), json=None)}
    images |= {f"good{i}": sample(next(numbers)) for i in range(6)}
    write_tar(folder / "00000000.tar", images)
    cut = write_shard(folder, 1, 5, start=200)
    with tarfile.open(cut) as tar:
        third = tar.getmembers()[6]
    cut.write_bytes(cut.read_bytes()[: third.offset_data + third.size // 2])
    write_tar(folder / "00000002.tar", {})
    (folder / "00000003.tar").write_bytes(b"no tar at all " * 100)
    (folder / "00000004.tar").write_bytes(b"")
    pairs = [
        ("a", sample(300)),
        ("b", sample(301, json=None)),
        ("a", sample(302)),
        ("c", sample(300)),
        ("d", sample(12)),
    ]
    write_tar(folder / "00000005.tar", pairs)
    beside = [
        {"key": "a", "uid": uid(300), "status": "success", "error_message": None},
        {"key": "b", "uid": uid(301), "status": "success", "error_message": None},
        {"key": "z", "uid": uid(399), "status": "success", "error_message": None},
        {"key": "y", "uid": uid(398), "status": "failed_to_download", "error_message": "HTTP Error 410: Gone"},
    ]
    pq.write_table(pa.Table.from_pylist(beside), folder / "00000005.parquet")
    write_shard(folder, 6, 2, start=400).with_suffix(".parquet").write_bytes(b"PAR1 not really PAR1")
    return folder


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("bad")
    return run(recipe_text(folder / "out", write_bad_pool(folder / "shards"), [RAW, BEST, SYNTHETIC]))


@pytest.mark.slow
def test_every_bad_sample_is_counted(done: Run) -> None:
    stages = done.status()["stages"]
    whole = 2  # of the samples in the shard that was cut off
    assert stages["index"]["failures"] == {
        "download: HTTP Error 410: Gone": 1,
        "sample: cut off by the end of the tar": 1,
        "sample: duplicate key": 1,
        "sample: duplicate uid": 1,
        "sample: no image": 1,
        "shard: empty tar": 1,
        "shard: no samples": 3,
        "shard: rows of the parquet that the tar lacks": 1,
        "shard: samples of the tar that the parquet lacks": 2,
        "shard: truncated or corrupt tar": 2,
        "shard: unreadable parquet": 1,
        "text: no json: uid derived": 1,
        "text: none": 2,
        "text: not UTF-8": 1,
        "text: over 8192 bytes": 1,
    }
    usable = len(STRANGE) + len(UNUSABLE) + len(TEXTS) + 1 + 1 + 6 + whole + 3 + 2
    reasons = [f"sample: {reason}" for _, reason in UNUSABLE.values()]
    counted = {reason: reasons.count(reason) for reason in sorted(set(reasons))}
    for stage in ("embed", "caption:blip"):
        assert stages[stage]["samples"] == usable
        assert stages[stage]["failures"] == counted
    for stage in ("score:raw", "score:blip"):
        assert stages[stage]["failures"] == {"sample: image without an embedding": len(UNUSABLE)}
    assert all(stage["state"] == "done" for stage in stages.values())


@pytest.mark.slow
def test_the_mixtures_add_up(done: Run) -> None:
    usable = done.status()["stages"]["embed"]["samples"]
    for name, textless in (("raw", len(TEXTS) + 1), ("synthetic", 0)):
        found = mixture(done, name)
        assert found["usable"] == usable
        assert found["dropped"].get("the image can't be read") == len(UNUSABLE)
        assert found["dropped"].get("no text that a rule could use", 0) == textless
        assert found["pairs"] == usable - len(UNUSABLE) - textless
        dataset = json.loads(done.storage.read(f"{done.dataset_folder(_named(done, name))}/dataset.json"))
        assert dataset["samples"] == found["pairs"]
        assert dataset["repeated"] == (1 if name == "synthetic" else 0)  # uid 12, in two shards; one has no text
    page = done.storage.read(f"{done.folder}/report.html").decode()
    for reason in (*(reason for _, reason in UNUSABLE.values()), "duplicate uid", "truncated or corrupt tar"):
        assert reason.replace("'", "&#39;") in page or reason in page


def _named(done: Run, name: str) -> Any:
    return next(m for m in done.spec.mixtures if m.name == name)


@pytest.mark.slow
def test_strange_images_have_values(done: Run) -> None:
    shard = done.pool.shards[0]
    keys = dict(zip(*done.columns.read(done.index, shard, ["key"]).to_pydict().values(), strict=True))
    for key, field in (("embed", "embedding"), ("caption:blip", "text"), ("score:blip", "cosine")):
        rows = done.columns.read(done.nodes[key].spec, shard, [field]).to_pylist()
        values = {keys[row["uid"]]: row[field] for row in rows}
        assert all(values[name] is not None for name in STRANGE), key
        assert all(values[name] is None for name in UNUSABLE), key
        assert all(values[f"text {name}"] is not None for name in TEXTS), key


def test_a_pool_without_a_usable_sample(tmp_path: Path) -> None:
    """Nothing to mix is said in a line; what was found is kept."""
    write_tar(tmp_path / "shards" / "00000000.tar", {})
    write_tar(tmp_path / "shards" / "00000001.tar", {"a": sample(0, jpg=b""), "b": sample(1, jpg=None)})
    for chosen in (BEST, RAW):
        message = f"no mixture has a pair: {chosen['name']}: empty, so that"
        with pytest.raises(PermanentError, match=message) as caught:
            run(recipe_text(tmp_path / "out", tmp_path / "shards", [chosen], columns=[]))
        assert "\n" not in str(caught.value)


def _data(storage: Path) -> dict[str, str]:
    files = [p for p in storage.rglob("*") if p.suffix in (".parquet", ".tar", ".npy") and ".tmp-" not in p.name]
    return {str(p.relative_to(storage)): hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(files)}


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["gone", "altered"])
@pytest.mark.parametrize("key", ["index", "embed", "score:raw"])
def test_a_record_whose_data_is_gone_or_altered_is_made_anew(tmp_path: Path, key: str, damage: str) -> None:
    for shard in range(3):
        write_shard(tmp_path / "shards", shard, 6)
    first = run(recipe_text(tmp_path / "out", tmp_path / "shards", [RAW], columns=[]))
    good = _data(tmp_path / "out")
    columns = Columns(first.storage, "pool")
    victim = tmp_path / "out" / columns.record(first.nodes[key].spec, first.pool.shards[1], "all").file
    data = victim.read_bytes()
    victim.unlink()
    if damage == "altered":
        victim.write_bytes(data[:-9] + bytes(9))
    second = run(recipe_text(tmp_path / "out", tmp_path / "shards", [RAW, BEST, SYNTHETIC]))  # reads all of them
    after = _data(tmp_path / "out")
    assert good.items() <= after.items()
    calm = run(recipe_text(tmp_path / "calm", tmp_path / "shards", [RAW, BEST, SYNTHETIC]))
    assert after == _data(tmp_path / "calm")
    assert mixture(second, "best")["shards"] == mixture(calm, "best")["shards"]


@pytest.mark.parametrize("free", [0, 8, 40, 90, 130])
def test_a_full_disk_stops_a_run_that_goes_on_later(tmp_path: Path, free: int) -> None:
    """With so many kB free: another stage meets the full disk each time."""
    for shard in range(3):
        write_shard(tmp_path / "shards", shard, 8)
    calm = tmp_path / "calm"
    run(recipe_text(calm, tmp_path / "shards", [RAW], columns=[]))
    with full_disk(tmp_path / "disk", "4m") as disk:
        (disk / "ballast").write_bytes(bytes((4096 - free) << 10))
        with pytest.raises(TemporaryError, match="the disk is full: free space") as caught:
            run(recipe_text(disk / "out", tmp_path / "shards", [RAW], columns=[]))
        assert "\n" not in str(caught.value)
        (disk / "ballast").unlink()
        run(recipe_text(disk / "out", tmp_path / "shards", [RAW], columns=[]))
        assert _data(disk / "out") == _data(calm)
        assert not list((disk / "out").rglob(".tmp-*"))


IMPORTS = """
import sys
from pathlib import Path
import pipelines.cli, pipelines.planning.estimate, pipelines.execution.local, pipelines.planning.plan
import pyarrow.parquet, random, tempfile
from components.recipe.recipe import parse_recipe
from components.engine.registry import stages
stages()
parse_recipe(Path({recipe!r}).read_text())
"""
RUN = """
sys.stderr = sys.stdout
sys.argv = ["recaption", "run", {recipe!r}]
try:
    pipelines.cli.main()
except SystemExit as stopped:
    print("exit", stopped.code)
"""


@pytest.mark.parametrize("closed", ["storage", "shards", "tar"])
def test_a_folder_without_permission_is_one_line(tmp_path: Path, closed: str) -> None:
    recipe, out = tmp_path / "recipe.yaml", tmp_path / "out"
    write_shard(tmp_path / "shards", 0, 2)
    out.mkdir()
    scorer = tmp_path / "scorer"
    scorer.mkdir()
    for path in (WEIGHTS / "scorer").iterdir():
        (scorer / path.name).write_bytes(path.read_bytes())
    text = recipe_text(out, tmp_path / "shards", [RAW], columns=[], scorer={"model": f"local-dir:{scorer}"})
    recipe.write_text(text)
    open_to_all(tmp_path)
    for folder in (tmp_path / "shards", scorer):
        open_to_all(folder)
    out.chmod(0o755 if closed == "storage" else 0o777)
    if closed != "storage":
        (tmp_path / "shards" / ("" if closed == "shards" else "00000000.tar")).chmod(0)
    try:
        places = {"recipe": str(recipe)}
        lines = without_root(IMPORTS.format(**places), RUN.format(**places)).splitlines()
        lines = [line for line in lines if " INFO " not in line]
        assert lines[-1] == "exit 42", lines
        assert len(lines) == 2, lines
        assert lines[0].startswith("error: cannot ")
        assert lines[0].endswith("no permission: let this user read and write there")
    finally:
        (tmp_path / "shards").chmod(0o755)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["scorer", "captioner", "screen"])
def test_a_model_that_brings_python_is_one_line(tmp_path: Path, kind: str) -> None:
    """Whatever somebody has typed."""
    write_shard(tmp_path / "shards", 0, 2)
    sentinel, typed = tmp_path / "sentinel", tmp_path / "typed"
    model = (evil.scorer if kind == "scorer" else evil.config)(tmp_path / "model", sentinel)
    spec: dict[str, Any] = {
        "scorer": {"scorer": {"model": str(model)}, "columns": []},
        "captioner": {"columns": [{"name": "blip", "caption": {"model": str(model)}}]},
        "screen": {
            "columns": [{"name": "x", "textNsfw": {"model": str(model), "label": "nsfw"}}],
            "drop": [{"score": "x", "atLeast": 0.5}],
        },
    }[kind]
    mixtures = [SYNTHETIC] if kind == "captioner" else [RAW]
    (tmp_path / "recipe.yaml").write_text(recipe_text(tmp_path / "out", tmp_path / "shards", mixtures, **spec))
    typed.write_text("y\n" * 50)
    with open(typed) as answers:
        child = subprocess.run(
            [sys.executable, "-m", "pipelines.cli", "run", str(tmp_path / "recipe.yaml")],
            stdin=answers, capture_output=True, text=True, check=False, env={**os.environ, "HF_HUB_OFFLINE": "1"},
        )  # fmt: skip
        assert os.lseek(answers.fileno(), 0, os.SEEK_CUR) == 0
    said = [line for line in child.stderr.splitlines() if " INFO " not in line]
    assert (child.returncode, child.stdout, len(said)) == (42, "", 1), (said, child.stdout)
    refused = r".*config\.json has .*; recaption runs no code that a model brings"
    if kind == "captioner":  # its plan has looked at the config before
        refused = r".* is a brought model; supported are blip, blip-2 and open_clip's CoCa"
    assert re.match(rf"error: .*model: {refused}", said[0])
    assert not sentinel.exists()


def recipe_with(**changes: Any) -> str:
    """The recipe with values at dotted paths; None removes the key."""
    whole = yaml.safe_load(recipe_text(Path("/out"), Path("/shards"), [copy.deepcopy(RAW), copy.deepcopy(BEST)]))
    for path, value in changes.items():
        *parents, last = [int(p) if p.isdigit() else p for p in path.split(".")]
        at = whole
        for part in parents:
            at = at[part]
        at[last] = value
    return yaml.safe_dump(whole)


TOP = "spec.mixtures[1].rules[0].where[0]"
MISTAKES = [
    ({"spec.mixtures.1.rules.0.where.0.top": 0}, f"{TOP}.top: found 0: Input should be greater than 0"),
    ({"spec.mixtures.1.rules.0.where.0.top": 1.1}, f"{TOP}.top: found 1.1: Input should be less than or equal to 1"),
    ({"spec.mixtures.1.rules.0.where.0.top": 110}, f"{TOP}.top: found 110: Input should be less than or equal to 1"),
    (
        {"spec.mixtures.1.rules.0.where.0.top": "30%"},
        f'{TOP}.top: found "30%": Input should be a valid number',
    ),
    (
        {"spec.mixtures.1.rules.0.where.0.top": float("nan")},
        f"{TOP}.top: found NaN: Input should be a finite number",
    ),
    (
        {"spec.mixtures.1.rules.0.where.0": {"score": "raw", "atLeast": float("nan")}},
        f"{TOP}.atLeast: found NaN: Input should be a finite number",
    ),
    ({"spec.mixtures.0.rules.0.text": "blib"}, "spec.mixtures[0].rules[0].text: blib is no text; there is raw, blip"),
    (
        {"spec.mixtures.0.rules.0.text": {"bestOf": ["raw", "blib"]}},
        "spec.mixtures[0].rules[0].text: blib is no text; there is raw, blip",
    ),
    ({"spec.mixtures.1.rules.0.where.0.score": "b"}, f"{TOP}.score: b is no score; there is raw, blip"),
    ({"spec.mixtures.1.name": "raw"}, "spec.mixtures[1].name: raw is taken; every name must be used once"),
    ({"spec.mixtures": []}, "spec.mixtures: found []: List should have at least 1 item after validation, not 0"),
    (
        {"spec.pool.shard": "x"},
        "spec.pool.shard: unknown key; allowed are name, shards, urls, commonCrawl, subset; did you mean shards?",
    ),
    ({"spec.pool.subset": {"count": 3, "shards": 2}}, "spec.pool.subset.count: unknown key; allowed are shards, seed"),
    (
        {"spec.pool.subset": {"shards": 0}},
        "spec.pool.subset.shards: found 0: Input should be greater than or equal to 1",
    ),
    (
        {"spec.mixtures.0.rules.0.when": []},
        "spec.mixtures[0].rules[0].when: unknown key; allowed are name, text, where; did you mean where?",
    ),
    ({"spec.mixtures.0.emit": "last"}, "spec.mixtures[0].emit: found \"last\": Input should be 'first' or 'all'"),
    ({"state": {}}, "state: unknown key; allowed are apiVersion, kind, metadata, spec, status; did you mean status?"),
    (
        {"spec.columns.0.caption.temperature": 0},
        "spec.columns[0].caption.temperature: found 0: Input should be greater than 0",
    ),
]


@pytest.mark.parametrize(("changes", "expected"), MISTAKES)
def test_a_mistake_in_a_recipe_is_one_line(changes: Mapping[str, Any], expected: str) -> None:
    """The path in the YAML, what was found, what is allowed."""
    with pytest.raises(PermanentError) as caught:
        parse_recipe(recipe_with(**changes), "recipe.yaml")
    assert str(caught.value) == f"recipe.yaml: {expected}"


def test_a_key_that_comes_twice_in_the_yaml_is_said() -> None:
    """YAML readers keep the last of two silently: the first mixtures would vanish."""
    text = recipe_with() + "spec: {}\n"
    with pytest.raises(PermanentError, match=r"^recipe.yaml: not YAML: key spec comes twice") as caught:
        parse_recipe(text, "recipe.yaml")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "where"),
    [
        ({"spec.scorer.model": "local-dir:/no/scorer"}, "spec.scorer.model: /no/scorer does not exist"),
        (
            {"spec.scorer": {"model": "ViT-B-32", "weights": "/no/weights.pt"}},
            "spec.scorer.weights: /no/weights.pt does",
        ),
        (
            {"spec.columns.0.caption.model": "./no/captioner"},
            r"spec.columns[0].caption.model: ./no/captioner does not exist",
        ),
        (
            {"spec.train": {"scale": "debug"}, "spec.evaluate": {"root": "/no/tasks"}},
            "spec.evaluate.root: /no/tasks does not exist or is empty",
        ),
    ],
)
def test_a_path_that_is_not_there_is_said_before_any_work(tmp_path: Path, changes: Any, where: str) -> None:
    write_shard(tmp_path / "shards", 0, 1)
    pool = {"name": "pool", "shards": str(tmp_path / "shards")}
    text = recipe_with(**{"spec.storage": str(tmp_path / "out"), "spec.pool": pool}, **changes)
    with pytest.raises(PermanentError, match=f"^{re.escape(where)}") as caught:
        plan_run(parse_recipe(text))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()
