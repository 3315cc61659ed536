"""Tables and lists of uids: values are joined as other readers read them, or one line says what is wrong."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from components.base.errors import RecaptionError
from components.engine.worker import run_task
from components.pool.columns import Columns
from components.stages.extract.table import candidates_of, find_tables
from components.stages.imported.stage import Import, ImportStage
from components.stages.index.stage import IndexStage
from components.storage.local import LocalStorage
from tests.fuzz.damage import damaged, text
from tests.fuzz.limits import check_lines
from tests.pools import indexed, uid, write_shard

SAMPLES = 6


def csv_file(chance: Random, folder: Path) -> None:
    """Import a CSV with quotes anywhere: the rows that a strict reader finds, or an error where it finds one."""
    lines = ["uid,value"]
    for number in range(SAMPLES):
        lines.append(f"{uid(number)},{_field(chance)}")
    ending = chance.choice(("\n", "\r\n"))
    data = ending.join(lines) + chance.choice(("", ending))
    path = folder / "values.csv"
    path.write_bytes((b"\xef\xbb\xbf" if chance.random() < 0.1 else b"") + data.encode())
    try:
        rows = list(csv.reader(io.StringIO(data, newline=""), strict=True))
    except csv.Error:
        rows = []
    sound = bool(rows) and all(len(row) == 2 for row in rows)
    try:
        found = _joined(folder, path)
    except RecaptionError as error:
        check_lines(error)
        found = None
    assert (found is not None) == sound, f"a strict reader {'reads' if sound else 'refuses'} {data!r}, not so ours"
    if found is None:
        return
    expected = {row[0]: row[1] if row[1].strip() else None for row in rows[1:]}
    known = {key: _shown(value) for key, value in expected.items()}
    assert {key: _shown(value) for key, value in found.items()} == known


def parquet_file(chance: Random, folder: Path) -> None:
    """Import, and read as a table of URLs, a parquet of any types, damaged or not."""
    path = folder / "values.parquet"
    data = _parquet(chance)
    path.write_bytes(data if chance.random() < 0.4 else damaged(chance, data))
    kind = chance.choice(("score", "text", "flag"))
    for read in (lambda: _joined(folder, path, kind), lambda: _candidates(path)):
        try:
            read()
        except RecaptionError as error:
            check_lines(error)


def npy_file(chance: Random, folder: Path) -> None:
    """Import a list of uids whose header may say anything."""
    sink = io.BytesIO()
    dtype = chance.choice(("u8,u8", "u8,u8", "u8", "f4", "U3", "u8,u8,u8"))
    np.save(sink, np.zeros(chance.choice((0, 1, 5, (2, 2))), np.dtype(dtype)))
    path = folder / "subset.npy"
    path.write_bytes(damaged(chance, sink.getvalue()) if chance.random() < 0.8 else sink.getvalue())
    try:
        _joined(folder, path, "flag", None)
    except RecaptionError as error:
        check_lines(error)


KINDS = {"csv": csv_file, "parquet": parquet_file, "npy": npy_file}


def _joined(folder: Path, source: Path, kind: str = "text", field: str | None = "value") -> dict[str, Any]:
    """Import a column for a shard of plain samples; return the values by uid."""
    shards, out = folder / "shards", folder / "out"
    if not shards.exists():
        write_shard(shards, 0, SAMPLES)
    pool, _, _ = indexed(shards, out)
    columns = Columns(LocalStorage(out), "test")
    options = Import.model_validate({"from": str(source), "field": field, "as": kind})
    spec = ImportStage.make_spec(options, "spec.columns[0].import", {"index": IndexStage.make_index()})
    run_task(ImportStage(spec), pool, pool.shards, columns)
    return {row["uid"]: row[kind] for row in columns.read(spec, pool.shards[0]).to_pylist()}


def _candidates(path: Path) -> int:
    extraction = find_tables(str(path))
    with LocalStorage(path.parent).open(path.name) as file:
        found = [(batch.rows, batch.kept.num_rows + batch.dropped.total()) for batch in candidates_of(file, path.name)]
    assert extraction.files
    assert [rows for rows, _ in found] == [told for _, told in found]
    return len(found)


def _field(chance: Random) -> str:
    """Return a value of a CSV, mostly quoted as it should be."""
    plain = text(chance, long=False).replace("\0", "")
    if chance.random() < 0.03:
        return chance.choice(('"open', '"closed" and on', 'in "the" middle', '"', '""', '"a""b"'))
    return '"' + plain.replace('"', '""') + '"'


def _shown(value: str | None) -> str | None:
    """Return a text without what every text is freed of: marks, NULs and outer spaces."""
    return (value or "").replace("\0", "").strip("\ufeff \r\n\t") or None


def _parquet(chance: Random) -> bytes:
    count = chance.randint(0, SAMPLES)
    uids: list[Any] = [uid(n) for n in range(count)]
    kinds = (pa.string(), pa.large_string(), pa.string_view(), pa.binary(), pa.dictionary(pa.int32(), pa.string()))
    arrays = {"uid": pa.array(uids, chance.choice(kinds)) if chance.random() < 0.8 else pa.array(range(count))}
    arrays |= {"value": _values(chance, count), "url": pa.array([f"http://a.example/{text(chance)}"] * count)}
    arrays |= {"text": pa.array([text(chance).encode("utf-8", "surrogatepass")[:-1] for _ in range(count)])}
    names = [name if chance.random() < 0.97 else "uid" for name in arrays]
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_arrays(list(arrays.values()), names), sink)
    return sink.getvalue()


def _values(chance: Random, count: int) -> pa.Array:
    numbers = [chance.choice((0.5, -1.0, 3.0)) for _ in range(count)]
    return chance.choice(
        (
            pa.array(numbers, pa.float32()),
            pa.array(numbers).cast(pa.decimal128(10, 2)),
            pa.array([str(n) for n in numbers], pa.string_view()),
            pa.array([b"\xff\xfe"] * count, pa.binary()).view(pa.string()),
            pa.array([n > 0 for n in numbers]),
            pa.array([[n] for n in numbers], pa.list_(pa.float64())),
            pa.array([[[n] * chance.choice((1, 1 << 20))] for n in numbers], pa.list_(pa.list_(pa.float32()))),
            pa.array([b"x" * (1 << 16)] * count, pa.binary(1 << 16)),
            pa.array([{"a": n} for n in numbers], pa.struct([("a", pa.float64())])),
            pa.nulls(count),
        )
    )
