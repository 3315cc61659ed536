"""One core writing one tar of 10,000 samples, against webdataset's TarWriter copying the same samples.

Floor: a plain byte copy of the tar.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from components.stages.reshard.layout import Segment, read_mixture
from components.stages.reshard.write import DatasetJob, Resharder
from tests.bench.measure import peak_mb, seconds, show
from tests.components.stages.reshard.conftest import all_raw, make_run, select, uid_of
from tests.pools import write_tar

SAMPLES, SIZE = 10_000, 35_000  # DataComp: 450 GB of tars for 12.8 million samples


def samples() -> Iterator[tuple[str, dict[str, bytes]]]:
    """Random bytes that start like a JPEG: nobody decodes them here."""
    for number in range(SAMPLES):
        meta = {"uid": uid_of(number), "url": f"http://example.org/{number}.jpg", "status": "success", "width": 512}
        image = b"\xff\xd8\xff\xe0" + os.urandom(SIZE + number % 1000)
        yield f"{number:09d}", {"jpg": image, "json": json.dumps(meta).encode(), "txt": b"an alt text of some words"}


def main() -> None:
    root = Path(tempfile.mkdtemp())
    source = write_tar(root / "shards/00000000.tar", samples())
    run = make_run(root)
    selection = select(run, all_raw)
    selections = read_mixture(run.storage, selection, run.pool.shards)
    work = DatasetJob(run.storage.uri, run.pool.name, run.pool.source.uri, run.index, selection, "datasets/bench")
    resharder = Resharder(work)

    def ours() -> None:
        shutil.rmtree(root / "out/datasets/bench", ignore_errors=True)
        resharder.write(0, [Segment(selections[0], 0, SAMPLES)])

    ours()
    peak = peak_mb()
    import webdataset  # here, because it brings torch and its memory with it

    def tar_writer() -> None:
        with webdataset.TarWriter(str(root / "copy.tar"), encoder=False) as tar:
            for sample in webdataset.WebDataset(str(source)):
                tar.write({key: value for key, value in sample.items() if key != "__url__"})

    theirs, mine, floor = seconds(tar_writer, ours, lambda: shutil.copyfile(source, root / "copy.tar"))
    show(
        webdataset_TarWriter=f"{SAMPLES / theirs:,.0f} images/s on one core ({SIZE / 1e3:.0f} kB images)",
        reshard=f"{SAMPLES / mine:,.0f} images/s, {theirs / mine:.2f} × TarWriter (with SHA-256, fsync and rename)",
        byte_copy=f"{SAMPLES / floor:,.0f} images/s: reshard takes {mine / floor:.1f} × this floor",
        peak_memory=f"{peak:,.0f} MB",
    )
    shutil.rmtree(root)


if __name__ == "__main__":
    main()
