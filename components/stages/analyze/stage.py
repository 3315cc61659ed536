"""analyze: statistics of every text and of every mixture's choice."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from components.base.threads import map_ahead
from components.engine.stage import Needs, Step
from components.pool.columns import Columns, align
from components.pool.run import Run
from components.pool.shards import Shard
from components.recipe.columns import RAW
from components.recipe.mixtures import Mixture
from components.selection.rule_inputs import analysis_path, coverage, read_values
from components.selection.rules import Scores
from components.stages.analyze.statistics import Statistics

log = logging.getLogger(__name__)

Chunk = tuple[pa.Array, pa.Array, Scores]
"""uids, texts, cosines of one shard."""


class AnalyzeStep(Step):
    """Words per caption, unique trigrams, cosine histograms (paper, section 6)."""

    name = "analyze"
    summary = "measure length, diversity and alignment of the texts and of each mixture"
    reads = ("texts", "scores", "mixtures")
    writes = "analysis.json of each text and mixture"
    needs = Needs(memory_gib=2)

    def run(self, run: Run) -> None:
        for name in run.texts:
            _analyze_text(run, name)
        for mixture in run.mixtures:
            if not run.is_empty(mixture):
                _analyze_mixture(run, mixture)


def _analyze_text(run: Run, name: str) -> None:
    path = analysis_path(run, name)
    if _found(run, path) is not None:
        return
    covered, usable = coverage(run, run.text(name))
    if covered < usable:
        log.info("text %s covers %d of %d usable samples; its statistics are of that part", name, covered, usable)
    result = {"text": name, "covered": covered, "usable": usable, **_measure(_text_chunks(run, name), covered)}
    run.storage.write(path, json.dumps(result).encode())


def _found(run: Run, path: str) -> dict[str, Any] | None:
    """Return the analysis that is there, if it has all that is measured now: an earlier version's may have less."""
    if run.storage.size(path) is None:
        return None
    found: dict[str, Any] = json.loads(run.storage.read(path))
    return found if "diversity" in found else None


def _analyze_mixture(run: Run, mixture: Mixture) -> None:
    folder, cosines = run.mixture_folder(mixture), run.cosines(mixture)
    path = f"{folder}/analysis.json"
    there = _found(run, path)
    if there is not None and cosines.items() <= there.get("cosines", {}).items():
        return
    pairs = json.loads(run.storage.read(f"{folder}/mixture.json"))["pairs"]
    result = {"mixture": mixture.name, "cosines": cosines, **_measure(_mixture_chunks(run, folder), pairs)}
    run.storage.write(path, json.dumps(result).encode())


def _measure(chunks: Iterator[Chunk], expected: int) -> dict[str, object]:
    statistics = Statistics(expected)
    for chunk in chunks:
        statistics.add(*chunk)
    return statistics.to_json()


def _text_chunks(run: Run, name: str) -> Iterator[Chunk]:
    columns = _columns(run)

    def read(shard: Shard) -> Chunk:
        index = columns.read(run.index, shard, ["text", "error"])
        index = index.filter(pc.is_null(index.column("error")))
        if name != RAW and columns.parts(run.text(name), shard):
            covered = columns.read(run.text(name), shard, []).column("uid").combine_chunks()
            index = index.filter(pc.is_in(index.column("uid"), value_set=covered))
        values = read_values(run, columns, shard, index, [name], [name] if _scored(run, name) else [], [])
        cosines = values.scores.get(name, np.full(values.rows, np.nan, np.float32))
        return index.column("uid").combine_chunks(), values.texts[name], cosines

    yield from map_ahead(read, run.pool.shards)


def _mixture_chunks(run: Run, folder: str) -> Iterator[Chunk]:
    columns = _columns(run)

    def read(shard: Shard) -> Chunk:
        chosen = pq.read_table(pa.BufferReader(run.storage.read(f"{folder}/{shard.name}.parquet")))
        cosines = np.full(chosen.num_rows, np.nan, np.float32)
        for source in pc.unique(chosen.column("source")).to_pylist():
            if not _scored(run, source):
                continue
            rows = np.flatnonzero(pc.equal(chosen.column("source"), source).to_numpy())
            uids = chosen.column("uid").take(pa.array(rows)).combine_chunks()
            found = align(columns.read(run.score(source), shard, ["cosine"]), uids).column("cosine")
            cosines[rows] = found.fill_null(np.nan).to_numpy()
        return chosen.column("uid").combine_chunks(), chosen.column("text").combine_chunks(), cosines

    yield from map_ahead(read, run.pool.shards)


def _scored(run: Run, text: str) -> bool:
    return run.has("score", text)


def _columns(run: Run) -> Columns:
    """Open the columns, with every listing read once before the threads start."""
    columns = run.open_columns()
    for node in run.nodes.values():
        columns.parts(node.spec, run.pool.shards[0])
    return columns
