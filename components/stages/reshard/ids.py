"""sample_ids.npy: the uids of the training set as DataComp's subset file, sorted on disk in constant memory."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from components.storage.interface import Storage

DTYPE = np.dtype("u8,u8")  # DataComp's: the uid's first and last 16 hexadecimal digits
_DIGIT = np.full(256, 255, np.uint8)
_DIGIT[np.frombuffer(b"0123456789abcdef", np.uint8)] = np.arange(16)
_CHUNK = 1 << 20  # uids sorted at once while they are dealt out: 16 MB


def parse(uids: pa.StringArray) -> NDArray[np.void]:
    """Parse uids of 32 lower-case hexadecimal digits to (N,) u8,u8."""
    digits = _DIGIT[np.frombuffer("".join(uids.to_pylist()).encode(), np.uint8).reshape(-1, 32)]
    if (digits == 255).any():
        raise ValueError("a uid is not 32 lower-case hexadecimal digits")
    return ((digits[:, ::2] << 4) | digits[:, 1::2]).view(">u8").astype("<u8").view(DTYPE).reshape(-1)


def write_sample_ids(selections: Iterable[pa.StringArray], storage: Storage, path: str) -> int:
    """Sort the uids into one .npy, a repeated uid as often as it occurs, and count the distinct ones.

    Deals the uids out by their first byte, then sorts one of the 256 heaps at a time: uids are hashes, so the heaps
    are about equal (80 MB at a billion).
    """
    with tempfile.TemporaryDirectory(prefix="sample-ids-") as folder:
        heaps = [Path(folder, f"{byte:02x}") for byte in range(256)]
        total = _deal(selections, heaps)
        distinct = 0
        target = Path(folder, "sample_ids.npy")
        with open(target, "wb") as file:
            header = {"descr": np.lib.format.dtype_to_descr(DTYPE), "fortran_order": False, "shape": (total,)}
            np.lib.format.write_array_header_1_0(file, header)
            for heap in filter(Path.exists, heaps):
                ids = _sorted(np.fromfile(heap, DTYPE))
                distinct += 1 + int((ids[1:] != ids[:-1]).sum())
                file.write(ids.tobytes())
                heap.unlink()
        storage.upload(target, path)
    return distinct


def _deal(selections: Iterable[pa.StringArray], heaps: list[Path]) -> int:
    waiting: list[NDArray[np.void]] = []
    total = 0
    for uids in selections:
        waiting.append(parse(uids))
        total += len(uids)
        if sum(map(len, waiting)) >= _CHUNK:
            _append(np.concatenate(waiting), heaps)
            waiting = []
    if waiting:
        _append(np.concatenate(waiting), heaps)
    return total


def _append(ids: NDArray[np.void], heaps: list[Path]) -> None:
    first = ids["f0"] >> np.uint64(56)
    order = np.argsort(first, kind="stable")
    cuts = np.searchsorted(first[order], np.arange(257))
    for heap, start, stop in zip(heaps, cuts[:-1], cuts[1:], strict=True):
        if stop > start:
            with open(heap, "ab") as file:
                file.write(ids[order[start:stop]].tobytes())


def _sorted(ids: NDArray[np.void]) -> NDArray[np.void]:
    return ids[np.lexsort((ids["f1"], ids["f0"]))]
