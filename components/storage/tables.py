"""Parquet, CSV and TSV files that others wrote: read as batches in bounded memory, one clear line for a bad file."""

from __future__ import annotations

import csv
import gzip
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import BinaryIO, Protocol, cast

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from components.base.errors import PermanentError, RecaptionError
from components.base.printable import printable
from components.storage.csv_quotes import CheckedQuotes

BLOCK = 1 << 21  # bytes of a CSV parsed together, of which Arrow reads 32 ahead; no row may be longer
HEADER = 1 << 20  # bytes in which a CSV's first line ends
BUFFER = 8 << 20  # bytes of a parquet's column fetched together: a row group may be larger than memory
BATCH = 64 << 20  # bytes of a parquet's values held together
UNPACKED = 128 << 20  # bytes that a row group may unpack to, however small its file is;
RATIO = 1000  # and how many times the file's size: text packs to a tenth, one value over and over to a hundredth
LONGEST = 300  # characters of a reader's own message that are repeated


class Table(Protocol):
    """One file of rows."""

    names: list[str]
    """The names of its fields."""

    def batches(self, types: Mapping[str, pa.DataType], rows: int) -> Iterator[pa.RecordBatch]:
        """Yield these fields, some rows at a time. A CSV's have the types given, a parquet's the types in the file."""


def open_table(file: BinaryIO, path: str) -> Table:
    """Open a file by the kind that its name says: .parquet, .parq, .csv or .tsv, the last two also with .gz.

    Call this, and read the batches, inside `explained`.
    """
    name = path.lower()
    if name.endswith((".parquet", ".parq")):
        return _Parquet(file)
    return _Csv(file, name.endswith(".gz"), "\t" if ".tsv" in name[-7:] else ",")


@contextmanager
def explained(what: str) -> Iterator[None]:
    """Turn what a reader of others' files raises into a PermanentError that names the file.

    Mutated files make Arrow and numpy raise errors of nearly every kind. Errors of a disk or network, and those that
    have a message for a person, stay as they are.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, RecaptionError | MemoryError) or (isinstance(error, OSError) and error.errno):
            raise
        message = printable(" ".join(str(error).split()), LONGEST) or type(error).__name__
        raise PermanentError(f"{what}: {message}") from error


class _Parquet:
    def __init__(self, file: BinaryIO) -> None:
        self._source, self._size = file, file.seek(0, io.SEEK_END)
        self._file = self._open(None, BUFFER, [])
        self.names: list[str] = self._file.schema_arrow.names

    def _open(self, metadata: pq.FileMetaData | None, buffer: int, dictionaries: Sequence[str]) -> pq.ParquetFile:
        # pre_buffer would fetch the columns of a whole row group at once, whatever `buffer_size`
        return pq.ParquetFile(
            self._source,
            metadata=metadata,
            buffer_size=buffer,
            pre_buffer=False,
            page_checksum_verification=True,
            read_dictionary=list(dictionaries),
        )

    def batches(self, types: Mapping[str, pa.DataType], rows: int) -> Iterator[pa.RecordBatch]:
        _require_one_of_each(self.names, types)
        schema = self._file.schema_arrow
        for name in types:
            _require_plain(name, schema.field(name).type)
        # else Arrow casts their indices, and checks on the way whether every text is UTF-8
        coded = [name for name in types if pa.types.is_dictionary(schema.field(name).type)]
        file = self._open(self._file.metadata, BUFFER, coded) if coded else self._file
        for group in range(file.num_row_groups):
            yield from file.iter_batches(min(rows, self._fitting(group, types)), [group], columns=list(types))

    def _fitting(self, group: int, names: Mapping[str, object]) -> int:
        """Return how many rows of a row group take at most BATCH bytes, whatever the file says about itself.

        A value may stand once in the file, in a dictionary, and in every row of an array.

        Raises:
            ValueError: the row group unpacks to far more than the file has.
        """
        about = self._file.metadata.row_group(group)  # never its `column(i)`: where that is damaged, Arrow aborts
        unpacked, rows = int(about.total_byte_size), max(int(about.num_rows), 1)
        if unpacked > max(UNPACKED, RATIO * self._size):
            size = f"of {self._size:,} bytes unpacks to {unpacked:,}"
            raise ValueError(f"row group {group} of this file {size}; is it made to fill memory?")
        a_row = unpacked // rows
        if unpacked * rows > BATCH:
            a_row += self._longest_coded(group, names)
        a_row += sum(_width(self._file.schema_arrow.field(name).type) for name in names)
        return max(1, int(BATCH // max(a_row, 1)))

    def _longest_coded(self, group: int, names: Iterable[str]) -> int:
        """Return the bytes of the longest texts in the dictionaries of these fields, in total."""
        schema = self._file.schema_arrow
        texts = [name for name in names if str(schema.field(name).type).startswith(("string", "large_", "binary"))]
        file = self._open(self._file.metadata, 1 << 16, texts)
        first = next(file.iter_batches(1, [group], columns=texts), None) if texts else None
        found = () if first is None else first.columns
        coded = [column.dictionary for column in found if pa.types.is_dictionary(column.type)]
        return sum(int(pc.max(pc.binary_length(values)).as_py() or 0) for values in coded)


class _Csv:
    """A CSV file with a header, or a TSV file. Only the fields that are asked for are parsed."""

    def __init__(self, file: BinaryIO, compressed: bool, delimiter: str) -> None:
        self._file = cast(BinaryIO, gzip.GzipFile(fileobj=file)) if compressed else file
        self._delimiter = delimiter
        header = self._file.read(HEADER).partition(b"\n")[0].decode("utf-8-sig", "replace")
        self.names: list[str] = next(csv.reader([header], delimiter=delimiter), [])

    def batches(self, types: Mapping[str, pa.DataType], rows: int) -> Iterator[pa.RecordBatch]:
        _require_one_of_each(self.names, types)
        self._file.seek(0)
        with pa_csv.open_csv(
            cast(BinaryIO, CheckedQuotes(self._file, self._delimiter.encode(), BLOCK)),
            read_options=pa_csv.ReadOptions(block_size=BLOCK),
            parse_options=pa_csv.ParseOptions(delimiter=self._delimiter, newlines_in_values=True),
            convert_options=pa_csv.ConvertOptions(include_columns=list(types), column_types=dict(types)),
        ) as reader:
            for block in reader:
                yield from (block.slice(start, rows) for start in range(0, block.num_rows, rows))


def _require_plain(name: str, kind: pa.DataType) -> None:
    """Raise ValueError where a field holds lists or the like: of those, one row of a few bytes may be a billion."""
    if pa.types.is_nested(_stored(kind)):
        raise ValueError(f"field {name} has dtype {str(kind)[:LONGEST]}, expected one value a row")


def _width(kind: pa.DataType) -> int:
    """Return the bytes of one value as its type says, which may stand once in the file; 0 where values differ."""
    stored = _stored(kind)
    return int(stored.byte_width) if pa.types.is_fixed_size_binary(stored) else 0


def _stored(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_dictionary(kind):
        return kind.value_type
    return kind.storage_type if isinstance(kind, pa.BaseExtensionType) else kind


def _require_one_of_each(names: Sequence[str], wanted: Mapping[str, object]) -> None:
    """Raise ValueError where a field that is wanted is there more than once."""
    for name in wanted:
        if (count := names.count(name)) > 1:
            raise ValueError(f"{count} fields are called {name}; rename all but one")
