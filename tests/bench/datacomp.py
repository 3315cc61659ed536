"""DataComp's two scripts for a score's best share, as they work: baselines.py, then resharder.py (commit 4a8df19).

    python -m tests.bench.datacomp filter METADATA SHARE UIDS.npy
    python -m tests.bench.datacomp reshard SHARDS UIDS.npy OUTPUT

What they do is kept: a pool of processes over the metadata's parquets, the whole score column sorted in memory, uids
read and turned into numbers one by one; then a process per core that reads every tar through webdataset, looks each
sample's uid up in the sorted list, and writes tars of 10,000. What is left out can only make them slower: blurring,
progress bars, a manager process, and the import of libraries for other filters.
"""

from __future__ import annotations

import json
import multiprocessing
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import torch  # noqa: F401  (baselines.py imports it for every filter)
import webdataset

from components.base.cores import cores

SCORE = "clip_l14_similarity_score"
UID = np.dtype("u8,u8")


def filter_uids(metadata: Path, share: float, target: Path) -> None:
    """Write the uids of the best share of the score, sorted."""
    files = sorted(metadata.glob("*.parquet"))
    with multiprocessing.Pool(cores()) as pool:
        scores = pandas.concat(pool.imap_unordered(partial(pandas.read_parquet, columns=[SCORE]), files))
    threshold = -np.sort(-scores[SCORE].values)[int(len(scores) * share)]
    with multiprocessing.Pool(cores()) as pool:
        uids = np.concatenate([*pool.imap_unordered(partial(_uids_above, threshold=threshold), files)])
    uids.sort()
    np.save(target, uids)


def _uids_above(file: Path, threshold: float) -> Any:
    table = pandas.read_parquet(file, columns=["uid", SCORE])
    chosen = table[table[SCORE] >= threshold]["uid"].values
    return np.array([(int(uid[:16], 16), int(uid[16:32], 16)) for uid in chosen], UID)


def reshard(shards: Path, uids: Path, output: Path) -> None:
    """Copy the samples with these uids into tars of 10,000."""
    tars = sorted(shards.glob("*.tar"))
    count = min(cores(), len(tars))
    output.mkdir(parents=True)
    workers = [
        multiprocessing.Process(
            target=_copy, args=(tars[i * len(tars) // count : (i + 1) * len(tars) // count], uids, output, i)
        )
        for i in range(count)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0


def _copy(tars: Sequence[Path], uids: Path, output: Path, number: int) -> None:
    subset = np.load(uids, mmap_mode="r")
    with webdataset.ShardWriter(
        str(output / f"{number}-%08d.tar"), maxcount=10_000, verbose=0, encoder=False
    ) as writer:
        for sample in _chosen(webdataset.WebDataset([str(tar) for tar in tars], shardshuffle=False), subset):
            writer.write(sample)


def _chosen(samples: Any, subset: Any) -> Iterator[dict[str, Any]]:
    for sample in samples:
        uid = json.loads(sample["json"])["uid"]
        key = np.array([divmod(int(uid, 16), 2**64)], UID)[0]
        first, last = np.searchsorted(subset, key, "left"), np.searchsorted(subset, key, "right")
        for copy in range(last - first):
            yield {**sample, "__key__": f"{uid}-{copy}"}


if __name__ == "__main__":
    if sys.argv[1] == "filter":
        filter_uids(Path(sys.argv[2]), float(sys.argv[3]), Path(sys.argv[4]))
    else:
        reshard(Path(sys.argv[2]), Path(sys.argv[3]), Path(sys.argv[4]))
