"""Layout, tar headers and the subset file, against independent implementations."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from components.pool.shards import Shard
from components.pool.tar import TarWriter, header
from components.stages.reshard.ids import write_sample_ids
from components.stages.reshard.layout import ShardSelection, lay_out
from components.storage.local import LocalStorage


@given(st.lists(st.integers(0, 40), max_size=12), st.integers(1, 17))
def test_layout_covers_every_row_once_in_order(rows: list[int], most: int) -> None:
    selections = [ShardSelection(Shard(str(i), f"{i}.tar", 1, None, ""), n, "") for i, n in enumerate(rows)]
    tars = lay_out(selections, most)
    covered = [(s.selection.shard.name, row) for tar in tars for s in tar for row in range(s.start, s.stop)]
    assert covered == [(str(i), row) for i, n in enumerate(rows) for row in range(n)]
    sizes = [sum(s.stop - s.start for s in tar) for tar in tars]
    assert len(tars) == -(-sum(rows) // most)
    assert max(sizes, default=0) <= most
    assert max(sizes, default=0) - min(sizes, default=0) <= 1


@given(st.text("abcdefghij0123456789.", min_size=1, max_size=100), st.integers(0, 8**11 - 1))
def test_header_is_what_tarfile_writes(name: str, size: int) -> None:
    info = tarfile.TarInfo(name)
    info.size = size
    assert header(name.encode(), size) == info.tobuf(tarfile.USTAR_FORMAT)


@pytest.mark.parametrize(("name", "size"), [("n" * 101, 1), ("n", 8**11)])
def test_header_refuses_what_does_not_fit(name: str, size: int) -> None:
    with pytest.raises(ValueError, match="ustar"):
        header(name.encode(), size)


@pytest.mark.parametrize("sizes", [[], [0], [1, 511, 512, 513], [9000] * 3])
def test_archive_is_what_tarfile_writes_in_length(sizes: list[int]) -> None:
    ours, theirs = io.BytesIO(), io.BytesIO()
    writer = TarWriter(ours)
    with tarfile.open(fileobj=theirs, mode="w") as tar:
        for i, size in enumerate(sizes):
            writer.add(str(i), [("bin", bytes([i]) * size)])
            info = tarfile.TarInfo(f"{i}.bin")
            info.size = size
            tar.addfile(info, io.BytesIO(bytes([i]) * size))
    writer.finish()
    assert len(ours.getvalue()) == len(theirs.getvalue()) == writer.size
    ours.seek(0)
    with tarfile.open(fileobj=ours) as tar:
        assert [m.size for m in tar] == sizes


@settings(deadline=None)  # files
@given(st.lists(st.lists(st.integers(0, (1 << 128) - 1) | st.integers(0, 3), max_size=30), max_size=5))
def test_sample_ids_are_all_uids_sorted(tmp_path_factory: pytest.TempPathFactory, batches: list[list[int]]) -> None:
    folder: Path = tmp_path_factory.mktemp("ids")
    arrays = [pa.array([f"{i:032x}" for i in batch], pa.string()) for batch in batches]
    distinct = write_sample_ids(arrays, LocalStorage(folder), "x.npy")
    flat = [i for batch in batches for i in batch]
    assert distinct == len(set(flat))
    found = np.load(folder / "x.npy")
    assert found.dtype == np.dtype("u8,u8")
    assert [(int(a) << 64) + int(b) for a, b in found.tolist()] == sorted(flat)
