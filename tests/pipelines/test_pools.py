"""Pools as people have them: growing, cut to a subset, written by others' tools, in a bucket."""

from __future__ import annotations

import hashlib
import io
import json
import pickle
import re
import shutil
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import pytest

from components.base.errors import PermanentError
from components.miniature.pool import write_pool
from components.pool.run import Run
from components.pool.shards import list_pool, load_pool
from components.recipe.recipe import parse_recipe
from components.recipe.sources import Subset
from components.selection.rule_inputs import coverage
from components.storage.interface import Storage
from components.storage.local import LocalStorage
from components.storage.opening import open_storage
from pipelines.planning.plan import plan_run
from tests.components.storage.gcs_server import BUCKET, Faults, gcs_server
from tests.components.storage.s3_server import s3_environment, s3_server
from tests.pipelines.execution.test_local import GOOD, REST, mixture, recipe_text, run
from tests.pools import encode, jpeg, write_shard

RAW = {"name": "raw", "rules": [{"text": "raw", "where": [{"score": "raw", "atLeast": -1}]}]}
TOP = {"name": "top", "rules": [{"text": "raw", "where": [{"score": "raw", "top": 0.5}]}]}
SYNTHETIC = {"name": "synthetic", "rules": [{"text": "blip"}]}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three shards of about 60 samples."""
    folder = tmp_path_factory.mktemp("world")
    write_pool(folder, 180, 60, seed=5)
    return folder


def take(world: Path, folder: Path, *shards: int) -> Path:
    """Copy some of the world's shards."""
    folder.mkdir(exist_ok=True)
    for shard in shards:
        for path in world.glob(f"{shard:08d}*"):
            shutil.copy(path, folder)
    return folder


def files(storage: Path, below: str) -> dict[str, tuple[int, str]]:
    """Inode and digest of what lies there: a file that was written anew has another inode."""
    return {
        str(p.relative_to(storage)): (p.stat().st_ino, hashlib.sha256(p.read_bytes()).hexdigest())
        for p in sorted((storage / below).rglob("*"))
        if p.is_file()
    }


@pytest.mark.slow
def test_a_pool_that_grew_computes_the_new_shards_only(tmp_path: Path, world: Path) -> None:
    shards, out = take(world, tmp_path / "shards", 0, 1), tmp_path / "out"
    text = recipe_text(out, shards, [TOP, SYNTHETIC])
    first = run(text)
    columns, mixtures = files(out, "pools/pool/columns"), files(out, "mixtures")

    take(world, shards, 2)
    second = run(text)
    assert second.pool.manifest != first.pool.manifest
    assert len(list((out / "pools/pool/manifests").iterdir())) == 2
    after = files(out, "pools/pool/columns")
    assert columns.items() <= after.items()
    assert {Path(p).name.partition(".")[0] for p in after.keys() - columns.keys()} == {"00000002"}
    assert len(after) - len(columns) == 4 * 2  # data and record of each of four columns
    assert mixtures.items() <= files(out, "mixtures").items()
    for old, new in zip(first.spec.mixtures, second.spec.mixtures, strict=True):
        assert first.mixture_folder(old) != second.mixture_folder(new)
    assert mixture(second, "synthetic")["pairs"] > mixture(first, "synthetic")["pairs"]
    usable = coverage(second, second.score("raw"))[1]
    assert mixture(second, "synthetic")["usable"] == usable

    whole = run(recipe_text(tmp_path / "once", take(world, tmp_path / "again", 0, 1, 2), [TOP, SYNTHETIC]))
    assert mixture(whole, "top")["thresholds"] == mixture(second, "top")["thresholds"]
    assert mixture(whole, "top")["shards"] == mixture(second, "top")["shards"]


@pytest.mark.slow
def test_a_grown_pool_asks_for_the_captions_of_its_new_threshold(tmp_path: Path, world: Path) -> None:
    mixed = [{"name": "mixed", "rules": [GOOD, REST]}]
    shards = take(world, tmp_path / "shards", 0, 1)
    run(recipe_text(tmp_path / "out", shards, mixed))
    grown = run(recipe_text(tmp_path / "out", take(world, shards, 2), mixed))
    whole = run(recipe_text(tmp_path / "once", take(world, tmp_path / "again", 0, 1, 2), mixed))
    assert mixture(grown, "mixed")["shards"] == mixture(whole, "mixed")["shards"]
    for shard in grown.pool.shards:
        uids = grown.columns.read(grown.text("blip"), shard, []).column("uid").to_pylist()
        assert len(uids) == len(set(uids))


def subset(folder: Path, count: int, seed: int) -> list[str]:
    return [s.name for s in list_pool("p", LocalStorage(folder), Subset(shards=count, seed=seed)).shards]


def test_a_subset_by_count_and_seed(tmp_path: Path) -> None:
    for shard in range(12):
        write_shard(tmp_path, shard, 1)
    first = subset(tmp_path, 5, 0)
    assert first == subset(tmp_path, 5, 0) == sorted(first)
    assert len(first) == 5
    assert len({tuple(subset(tmp_path, 5, seed)) for seed in range(5)}) > 1
    assert set(subset(tmp_path, 4, 0)) < set(first)
    write_shard(tmp_path, 12, 1)
    assert len(set(first) - set(subset(tmp_path, 5, 0))) <= 1
    with pytest.raises(PermanentError, match=r"^spec\.pool\.subset\.shards: asks for 14, the pool has 13$"):
        subset(tmp_path, 14, 0)


def test_a_subset_shares_its_columns_with_the_whole_pool(tmp_path: Path, world: Path) -> None:
    def text(**pool: Any) -> str:
        where = {"name": "pool", "shards": str(world), **pool}
        return recipe_text(tmp_path, world, [TOP], columns=[], pool=where)

    part = run(text(subset={"shards": 2, "seed": 3}))
    before = files(tmp_path, "pools/pool/columns")
    assert len(part.pool.shards) == 2
    assert len(mixture(part, "top")["shards"]) == 2
    whole = run(text())
    after = files(tmp_path, "pools/pool/columns")
    assert before.items() <= after.items()
    new = {Path(p).name.partition(".")[0] for p in after.keys() - before.keys()}
    assert new == {s.name for s in whole.pool.shards} - {s.name for s in part.pool.shards}
    assert part.mixture_folder(part.spec.mixtures[0]) != whole.mixture_folder(whole.spec.mixtures[0])


@pytest.mark.parametrize("out", ["", "out", "a/../out"])
def test_a_storage_among_the_shards_is_refused(tmp_path: Path, out: str) -> None:
    """The training sets written there would be the next run's shards."""
    write_shard(tmp_path / "shards", 0, 1)
    text = recipe_text(tmp_path / "shards" / out, tmp_path / "shards", [RAW], columns=[])
    with pytest.raises(PermanentError, match=r"^spec\.storage: .* lies in spec\.pool\.shards .*; give another folder$"):
        plan_run(parse_recipe(text))
    plan_run(parse_recipe(recipe_text(tmp_path / "shards-out", tmp_path / "shards", [RAW], columns=[])))
    plan_run(parse_recipe(recipe_text(tmp_path, tmp_path / "shards", [RAW], columns=[])))


FORMATS = {"jpg": "JPEG", "png": "PNG", "webp": "WEBP", "gif": "GIF", "bmp": "BMP", "tiff": "TIFF"}


@pytest.mark.parametrize("names", ["sorted", "as the folder lists them", "texts before images"])
def test_a_folder_of_shards_by_plain_tar(tmp_path: Path, names: str) -> None:
    """No json, no parquet, images of many formats, in folders, from a tool that knows nothing of webdataset."""
    from PIL import Image

    made: dict[bytes, str | None] = {}
    for shard in range(2):
        loose = tmp_path / f"loose{shard}"
        for i, (extension, name) in enumerate([*FORMATS.items(), *FORMATS.items()]):
            image = Image.open(io.BytesIO(jpeg(shard * 100 + i))).convert("RGB")
            path = loose / f"album{i % 2}" / f"picture-{i:02d}.{extension.upper() if i > 8 else extension}"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(encode(image, name))
            made[path.read_bytes()] = None if i == 4 else f"a picture of {shard} and {i}"
            if i != 4:
                path.with_suffix(".txt").write_text(str(made[path.read_bytes()]))
        listed = sorted(str(p.relative_to(loose)) for p in loose.rglob("*") if p.is_file())
        if names == "texts before images":
            listed.sort(key=lambda name: not name.endswith(".txt"))
        target = tmp_path / "shards" / ("sub" if shard else ".") / f"export-{shard}.tar"
        target.parent.mkdir(parents=True, exist_ok=True)
        subprocess.run(
            ["tar", "-cf", str(target), "-C", str(loose), *(["."] if names.startswith("as") else listed)], check=True
        )
    done = run(recipe_text(tmp_path / "out", tmp_path / "shards", [RAW, SYNTHETIC]))
    status = done.status()["stages"]
    assert [s.name for s in done.pool.shards] == ["export-0", "sub-export-1"]
    assert status["index"]["samples"] == status["embed"]["samples"] == status["caption:blip"]["samples"] == 24
    assert status["index"]["failures"] == {"text: no json: uid derived": 24}
    assert status["embed"]["failures"] == {}
    assert mixture(done, "raw")["pairs"] == 22
    assert written(done, "raw") == {image: text for image, text in made.items() if text is not None}
    captioned = written(done, "synthetic")
    assert captioned.keys() == made.keys()
    assert all(captioned.values())


def written(done: Run, name: str) -> dict[bytes, str]:
    """Text by image of a training set."""
    folder = Path(done.storage.uri) / done.dataset_folder(next(m for m in done.spec.mixtures if m.name == name))
    found: dict[bytes, str] = {}
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as tar:
            members: dict[str, dict[str, bytes]] = {}
            for member in tar:
                key, _, extension = member.name.partition(".")
                file = tar.extractfile(member)
                assert file is not None
                members.setdefault(key, {})[extension] = file.read()
        for sample in members.values():
            image = next(data for extension, data in sample.items() if extension not in ("txt", "json"))
            found[image] = sample["txt"].decode()
            assert len(json.loads(sample["json"])["uid"]) == 32
    return found


def digests(storage: Storage) -> dict[str, str]:
    """Of every data file; records hold seconds and the recipe its storage, the index's names where the shards lie."""
    paths = [e.path for e in storage.list() if e.path.endswith((".parquet", ".tar", ".npy", "mixture.json"))]
    return {
        re.sub(r"(/index\.\S+?)\.[0-9a-f]{12}\.", r"\1.", p): hashlib.sha256(storage.read(p)).hexdigest() for p in paths
    }


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["gs", "s3"])
def test_a_whole_run_in_a_bucket_that_fails_now_and_then(
    tmp_path: Path, world: Path, monkeypatch: pytest.MonkeyPatch, scheme: str
) -> None:
    """Five of a hundred requests fail; the bucket ends with the bytes of a run on a disk, and nothing besides."""
    mixtures = [{"name": "mixed", "rules": [GOOD, REST]}, TOP]
    run(recipe_text(tmp_path, world, mixtures))
    faults = Faults(seed=1)
    with gcs_server(faults) if scheme == "gs" else s3_server(faults) as address, s3_environment(address):
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", address)
        there = f"{scheme}://{BUCKET}"
        bucket = open_storage(there)
        for path in world.iterdir():
            bucket.upload(path, f"shards/{path.name}")
        faults.share = 0.05
        done = run(recipe_text(f"{there}/out", f"{there}/shards", mixtures))  # type: ignore[arg-type]
        faults.share = 0.0
        assert sum(faults.done.values()) >= 5
        assert digests(open_storage(f"{there}/out")) == digests(LocalStorage(tmp_path))
        assert {stage["state"] for stage in done.status()["stages"].values()} == {"done"}
        before = {e.path: e.size for e in bucket.list()}
        again = run(recipe_text(f"{there}/out", f"{there}/shards", mixtures))  # type: ignore[arg-type]
        assert again.name == done.name
        changed = before.items() ^ {(e.path, e.size) for e in bucket.list()}
        assert {path.rpartition("/")[2] for path, _ in changed} <= {"status.json", "report.html"}


def test_a_pool_goes_to_another_process(tmp_path: Path) -> None:
    write_shard(tmp_path / "shards", 0, 1)
    pool = list_pool("p", LocalStorage(tmp_path / "shards"))
    pool.save(LocalStorage(tmp_path))
    kept = load_pool("p", pool.manifest, LocalStorage(tmp_path), pool.source)
    for one in (pool, kept):
        assert pickle.loads(pickle.dumps(one)).shards == pool.shards
