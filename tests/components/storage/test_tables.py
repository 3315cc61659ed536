"""Tables of others: every row is read, or one line says which can't be; memory doesn't follow what a file claims."""

from __future__ import annotations

import csv
import gzip
import io
import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from components.base.errors import PermanentError
from components.recipe.sources import is_table
from components.storage.tables import BATCH, BLOCK, explained, open_table

TYPES = {"a": pa.string(), "b": pa.string()}


def rows_of(data: bytes, name: str = "t.csv", rows: int = 1 << 14) -> list[list[Any]]:
    with explained(f"table {name}"):
        table = open_table(io.BytesIO(data), name)
        return [list(row.values()) for batch in table.batches(TYPES, rows) for row in batch.to_pylist()]


@pytest.mark.parametrize("ending", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("name", ["t.csv", "t.csv.gz", "t.tsv", "T.TSV.GZ"])
def test_every_way_to_quote_that_is_allowed(name: str, mark: str, ending: str) -> None:
    values = [
        "plain",
        "a, b\tc",
        'he said "hi"',
        "two\nlines",
        '"',
        '""',
        'in"side',
        "",
        'last"',
        f'x{ending}"y"{ending}',
    ]
    sink = io.StringIO(newline="")
    delimiter = "\t" if "tsv" in name.lower() else ","
    writer = csv.writer(sink, lineterminator=ending, delimiter=delimiter)
    writer.writerows([["a", "b"], *([str(n), value] for n, value in enumerate(values))])
    data = (mark + sink.getvalue() + f'77{delimiter}5" pipe{ending}78{delimiter}""{ending}79{delimiter}"end"').encode()
    found = rows_of(gzip.compress(data) if name.lower().endswith("gz") else data, name)
    assert found[:-3] == [[str(n), value] for n, value in enumerate(values)]
    assert found[-3:] == [["77", '5" pipe'], ["78", ""], ["79", "end"]]


BROKEN = [
    (b'a,b\n1,x\n2,"never closed\n3,z\n', "row 2 (line 3): a value opens with a quote that nothing closes"),
    (
        b'\xef\xbb\xbfa,b\r\n1,"two\r\nlines"\r\n2,"open',
        "row 2 (line 4): a value opens with a quote that nothing closes",
    ),
    (b'a,b\n1,x\n2,"stray\n3,"whole, one"\n', "row 2 (line 3): after its closing quote a value goes on with 'w'"),
    (b'a,b\n1,"x" y\n', "row 1 (line 2): after its closing quote a value goes on with ' '"),
    (b'a,b\n1,"x"\x1b\n', r"row 1 (line 2): after its closing quote a value goes on with '\\x1b'"),
    (b'a,b\n1,"', "row 1 (line 2): a value opens with a quote that nothing closes"),
    (b'a,b\n1,"""', "row 1 (line 2): a value opens with a quote that nothing closes"),
]


@pytest.mark.parametrize(("data", "message"), BROKEN)
@pytest.mark.parametrize("kind", ["csv", "csv.gz", "tsv"])
def test_a_quote_that_is_not_closed_as_it_must_be(data: bytes, message: str, kind: str) -> None:
    data = data.replace(b",", b"\t") if kind == "tsv" else data
    with pytest.raises(PermanentError) as error:
        rows_of(gzip.compress(data) if kind == "csv.gz" else data, f"t.{kind}")
    assert message.replace(r"\\", "\\") in str(error.value)
    assert "\n" not in str(error.value)


def test_an_open_quote_in_a_file_of_many_blocks_is_named_by_its_row() -> None:
    lines = [b"%d,plain %s" % (n, b"x" * 90) for n in range(5 * BLOCK // 100)]
    lines[20_000] = b'20000,"oops'
    with pytest.raises(
        PermanentError, match=r"row 20001 \(line 20002\): a value opens with a quote that nothing closes"
    ):
        rows_of(b"a,b\n" + b"\n".join(lines))


def test_blocks_may_end_anywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Quotes, escapes and ends of lines on both sides of every cut."""
    draw = random.Random(0)
    values = ["".join(draw.choices('ab",\n\r', k=draw.randint(0, 9))) for _ in range(300)]
    sink = io.StringIO(newline="")
    csv.writer(sink, quoting=csv.QUOTE_ALL).writerows([["a", "b"], *([str(n), v] for n, v in enumerate(values))])
    for block in (40, 41, 53, 64):
        monkeypatch.setattr("components.storage.tables.BLOCK", block)
        assert rows_of(sink.getvalue().encode()) == [[str(n), value] for n, value in enumerate(values)]
        with pytest.raises(PermanentError, match=r"row 300 \(line \d+\): after its closing quote"):
            rows_of(sink.getvalue().encode()[:-3] + b'"x"\n')


@pytest.mark.parametrize(
    ("name", "known"),
    [("a.parquet", True), ("A.PARQUET", True), ("a.parq", True), ("a/b.csv", True), ("b.CSV.GZ", True),
     ("b.tsv", True), ("b.tsv.gz", True), ("b.json", False), ("b.csv.zst", False), ("csv", False),
     (".hidden.parquet", False), (".ipynb_checkpoints/a.csv", False), ("a/._b.parquet", False)],
)  # fmt: skip
def test_what_a_table_is_called(name: str, known: bool) -> None:
    assert is_table(name) == known


def test_two_fields_of_one_name(tmp_path: Path) -> None:
    table = pa.table([["1"], ["2"], ["3"]], ["a", "a", "b"])
    pq.write_table(table, tmp_path / "t.parquet")
    for data, name in (((tmp_path / "t.parquet").read_bytes(), "t.parquet"), (b"a,a,b\n1,2,3\n", "t.csv")):
        with pytest.raises(PermanentError, match=rf"^table {name}: 2 fields are called a; "):
            rows_of(data, name)
    pq.write_table(pa.table([["1"], ["2"], ["3"], ["4"]], ["a", "b", "c", "c"]), tmp_path / "t.parquet")
    assert rows_of((tmp_path / "t.parquet").read_bytes(), "t.parquet") == [["1", "2"]]


def bomb(path: Path, length: int, rows: int) -> bytes:
    """A small parquet whose one long text stands in every row: a dictionary has it once."""
    column = pa.DictionaryArray.from_arrays(pa.array([0] * rows, pa.int32()), pa.array(["y" * length]))
    pq.write_table(pa.table({"a": ["x"] * rows, "b": column}), path, compression="zstd", store_schema=False)
    return path.read_bytes()


def test_a_small_parquet_of_long_texts_is_read_in_small_batches(tmp_path: Path) -> None:
    """A text of 500 kB, named 500 times: 250 MB as an array, a few kB as a file."""
    data = bomb(tmp_path / "t.parquet", 500_000, 500)
    assert len(data) < 10_000
    before, sizes = pa.total_allocated_bytes(), []
    with explained("table t.parquet"):
        for batch in open_table(io.BytesIO(data), "t.parquet").batches(TYPES, 1 << 14):
            assert pa.types.is_string(batch.column("b").type)
            assert pa.total_allocated_bytes() - before < 150 << 20
            sizes.append(batch.num_rows)
            del batch
    assert sum(sizes) == 500


def test_a_small_parquet_of_wide_values_is_read_in_small_batches(tmp_path: Path) -> None:
    """A value of 500 kB, whose width is in the schema, named 500 times."""
    wide = pa.DictionaryArray.from_arrays(
        pa.array([0] * 500, pa.int32()), pa.array([b"y" * 500_000], pa.binary(500_000))
    )
    column = {"a": pa.array(["x"] * 500), "b": wide.dictionary_decode()}
    pq.write_table(pa.table(column), tmp_path / "t.parquet", compression="zstd", store_schema=False)
    del wide, column
    data = (tmp_path / "t.parquet").read_bytes()
    assert len(data) < 50_000
    table = open_table(io.BytesIO(data), "t.parquet")
    sizes = [batch.num_rows for batch in table.batches(TYPES, 1 << 14)]
    assert sum(sizes) == 500
    assert max(sizes) * 500_000 <= BATCH


NESTED = {
    "list": pa.list_(pa.int8()),
    "large list": pa.large_list(pa.int8()),
    "list of lists": pa.list_(pa.list_(pa.int8())),
    "struct": pa.struct([("x", pa.list_(pa.int8()))]),
    "map": pa.map_(pa.int8(), pa.int8()),
}


@pytest.mark.parametrize("kind", NESTED.values(), ids=NESTED)
def test_a_field_of_lists_is_refused_before_it_is_read(tmp_path: Path, kind: pa.DataType) -> None:
    """One row of a few kB may be a billion values, and none of our fields is a list."""
    pq.write_table(pa.table({"a": ["x"], "b": pa.nulls(1, kind), "c": pa.nulls(1, kind)}), tmp_path / "t.parquet")
    data = (tmp_path / "t.parquet").read_bytes()
    with pytest.raises(
        PermanentError, match=r"^table t\.parquet: field b has dtype (large_)?\w+<.*>, expected one value a row$"
    ):
        rows_of(data, "t.parquet")
    with explained("table t.parquet"):
        table = open_table(io.BytesIO(data), "t.parquet")
        assert [batch.to_pylist() for batch in table.batches({"a": pa.string()}, 1)] == [[{"a": "x"}]]


def test_a_page_that_unpacks_to_far_more_than_it_is_names_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("components.storage.tables.UNPACKED", 4 << 20)
    data = bomb(tmp_path / "t.parquet", 5 << 20, 1)
    with pytest.raises(PermanentError, match=r"^table t\.parquet: row group 0 of this file .* unpacks to 5,\d+,\d+"):
        rows_of(data, "t.parquet")
