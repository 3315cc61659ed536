"""The worker loop without a model (read, decode, resize to 224, batch, commit) against loops that do no more than
read, decode and resize in threads: with Pillow, and with torchvision's decoder and antialiased resizing of uint8.
"""

from __future__ import annotations

import io
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torchvision.io import ImageReadMode, decode_jpeg
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2.functional import resize

from components.engine.images import Geometry
from components.engine.stage import Batch
from components.engine.worker import run_task
from components.pool.specs import ColumnSpec
from tests.bench.measure import seconds, show
from tests.components.engine.stages import Brightness
from tests.pools import encode, indexed, sample, write_tar

SHARDS, SAMPLES = 1, 10_000  # a DataComp shard: starting the processes is a share of the time, as in a task
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


def with_pillow(data: bytes) -> Any:
    image = Image.open(io.BytesIO(data)).convert("RGB")
    return np.asarray(image.resize((298, 224), Image.Resampling.BICUBIC).crop((37, 0, 261, 224)))


def with_torchvision(data: bytes) -> Any:
    pixels = decode_jpeg(torch.frombuffer(bytearray(data), dtype=torch.uint8), ImageReadMode.RGB)
    small = resize(pixels, [224, 298], InterpolationMode.BICUBIC, antialias=True)
    return small[:, :, 37:261].permute(1, 2, 0).numpy()


def main() -> None:
    torch.set_num_threads(1)
    folder = Path(tempfile.mkdtemp())
    photos = [photo(i) for i in range(64)]
    for shard in range(SHARDS):
        write_tar(
            folder / "pool" / f"{shard:08d}.tar",
            {f"{i:06d}": sample(shard * SAMPLES + i, jpg=photos[i % 64]) for i in range(SAMPLES)},
        )
    pool, columns, index = indexed(folder / "pool", folder / "out")
    turn = iter(range(1000))
    places = [(shard, columns.read(index, shard)) for shard in pool.shards]

    def each(work: Callable[[bytes], Any]) -> None:
        """Do it to every image of the pool, in a thread per core."""
        with ThreadPoolExecutor(cores) as threads:
            for shard, table in places:
                with pool.source.open(shard.tar, shard.version) as tar:
                    images = []
                    for at, size in zip(
                        table.column("offset").to_pylist(), table.column("size").to_pylist(), strict=True
                    ):
                        tar.seek(at)
                        images.append(tar.read(size))
                for start in range(0, len(images), Decoded.batch_size):
                    np.stack(list(threads.map(work, images[start : start + Decoded.batch_size])))

    def loop(decoders: int) -> None:
        spec = ColumnSpec("brightness", "bench", 1, {"turn": next(turn)}, {"index": index})
        run_task(Decoded(spec), pool, pool.shards, columns, decoders=decoders)

    cores = os.cpu_count() or 1
    works = (lambda: each(with_pillow), lambda: each(with_torchvision), lambda: loop(0), lambda: loop(cores))
    pillow, torchvision, inline, ours = seconds(*works)
    count = SHARDS * SAMPLES / cores
    show(
        Pillow_in_a_thread_per_core=f"{count / pillow:,.0f} images/s per core ({len(photos[0]) / 1e3:.0f} kB JPEGs)",
        torchvision_in_a_thread_per_core=f"{count / torchvision:,.0f} images/s per core",
        worker_loop_decoding_inline=f"{cores * count / inline:,.0f} images/s",
        worker_loop_with_a_process_per_core=(
            f"{count / ours:,.0f} images/s per core, "
            f"{pillow / ours:.2f} × Pillow, {torchvision / ours:.2f} × torchvision"
        ),
    )
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
