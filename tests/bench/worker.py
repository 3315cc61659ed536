"""The worker loop without a model (read, decode, resize to 224, batch, commit) against a plain PIL loop.

Floor: JPEG decoding and resizing themselves, which the plain loop does and nothing else.
"""

from __future__ import annotations

import io
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from components.engine.images import Geometry
from components.engine.stage import Batch
from components.engine.worker import run_task
from components.pool.specs import ColumnSpec
from tests.bench.measure import peak_mb, seconds, show
from tests.components.engine.stages import Brightness
from tests.pools import encode, indexed, sample, write_tar

SHARDS, SAMPLES = 4, 1000
SIZE = (512, 384)  # DataComp's longest side


class Decoded(Brightness):
    """Looks at one pixel, so that only the loop is measured."""

    geometry = Geometry((224, 224), "crop")
    batch_size = 256

    def process(self, batch: Batch) -> Mapping[str, Sequence[Any]]:
        assert batch.images is not None
        return {"brightness": batch.images[:, 0, 0, 0].astype(np.float32)}


def photo(seed: int) -> bytes:
    """A JPEG with the detail of a photo: smooth shapes and grain, about 50 kB."""
    noise = np.random.default_rng(seed)
    coarse = Image.fromarray(noise.integers(0, 255, (12, 16, 3), dtype=np.uint8)).resize(SIZE, Image.Resampling.BICUBIC)
    grain = noise.normal(0, 6, (SIZE[1], SIZE[0], 1))
    return encode(Image.fromarray((np.asarray(coarse) + grain).clip(0, 255).astype(np.uint8)), "JPEG", quality=85)


def main() -> None:
    folder = Path(tempfile.mkdtemp())
    photos = [photo(i) for i in range(64)]
    for shard in range(SHARDS):
        write_tar(
            folder / "pool" / f"{shard:08d}.tar",
            {f"{i:06d}": sample(shard * SAMPLES + i, jpg=photos[i % 64]) for i in range(SAMPLES)},
        )
    pool, columns, index = indexed(folder / "pool", folder / "out")
    turn = iter(range(1000))

    def plain() -> None:
        for data in photos * (SHARDS * SAMPLES // 64):
            image = Image.open(io.BytesIO(data)).convert("RGB")
            np.asarray(image.resize((299, 224), Image.Resampling.BICUBIC).crop((37, 0, 261, 224)))

    def loop(decoders: int) -> None:
        spec = ColumnSpec("brightness", "bench", 1, {"turn": next(turn)}, {"index": index})
        run_task(Decoded(spec), pool, pool.shards, columns, decoders=decoders)

    cores = os.cpu_count() or 1
    bare, inline, parallel = seconds(plain, lambda: loop(0), lambda: loop(cores))
    count = SHARDS * SAMPLES
    show(
        plain_PIL_loop=f"{count / bare:,.0f} images/s on one core ({len(photos[0]) / 1e3:.0f} kB JPEGs of 512 × 384)",
        worker_loop_decoding_inline=f"{count / inline:,.0f} images/s, {bare / inline:.2f} × the plain loop",
        worker_loop_with_a_process_per_core=(
            f"{count / parallel / cores:,.0f} images/s per core, {bare / parallel / cores:.2f} × the plain loop"
        ),
        peak_memory=f"{peak_mb():,.0f} MB with its largest decoder",
    )
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
