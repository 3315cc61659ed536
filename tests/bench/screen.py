"""Screens and blurring on one core: nearest cosines, a head, faces, and a training set's faces blurred.

Floors: the matrix product alone, by the same library; decoding alone; decoding and writing a JPEG again.
"""

from __future__ import annotations

import tempfile
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image

from components.engine.images import open_rgb
from components.stages.faces.detectors import cascade
from components.stages.reshard.blur import blurred
from components.stages.screen.head import load_head
from components.stages.screen.nearest import Nearest
from tests.bench.measure import peak_mb, seconds, show
from tests.components.stages.faces.pictures import FACE, hopper
from tests.pools import encode

WIDTH, INDEX, IMAGES = 768, 100_000, 1024  # ViT-L-14, an evaluation suite's images, a batch of the stage
PICTURES = 20
LAION_L14 = (WIDTH, 64, 512, 256, 1)  # LAION's head for ViT-L-14


def embeddings(count: int) -> np.ndarray:
    found, random = np.empty((count, WIDTH), np.float16), np.random.default_rng(0)
    for start in range(0, count, IMAGES):
        vectors = random.standard_normal((len(found[start : start + IMAGES]), WIDTH), np.float32)
        found[start : start + IMAGES] = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return found


def main() -> None:
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    index, images = embeddings(INDEX), embeddings(IMAGES)
    nearest = Nearest(index, "bench")
    a, b = torch.from_numpy(images).float(), torch.from_numpy(index[:4096]).float()
    ours, block = seconds(lambda: nearest.cosines(images), lambda: a @ b.T)
    product, peak = block * INDEX / len(b), peak_mb()

    layers = {
        f"linear_{i}.{kind}": torch.randn(*shape)
        for i, (inputs, outputs) in enumerate(pairwise(LAION_L14), 1)
        for kind, shape in (("weight", (outputs, inputs)), ("bias", (outputs,)))
    }
    path = Path(tempfile.mkdtemp()) / "head.pth"
    torch.save(layers, path)
    head = load_head(str(path))
    [scored] = seconds(lambda: head.score(images))

    picture = encode(hopper((437, 512)), "JPEG", quality=95)  # DataComp's images have a longest side of 512
    pixels, detect = np.asarray(open_rgb(picture)), cascade()
    faces, decoding, blurring, again = seconds(
        lambda: [detect(pixels) for _ in range(PICTURES)],
        lambda: [open_rgb(picture) for _ in range(PICTURES)],
        lambda: [blurred(picture, [FACE]) for _ in range(PICTURES)],
        lambda: [encode(Image.fromarray(np.asarray(open_rgb(picture))), "JPEG", quality=95) for _ in range(PICTURES)],
    )
    show(
        nearest_cosine=f"{IMAGES / ours:,.0f} images/s against {INDEX:,} × {WIDTH}, {ours / product:.2f} × the product",
        head=f"{IMAGES / scored:,.0f} embeddings/s (LAION's for ViT-L-14)",
        faces_by_cascade=f"{PICTURES / faces:,.1f} images/s of 437 × 512; decoding {PICTURES / decoding:,.0f} images/s",
        blurring=f"{PICTURES / blurring:,.1f} images/s of a large face, {blurring / again:.1f} × decoding and writing",
        peak_memory=f"{peak:,.0f} MB of the cosines, {index.nbytes / 1e6:,.0f} MB of it the index",
    )


if __name__ == "__main__":
    main()
