"""Gathers the report's numbers from the records and results of a run; nothing is computed twice."""

from __future__ import annotations

import base64
import hashlib
import io
from collections import Counter
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image

from components.engine.decoding import Decoders, pixels_of
from components.engine.images import Geometry
from components.pool.columns import Columns, align
from components.pool.run import Node, Run
from components.pool.shards import Shard
from components.pool.specs import ColumnSpec
from components.recipe.columns import RAW
from components.selection.rule_inputs import analysis_path, coverage
from components.stages.report.plots import Circle, Histogram
from components.stages.report.table import read, read_of

PICTURES = 12
LOOKED_AT = 20  # shards, until there are enough pictures
LONGEST = 220  # characters of a text shown
THUMBNAIL = Geometry((192, 192), "inside")


def columns_done(run: Run, columns: Columns) -> list[dict[str, Any]]:
    """Return, per column, the samples asked for, computed, and failed by reason."""
    found = []
    for node in run.nodes.values():
        if node.key == "index":
            continue
        counts, rows = failures_of(run, columns, node)
        covered, usable = coverage(run, node.spec)
        failed = sum(counts.values())
        found.append(
            {
                "key": node.key,
                "on_demand": node.demand is not None,
                "folder": node.spec.folder,
                "shards": shards_of(run, columns, node),
                "asked": rows,
                "done": rows - failed,
                "failures": dict(counts),
                "covered": covered,
                "usable": usable,
            }
        )
    return found


def shards_of(run: Run, columns: Columns, node: Node) -> int:
    """Count the shards that have this run's part."""
    return len(run.pool.shards) - len(run.lacking(columns, node))


def failures_of(run: Run, columns: Columns, node: Node) -> tuple[Counter[str], int]:
    """Count (failures by reason, rows) of all parts of a column."""
    counts: Counter[str] = Counter()
    rows = 0
    for shard in run.pool.shards:
        for record in columns.records(node.spec, shard):
            counts.update(record.failures)
            rows += record.rows
    return counts, rows


def histograms(run: Run) -> list[Histogram]:
    """Return the cosines of every text that was scored (Figure 4)."""
    found = []
    for name in run.texts if run.is_indexed else ():
        analysis = read(run, analysis_path(run, name))
        cosine = analysis.get("cosine")
        if cosine and cosine["count"]:
            part = analysis["covered"] < analysis["usable"]
            said = f"{name} ({share(analysis['covered'], analysis['usable'])} of the pool)" if part else name
            found.append(Histogram(said, cosine["histogram"], cosine["low"], cosine["high"], cosine["mean"]))
    return found


def share(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f} %"


def circles(run: Run) -> list[Circle]:
    """Return noise against diversity of every mixture whose pairs all have a cosine (Figure 5)."""
    found = []
    for mixture in run.mixtures:
        analysis = read_of(run, run.mixture_folder, mixture, "analysis.json")
        if analysis.get("captions") and "diversity" in analysis and analysis["cosine"]["count"] == analysis["captions"]:
            names = ", ".join(m.name for m in run.spec.mixtures if run.first_of(m) is mixture)
            trigrams, cosine = analysis["diversity"]["unique"], analysis["cosine"]["mean"]
            found.append(Circle(names, trigrams, cosine, analysis["captions"]))
    return found


def gallery(run: Run, columns: Columns) -> list[dict[str, Any]]:
    """Pick a few images with all their texts and cosines: first those whose raw text no rule of ours took."""
    found: list[dict[str, Any]] = []
    with Decoders(1) as decoders:  # an image may take more memory than this process has, or crash its decoder
        for shard in run.pool.shards[:LOOKED_AT]:
            if len(found) < PICTURES and columns.parts(run.index, shard):
                found += _pictures(run, columns, shard, PICTURES - len(found), decoders)
    return found


def _pictures(run: Run, columns: Columns, shard: Shard, count: int, decoders: Decoders) -> list[dict[str, Any]]:
    index = columns.read(run.index, shard)
    index = index.filter(pc.is_null(index.column("error")))
    uids = index.column("uid").combine_chunks()
    texts: dict[str, Any] = {name: _text(run, columns, shard, name, index, uids) for name in run.texts}
    scores = {name: _score(run, columns, shard, name, uids) for name in run.texts}
    order = sorted(range(index.num_rows), key=lambda row: hashlib.sha256(uids[row].as_py().encode()).digest())
    raw: Any = scores[RAW]
    if raw is not None and raw.null_count < len(raw):
        cut = pc.quantile(raw, 0.7)[0].as_py()  # outside the best 30 %, as in the paper's Figure 1
        order.sort(key=lambda row: raw[row].as_py() is not None and raw[row].as_py() >= cut)
    found: list[dict[str, Any]] = []
    with run.pool.source.open(shard.tar, shard.version) as tar:
        for row in order:
            if len(found) == count:
                break
            tar.seek(index.column("offset")[row].as_py())
            picture = _thumbnail(tar.read(index.column("size")[row].as_py()), decoders)
            said = [
                {"name": name, "text": _short(text[row].as_py()), "cosine": None if s is None else s[row].as_py()}
                for name, text, s in ((name, texts[name], scores[name]) for name in texts)
                if name == RAW or (text is not None and text[row].as_py() is not None)
            ]
            if picture:
                found.append({"uid": uids[row].as_py(), "picture": picture, "texts": said})
    return found


def _text(
    run: Run, columns: Columns, shard: Shard, name: str, index: pa.Table, uids: pa.Array
) -> pa.ChunkedArray | None:
    if name == RAW:
        return index.column("text")
    return _column(columns, shard, run.text(name), "text", uids)


def _score(run: Run, columns: Columns, shard: Shard, name: str, uids: pa.Array) -> pa.ChunkedArray | None:
    if not run.has("score", name):
        return None
    node = run.find("score", name)
    return _column(columns, shard, node.spec, node.fields["score"], uids)


def _column(columns: Columns, shard: Shard, spec: ColumnSpec, field: str, uids: pa.Array) -> pa.ChunkedArray | None:
    """Read a column's field for these uids; None where it was not computed yet."""
    if not columns.parts(spec, shard):
        return None
    return align(columns.read(spec, shard, [field]), uids).column(field)


def _short(text: str | None) -> str | None:
    return text if text is None or len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"


def _thumbnail(data: bytes, decoders: Decoders) -> str | None:
    """Make a data URI of an image; None for an image that can't be read."""
    [chunk] = decoders.submit([data], THUMBNAIL)
    [pixels] = pixels_of(chunk)
    if isinstance(pixels, str):
        return None
    sink = io.BytesIO()
    Image.fromarray(pixels).save(sink, "JPEG", quality=85)
    return f"data:image/jpeg;base64,{base64.b64encode(sink.getvalue()).decode()}"
