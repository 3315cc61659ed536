"""A published score, its best 30 %, their tars: `recaption run` end to end against DataComp's two scripts.

Floor: reading and writing the bytes of the chosen samples, and reading those of the scores.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from tests.bench.measure import seconds, show, tree
from tests.pools import jpeg, uid, write_tar

SHARDS, SAMPLES, SHARE = 4, 2_500, 0.3
SCORE = "clip_l14_similarity_score"


def write_pool(root: Path) -> None:
    """Write tars and metadata in DataComp's layout; scores lie on the grid of float16, as the published ones."""
    random = np.random.default_rng(0)
    images = [jpeg(number, (640, 480), quality=72) for number in range(40)]
    (root / "metadata").mkdir(parents=True)
    for shard in range(SHARDS):
        numbers = range(shard * SAMPLES, (shard + 1) * SAMPLES)
        uids = [
            uid(int(low) << 64 | number)
            for low, number in zip(random.integers(0, 2**63, SAMPLES), numbers, strict=True)
        ]
        texts = [f"an alt text of some words, number {number}" for number in numbers]
        samples = (
            (
                f"{number:09d}",
                {
                    "jpg": images[number % len(images)],
                    "json": json.dumps({"uid": name, "url": f"http://example.org/{number}.jpg", "width": 640}).encode(),
                    "txt": text.encode(),
                },
            )
            for number, name, text in zip(numbers, uids, texts, strict=True)
        )
        write_tar(root / f"shards/{shard:08d}.tar", samples)
        scores = random.normal(0.21, 0.06, SAMPLES).astype(np.float16).astype(np.float32)
        pq.write_table(pa.table({"uid": uids, "text": texts, SCORE: scores}), root / f"metadata/{shard}.parquet")


def recipe(root: Path) -> str:
    source = {"from": str(root / "metadata"), "field": SCORE, "as": "score"}
    rule = {"text": "raw", "where": [{"score": "l14", "top": SHARE}]}
    return yaml.safe_dump(
        {
            "apiVersion": "recaption.dev/v1alpha1",
            "kind": "Recaption",
            "metadata": {"name": "bench"},
            "spec": {
                "storage": str(root / "ours"),
                "pool": {"name": "bench", "shards": str(root / "shards")},
                "columns": [{"name": "l14", "import": source}],
                "mixtures": [{"name": "top30", "rules": [rule]}],
            },
        }
    )


def main() -> None:
    root = Path(tempfile.mkdtemp())
    write_pool(root)
    (root / "recipe.yaml").write_text(recipe(root))
    peaks = {"ours": 0.0, "theirs": 0.0}

    def run(name: str, *command: str) -> None:
        peaks[name] = max(peaks[name], tree([sys.executable, "-m", *command]))

    def ours() -> None:
        shutil.rmtree(root / "ours", ignore_errors=True)
        run("ours", "pipelines.cli", "run", str(root / "recipe.yaml"))

    def theirs() -> None:
        shutil.rmtree(root / "theirs", ignore_errors=True)
        run("theirs", "tests.bench.datacomp", "filter", str(root / "metadata"), str(SHARE), str(root / "uids.npy"))
        run(
            "theirs",
            "tests.bench.datacomp",
            "reshard",
            str(root / "shards"),
            str(root / "uids.npy"),
            str(root / "theirs"),
        )

    their_seconds, our_seconds = seconds(theirs, ours)
    [dataset] = (root / "ours/datasets").iterdir()
    found, expected = np.load(dataset / "sample_ids.npy"), np.load(root / "uids.npy")
    assert np.array_equal(found, expected), (len(found), len(expected))
    size = sum(tar.stat().st_size for tar in dataset.glob("*.tar"))
    scores = sum(file.stat().st_size for file in (root / "metadata").iterdir())
    part = root / "part"
    part.write_bytes(bytes(size))
    [floor] = seconds(lambda: shutil.copyfile(part, root / "copy"))
    theirs_said, ours_said = (f"{peaks[name]:,.0f} MB of all its processes" for name in ("theirs", "ours"))
    faster = their_seconds / our_seconds
    show(
        DataComps_scripts=f"{their_seconds:.2f} s, {theirs_said}; {len(expected):,} of {SHARDS * SAMPLES:,} images",
        recaption_run=f"{our_seconds:.2f} s, {ours_said}: {faster:.2f} × as fast, the same uids",
        floor=f"{floor:.2f} s: {size / 1e6:,.0f} MB read and written, {scores / 1e6:.1f} MB of scores and uids read",
    )
    shutil.rmtree(root)


if __name__ == "__main__":
    main()
