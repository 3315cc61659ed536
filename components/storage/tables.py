"""Parquet and CSV files that others wrote: read as batches in bounded memory, with one clear line for a bad file."""

from __future__ import annotations

import csv
import gzip
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import BinaryIO, Protocol, cast

import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from components.base.errors import PermanentError

BLOCK = 1 << 21  # bytes of a CSV parsed together, of which Arrow reads 32 ahead; no row may be longer
HEADER = 1 << 20  # bytes in which a CSV's first line ends
BUFFER = 8 << 20  # bytes of a parquet's column fetched together: a row group may be larger than memory


class Table(Protocol):
    """One file of rows."""

    names: list[str]
    """The names of its fields."""

    def batches(self, types: Mapping[str, pa.DataType], rows: int) -> Iterator[pa.RecordBatch]:
        """Yield these fields, some rows at a time. A CSV's have the types given, a parquet's the types in the file."""


def open_table(file: BinaryIO, path: str) -> Table:
    """Open a file by the kind that its name says: .parquet, .csv or .csv.gz.

    Call this, and read the batches, inside `explained`.
    """
    return _Parquet(file) if path.endswith(".parquet") else _Csv(file, path.endswith(".gz"))


@contextmanager
def explained(what: str) -> Iterator[None]:
    """Turn Arrow's errors into a PermanentError that names the file; errors of a disk or network stay as they are."""
    try:
        yield
    except (pa.ArrowException, OSError, EOFError, zlib.error, csv.Error, UnicodeDecodeError) as error:
        if isinstance(error, OSError) and error.errno:  # the disk's, not the file's
            raise
        raise PermanentError(f"{what}: {' '.join(str(error).split())}") from error


class _Parquet:
    def __init__(self, file: BinaryIO) -> None:
        # pre_buffer would fetch the columns of a whole row group at once, whatever `buffer_size`
        self._file = pq.ParquetFile(file, buffer_size=BUFFER, pre_buffer=False, page_checksum_verification=True)
        self.names: list[str] = self._file.schema_arrow.names

    def batches(self, types: Mapping[str, pa.DataType], rows: int) -> Iterator[pa.RecordBatch]:
        yield from self._file.iter_batches(rows, columns=list(types))


class _Csv:
    """A CSV file with a header. Only the fields that are asked for are parsed."""

    def __init__(self, file: BinaryIO, compressed: bool) -> None:
        self._file = cast(BinaryIO, gzip.GzipFile(fileobj=file)) if compressed else file
        header = self._file.read(HEADER).partition(b"\n")[0].decode("utf-8-sig", "replace")
        self.names: list[str] = next(csv.reader([header]), [])

    def batches(self, types: Mapping[str, pa.DataType], rows: int) -> Iterator[pa.RecordBatch]:
        self._file.seek(0)
        with pa_csv.open_csv(
            self._file,
            read_options=pa_csv.ReadOptions(block_size=BLOCK),
            parse_options=pa_csv.ParseOptions(newlines_in_values=True),
            convert_options=pa_csv.ConvertOptions(include_columns=list(types), column_types=dict(types)),
        ) as reader:
            for block in reader:
                yield from (block.slice(start, rows) for start in range(0, block.num_rows, rows))
