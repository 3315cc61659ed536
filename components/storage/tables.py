"""Parquet, CSV and TSV files that others wrote: read as batches in bounded memory, one clear line for a bad file."""

from __future__ import annotations

import csv
import gzip
from collections.abc import Iterator, Mapping, Sequence
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
UNPACKED = 128 << 20  # bytes that a column of a row group may unpack to, where it is that much smaller as stored:
RATIO = 1000  # text packs to a third or a tenth, one value over and over to a hundredth
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
        self._source = file
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
        for group in range(self._file.num_row_groups):
            yield from self._file.iter_batches(min(rows, self._fitting(group, types)), [group], columns=list(types))

    def _fitting(self, group: int, names: Mapping[str, object]) -> int:
        """Return how many rows of a row group take at most BATCH bytes, whatever the file says about itself.

        A value may stand once in the file, in a dictionary, and in every row of an array.

        Raises:
            ValueError: a column unpacks to far more than is stored.
        """
        about = self._file.metadata.row_group(group)
        a_row, coded = 0, []
        for column in map(about.column, range(about.num_columns)):
            name = column.path_in_schema.partition(".")[0]
            if name not in names or not about.num_rows:
                continue
            size, stored = column.total_uncompressed_size, column.total_compressed_size
            if size > UNPACKED and size > RATIO * stored:
                raise ValueError(
                    f"field {name} unpacks from {stored:,} bytes to {size:,}; is it made to fill a memory?"
                )
            a_row += max(size, 8 * column.num_values) // about.num_rows
            if column.has_dictionary_page and column.physical_type == "BYTE_ARRAY" and size * about.num_rows > BATCH:
                coded.append(name)
        if coded:
            a_row += self._longest_coded(group, coded)
        return max(1, BATCH // max(a_row, 1))

    def _longest_coded(self, group: int, names: Sequence[str]) -> int:
        """Return the bytes of the longest values in the dictionaries of these fields, in total."""
        file = self._open(self._file.metadata, 1 << 16, names)
        first = next(file.iter_batches(1, [group], columns=names), None)
        found = () if first is None else first.columns
        coded = [column.dictionary for column in found if pa.types.is_dictionary(column.type)]
        return sum(pc.max(pc.binary_length(values)).as_py() or 0 for values in coded)


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


def _require_one_of_each(names: Sequence[str], wanted: Mapping[str, object]) -> None:
    """Raise ValueError where a field that is wanted is there more than once."""
    for name in wanted:
        if (count := names.count(name)) > 1:
            raise ValueError(f"{count} fields are called {name}; rename all but one")
