"""Thresholds and selection over millions of rows: exact, in flat memory, against loading the column and sorting it.

Floor of the thresholds: reading the score parts' bytes and their checksums, twice.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import time
from math import floor
from pathlib import Path

import numpy as np
import pyarrow as pa

from components.pool.columns import ALL, Columns
from components.pool.run import Node, Run
from components.pool.shards import Shard, pool_of
from components.pool.specs import ColumnSpec, Content
from components.recipe.recipe import parse_recipe
from components.selection.quantile import thresholds
from components.selection.score_reader import ScoreReader
from components.stages.mix.stage import MixStep
from components.storage.local import LocalStorage
from tests.bench.measure import peak_mb, show

ROWS_PER_SHARD = 10_000
RECIPE = """
apiVersion: recaption.dev/v1alpha1
kind: Recaption
metadata: {name: bench}
spec:
  storage: STORAGE
  pool: {name: bench, shards: STORAGE}
  columns: [{name: cap, caption: {model: none}}]
  mixtures:
  - name: raw30-cap
    rules:
    - {name: good, text: raw, where: [{score: raw, top: 0.3}]}
    - {text: cap, where: [{score: cap, atLeast: {rule: good}}]}
"""


def make_run(folder: Path, rows: int) -> Run:
    """A pool of so many samples, without a tar, and its columns: index, a caption and the cosines of both texts."""
    shards = tuple(Shard(f"{i:08d}", f"{i:08d}.tar", 1, None, "bench") for i in range(rows // ROWS_PER_SHARD))
    index = ColumnSpec("index", "bench", 1, {})
    caption = ColumnSpec("caption", "bench", 1, {}, {"index": index})
    scores = {n: ColumnSpec("score", n, 1, {"of": n}, {"index": index}) for n in ("raw", "cap")}
    nodes = [
        Node("index", index, "index"),
        Node("score:raw", scores["raw"], "score", {"score": "cosine"}),
        Node("caption:cap", caption, "caption", {"text": "text"}),
        Node("score:cap", scores["cap"], "score-captions", {"score": "cosine"}),
    ]
    recipe = parse_recipe(RECIPE.replace("STORAGE", str(folder)))
    pool = pool_of("bench", LocalStorage(folder), shards)
    return Run("bench", LocalStorage(folder), recipe, pool, {n.key: n for n in nodes}, {})


def write_columns(run: Run) -> None:
    """Write the values of all columns."""
    columns, random = Columns(run.storage, "bench"), np.random.default_rng(0)
    none = pa.nulls(ROWS_PER_SHARD, pa.string())
    for number, shard in enumerate(run.pool.shards):
        uids = pa.array([f"{number * ROWS_PER_SHARD + i:032x}" for i in range(ROWS_PER_SHARD)])
        texts = pa.array([f"a photo of thing number {i} on a table" for i in range(ROWS_PER_SHARD)])
        table = pa.table({"uid": uids, "text": texts, "error": none})
        columns.commit(run.index, shard, ALL, table, {}, 0, Content("bench", "bench"))
        columns.commit(run.text("cap"), shard, ALL, table, {}, 0)
        for mean, name in ((0.21, "raw"), (0.25, "cap")):
            cosine = random.normal(mean, 0.06, ROWS_PER_SHARD).astype(np.float32)
            table = pa.table({"uid": uids, "cosine": cosine, "error": none})
            columns.commit(run.score(name), shard, ALL, table, {}, 0)


def load_and_sort(run: Run, share: float) -> float:
    """The naive way: the whole column in memory, sorted."""
    columns = Columns(run.storage, "bench")
    parts = [columns.read(run.score("raw"), s, ["cosine"]).column("cosine").to_numpy() for s in run.pool.shards]
    descending = np.sort(np.concatenate(parts))[::-1]
    return float(descending[min(floor(len(descending) * share), len(descending) - 1)])


def measure(what: str, folder: str, rows: int) -> None:
    """One measurement in this process; prints seconds, value and peak memory as JSON."""
    run = make_run(Path(folder), rows)
    began, value = time.perf_counter(), 0.0
    if what == "write":
        write_columns(run)
    elif what == "sort":
        value = load_and_sort(run, 0.3)
    elif what == "thresholds":
        value = thresholds(ScoreReader(run, run.open_columns(), kept=0).passes("raw"), [0.3])[0.3]
    elif what == "mix":
        MixStep().run(run)
    print(json.dumps([time.perf_counter() - began, value, peak_mb()]))


def child(what: str, folder: Path, rows: int) -> tuple[float, float, float]:
    command = [sys.executable, "-m", "tests.bench.mix", what, str(folder), str(rows)]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout
    wall, value, peak = json.loads(output.splitlines()[-1])
    return wall, value, peak


def main() -> None:
    for millions in (1, 10, 30):
        folder, rows = Path(tempfile.mkdtemp()), millions * 1_000_000
        child("write", folder, rows)
        naive, expected, naive_peak = min(child("sort", folder, rows) for _ in range(3))
        ours, found, peak = min(child("thresholds", folder, rows) for _ in range(3))
        mixing, _, mix_peak = child("mix", folder, rows)
        assert found == expected, (found, expected)
        show(
            **{
                f"{millions}M rows: thresholds": f"{ours:.2f} s, {naive / ours:.2f} × as fast as load and sort",
                f"{millions}M rows: peak memory": f"{peak:,.0f} MB; load and sort {naive_peak:,.0f} MB",
                f"{millions}M rows: whole mix step": f"{mixing:.1f} s, {rows / mixing:,.0f} rows/s, {mix_peak:,.0f} MB",
            }
        )
        shutil.rmtree(folder)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        measure(sys.argv[1], sys.argv[2], int(sys.argv[3]))
    else:
        main()
