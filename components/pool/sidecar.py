"""The parquet that DataComp and img2dataset write beside a tar: it also lists the downloads that failed."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq


def read_beside(data: bytes) -> pa.Table | None:
    """Read keys and uids of a tar's parquet, as DataComp and img2dataset write it; None where it isn't one."""
    try:
        file = pq.ParquetFile(pa.BufferReader(data))
        wanted = [c for c in ("key", "uid", "status", "error_message") if c in file.schema_arrow.names]
        return file.read(columns=wanted) if "key" in wanted else None
    except (pa.ArrowException, OSError):
        return None
