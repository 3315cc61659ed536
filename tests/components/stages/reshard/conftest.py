"""A small pool on disk, indexed by the index stage, and selections written as mix writes them."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable, Sequence
from hashlib import sha256
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from components.engine.worker import run_task
from components.pool.run import Node, Run
from components.pool.shards import list_pool
from components.recipe.recipe import Recipe, parse_recipe
from components.stages.index.stage import IndexStage
from components.storage.local import LocalStorage

RECIPE = """
apiVersion: recaption.dev/v1alpha1
kind: Recaption
metadata: {{name: test}}
spec:
  storage: {root}/out
  pool: {{name: tiny, shards: {root}/shards}}
  mixtures:
  - {{name: everything, rules: [{{text: raw}}]}}
"""


def image_bytes(number: int, kind: str = "JPEG") -> bytes:
    image = Image.new("RGB", (24 + number % 8, 24), (number * 7 % 256, number * 3 % 256, 90))
    data = io.BytesIO()
    image.save(data, kind)
    return data.getvalue()


def uid_of(number: int) -> str:
    return f"{(number * 0x9E3779B97F4A7C15) % (1 << 128):032x}"


def write_tar(path: Path, numbers: Sequence[int], kinds: Sequence[str] = ("JPEG",)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for number in numbers:
            kind = kinds[number % len(kinds)]
            meta = {"uid": uid_of(number), "url": f"http://x/{number}", "width": 24 + number % 8, "height": 24}
            extension = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp", "GIF": "gif"}[kind]
            for name, data in (
                (extension, image_bytes(number, kind)),
                ("json", json.dumps(meta).encode()),
                ("txt", f"raw text {number}".encode()),
            ):
                info = tarfile.TarInfo(f"{number:09d}.{name}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))


def make_run(root: Path, recipe: str = RECIPE) -> Run:
    """Index every tar below root/shards; the run has no other column."""
    parsed: Recipe = parse_recipe(recipe.format(root=root))
    storage, source = LocalStorage(root / "out"), LocalStorage(root / "shards")
    pool = list_pool(parsed.spec.pool.name, source)
    index = IndexStage.make_index()
    run = Run("test", storage, parsed, pool, {"index": Node("index", index, "index")}, {})
    run_task(IndexStage(index), pool, pool.shards, run.columns, decoders=0)
    return run


def select(run: Run, rows: Callable[[str, list[str]], list[tuple[str, str]]]) -> str:
    """Write the first mixture's selection: rows(shard, usable uids) gives (uid, text) pairs."""
    folder = run.mixture_folder(run.spec.mixtures[0])
    shards = []
    for shard in run.pool.shards:
        index = run.columns.read(run.index, shard, ["error"]).to_pylist()
        pairs = rows(shard.name, [r["uid"] for r in index if r["error"] is None])
        table = pa.table(
            {
                "uid": pa.array([u for u, _ in pairs], pa.string()),
                "text": pa.array([t for _, t in pairs], pa.string()),
                "rule": pa.array([0] * len(pairs), pa.int32()),
                "source": pa.array(["raw"] * len(pairs), pa.string()),
            }
        )
        sink = io.BytesIO()
        pq.write_table(table, sink)
        run.storage.write(f"{folder}/{shard.name}.parquet", sink.getvalue())
        digest = sha256(sink.getvalue()).hexdigest()
        shards.append({"name": shard.name, "rows": table.num_rows, "sha256": digest})
    mixture = {"thresholds": [{"score": "raw", "top": 0.3, "threshold": 0.25}], "shards": shards}
    run.storage.write(f"{folder}/mixture.json", json.dumps(mixture).encode())
    return folder


def all_raw(shard: str, uids: list[str]) -> list[tuple[str, str]]:
    return [(uid, f"text of {uid}") for uid in uids]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Two shards of 30 samples of four image formats."""
    kinds = ("JPEG", "PNG", "WEBP", "GIF")
    write_tar(tmp_path / "shards/00000000.tar", range(30), kinds)
    write_tar(tmp_path / "shards/00000001.tar", range(100, 130), kinds)
    return make_run(tmp_path)
