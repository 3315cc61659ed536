"""Speed of one core writing one tar, beside webdataset's TarWriter on the same samples and a plain byte copy.

python -m tests.components.reshard.bench_reshard [samples] [bytes per image]
"""

from __future__ import annotations

import io
import json
import logging
import os
import resource
import shutil
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import webdataset

from components.reshard.layout import Segment
from components.reshard.write import Resharder, Work
from tests.components.reshard.conftest import all_raw, make_run, select, uid_of


def _pool(root: Path, samples: int, size: int) -> None:
    """One shard of random bytes that start like a JPEG: nobody decodes them here."""
    (root / "shards").mkdir(parents=True)
    with tarfile.open(root / "shards/00000000.tar", "w") as tar:
        for number in range(samples):
            meta = {"uid": uid_of(number), "url": f"http://example.org/{number}.jpg", "status": "success", "width": 512}
            for name, data in (
                ("jpg", b"\xff\xd8\xff\xe0" + os.urandom(size + number % 1000)),
                ("json", json.dumps(meta).encode()),
                ("txt", b"an alt text of some words"),
            ):
                info = tarfile.TarInfo(f"{number:09d}.{name}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))


def _best(work: Callable[[], object], repeats: int = 3) -> float:
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return min(times)


def main(samples: int = 10_000, size: int = 30_000) -> None:
    logging.disable()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        _pool(root, samples, size)
        run = make_run(root)
        selection = select(run, all_raw)
        shard = run.pool.shards[0]
        source, copy = root / "shards" / shard.tar, root / "copy.tar"
        resharder = Resharder(
            Work(run.storage.uri, run.pool.name, run.pool.source.uri, run.index, selection, "datasets/bench")
        )

        def ours() -> None:
            shutil.rmtree(root / "out/datasets/bench", ignore_errors=True)
            resharder.write(0, [Segment(shard, 0, samples)])

        def tar_writer() -> None:
            with webdataset.TarWriter(str(copy), encoder=False) as tar:
                for sample in webdataset.WebDataset(str(source)):
                    sample.pop("__url__")
                    tar.write(sample)

        floor = _best(lambda: shutil.copyfile(source, copy))
        rates = {"webdataset TarWriter": _best(tar_writer, 1), "reshard": _best(ours), "byte copy (floor)": floor}
        for name, seconds in rates.items():
            ratio = rates["webdataset TarWriter"] / seconds
            print(
                f"{name:24} {samples / seconds:9.0f} images/s  {ratio:5.2f} × TarWriter  {seconds / floor:5.1f} × floor"
            )
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(f"peak RSS {peak:.0f} MB, {samples} images of {size} bytes")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
