"""The training set of a mixture: its bytes, its readers, its resumption, and what must stop it."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import tarfile
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from components.base.errors import PermanentError, TemporaryError
from components.pool.run import Run
from components.stages.reshard import stage
from components.stages.reshard.layout import lay_out
from components.stages.reshard.stage import ReshardStep
from tests.components.stages.reshard.conftest import RECIPE, all_raw, image_bytes, make_run, select, uid_of, write_tar


def dataset(run: Run) -> Path:
    return Path(run.storage.uri, run.dataset_folder(run.spec.mixtures[0]))


def contents(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir())}


def samples(folder: Path) -> list[dict[str, Any]]:
    """Every sample of the tars, read by Python's own tarfile."""
    found: dict[str, dict[str, Any]] = {}
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                key, extension = member.name.split(".")
                data = tar.extractfile(member)
                assert data is not None
                found.setdefault(key, {"key": key})[extension] = data.read()
    return list(found.values())


@pytest.fixture
def small_tars(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tars of at most 16 samples, so that a small pool makes several."""
    monkeypatch.setattr(stage, "lay_out", lambda selections: lay_out(selections, 16))


def test_copies_images_and_writes_the_chosen_text(run: Run) -> None:
    select(run, all_raw)
    ReshardStep().run(run)
    found = samples(dataset(run))
    numbers = [*range(30), *range(100, 130)]
    assert [s["key"] for s in found] == [f"00000000{i:04d}" for i in range(60)]
    for number, sample in zip(numbers, found, strict=True):
        kind, extension = (("JPEG", "jpg"), ("PNG", "png"), ("WEBP", "webp"), ("GIF", "jpg"))[number % 4]
        assert sample[extension] == image_bytes(number, kind)
        assert sample["txt"].decode() == f"text of {uid_of(number)}"
        assert json.loads(sample["json"]) == {
            "uid": uid_of(number),
            "url": f"http://x/{number}",
            "width": 24 + number % 8,
            "height": 24,
            "caption": f"raw text {number}",
            "source": "raw",
            "rule": 0,
        }


@pytest.mark.filterwarnings(
    "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)  # webdataset never closes
def test_gnu_tar_and_webdataset_read_it(run: Run) -> None:
    import webdataset

    select(run, all_raw)
    ReshardStep().run(run)
    path = dataset(run) / "00000000.tar"
    listing = subprocess.run(["tar", "-tvf", path], capture_output=True, text=True, check=True)
    assert not listing.stderr
    assert len(listing.stdout.splitlines()) == 180
    read = list(webdataset.WebDataset(str(path)).decode("pilrgb"))
    assert len(read) == 60
    assert all({"txt", "json"} < s.keys() and {"jpg", "png", "webp"} & s.keys() for s in read)


@pytest.mark.usefixtures("small_tars")
def test_files_for_other_trainers(run: Run) -> None:
    select(run, all_raw)
    ReshardStep().run(run)
    folder = dataset(run)
    tars = [f"{i:08d}.tar" for i in range(4)]
    assert json.loads((folder / "meta.json").read_text()) == {
        "output_shard_count": 4,
        "output_shard_format": "{:08d}.tar",
    }
    assert json.loads((folder / "sizes.json").read_text()) == dict.fromkeys(tars, 15)
    ids = np.load(folder / "sample_ids.npy")
    assert ids.dtype == np.dtype("u8,u8")
    expected = sorted((int(u[:16], 16), int(u[16:], 16)) for u in map(uid_of, [*range(30), *range(100, 130)]))
    assert [tuple(i) for i in ids.tolist()] == expected
    record = json.loads((folder / "dataset.json").read_text())
    assert (record["samples"], record["uids"], record["repeated"]) == (60, 60, 0)
    assert record["sources"] == {"raw": 60}
    for tar in record["shards"]:
        data = (folder / tar["name"]).read_bytes()
        assert (tar["samples"], tar["bytes"], tar["sha256"]) == (15, len(data), sha256(data).hexdigest())
    card = (folder / "README.md").read_text()
    for part in ("60 image-text pairs", "everything", "0.25", "## Licence", "apiVersion"):
        assert part in card


def test_an_image_may_appear_twice(run: Run) -> None:
    """emit: all gives two pairs of one image; uids repeat in sample_ids.npy, DataComp's integer weights."""

    def twice(shard: str, uids: list[str]) -> list[tuple[str, str]]:
        return [(u, f"first {u}") for u in uids[:3]] + [(u, f"second {u}") for u in uids[:3]]

    select(run, twice)
    ReshardStep().run(run)
    found = samples(dataset(run))
    assert len(found) == 12
    assert sorted(s["txt"].decode() for s in found[:6]) == sorted(
        f"{which} {uid_of(i)}" for i in range(3) for which in ("first", "second")
    )
    record = json.loads((dataset(run) / "dataset.json").read_text())
    assert (record["samples"], record["uids"], record["repeated"]) == (12, 6, 6)
    assert len(np.load(dataset(run) / "sample_ids.npy")) == 12


def test_same_uid_in_two_shards_is_counted(tmp_path: Path) -> None:
    write_tar(tmp_path / "shards/a.tar", range(4))
    write_tar(tmp_path / "shards/b.tar", range(2, 6))
    run = make_run(tmp_path)
    select(run, all_raw)
    ReshardStep().run(run)
    record = json.loads((dataset(run) / "dataset.json").read_text())
    assert (record["samples"], record["uids"], record["repeated"]) == (8, 6, 2)


@pytest.mark.usefixtures("small_tars")
def test_a_second_run_writes_nothing(run: Run) -> None:
    select(run, all_raw)
    ReshardStep().run(run)
    before = {p: p.stat().st_mtime_ns for p in dataset(run).iterdir()}
    ReshardStep().run(run)
    assert {p: p.stat().st_mtime_ns for p in dataset(run).iterdir()} == before


@pytest.mark.usefixtures("small_tars")
def test_resumes_to_the_same_bytes(run: Run) -> None:
    """Whatever is missing is written again, whatever is there stays."""
    select(run, all_raw)
    ReshardStep().run(run)
    folder = dataset(run)
    whole = contents(folder)
    for gone in (
        ["dataset.json"],
        ["dataset.json", "00000001.done.json"],
        ["00000002.tar"],
        ["00000002.tar", "README.md"],
    ):
        for name in gone:
            (folder / name).unlink()
        kept = (folder / "00000000.tar").stat().st_mtime_ns
        ReshardStep().run(run)
        assert contents(folder) == whole
        assert (folder / "00000000.tar").stat().st_mtime_ns == kept


@pytest.mark.usefixtures("small_tars")
def test_processes_write_what_one_process_writes(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    select(run, all_raw)
    monkeypatch.setenv("RECAPTION_CORES", "1")
    ReshardStep().run(run)
    alone = contents(dataset(run))
    for path in dataset(run).iterdir():
        path.unlink()
    monkeypatch.setenv("RECAPTION_CORES", "2")
    ReshardStep().run(run)
    assert contents(dataset(run)) == alone


def test_samples_without_metadata(tmp_path: Path) -> None:
    """A missing or broken .json costs the sample nothing but its own fields."""
    (tmp_path / "shards").mkdir()
    with tarfile.open(tmp_path / "shards/a.tar", "w") as tar:
        for name, data in (
            ("0.jpg", image_bytes(0)), ("0.txt", b"a"), ("1.jpg", image_bytes(1)), ("1.json", b"[1"), ("1.txt", b"b"),
        ):  # fmt: skip
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    run = make_run(tmp_path)
    select(run, all_raw)
    ReshardStep().run(run)
    metas = [json.loads(s["json"]) for s in samples(dataset(run))]
    assert [m.pop("caption") for m in metas] == ["a", "b"]
    assert all(m.keys() == {"uid", "source", "rule"} for m in metas)


def test_an_empty_mixture_has_no_training_set(run: Run) -> None:
    select(run, lambda shard, uids: [])
    ReshardStep().run(run)
    assert not Path(run.storage.uri, "datasets").exists()


def test_a_mixture_of_another_index_is_refused(run: Run) -> None:
    select(run, lambda shard, uids: [("f" * 32, "text")])
    with pytest.raises(PermanentError, match=f"uid {'f' * 32} is no usable sample of shard 00000000"):
        ReshardStep().run(run)


def test_a_tar_of_another_size_is_noticed(run: Run, tmp_path: Path) -> None:
    select(run, all_raw)
    write_tar(tmp_path / "shards/00000001.tar", range(100, 120))
    with pytest.raises(PermanentError, match=r"shard 00000001.tar: has \d+ bytes, \d+ when it was indexed"):
        ReshardStep().run(run)


def test_a_tar_changed_in_place_is_noticed(run: Run, tmp_path: Path) -> None:
    select(run, all_raw)
    path = tmp_path / "shards/00000001.tar"
    before = path.stat()
    write_tar(path, range(129, 99, -1), ("JPEG", "PNG", "WEBP", "GIF"))
    assert path.stat().st_size == before.st_size
    with pytest.raises(
        PermanentError, match=r"00000001\.tar: it was replaced after this run was planned .* run the rec"
    ):
        ReshardStep().run(run)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(PermanentError, match=r"shard 00000001.tar: has no member of \d+ bytes at byte"):
        ReshardStep().run(run)


def test_a_missing_tar_is_noticed(run: Run, tmp_path: Path) -> None:
    select(run, all_raw)
    (tmp_path / "shards/00000000.tar").unlink()
    with pytest.raises(PermanentError, match=r"shard 00000000.tar: has 0 bytes"):
        ReshardStep().run(run)


@pytest.mark.usefixtures("small_tars")
def test_a_dead_process_is_bad_luck(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    select(run, all_raw)
    monkeypatch.setenv("RECAPTION_CORES", "2")
    monkeypatch.setattr(stage, "write_tar", _die)
    with pytest.raises(TemporaryError, match="a writing process died"):
        ReshardStep().run(run)


def _die(number: int, segments: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


CHILD = """
import sys
from pathlib import Path
from components.base.errors import leaving_on_sigterm
from components.stages.reshard import stage
from components.stages.reshard.layout import lay_out
from tests.components.stages.reshard.conftest import make_run
if __name__ == "__main__":
    stage.lay_out = lambda selections: lay_out(selections, 4)
    with leaving_on_sigterm("bye"):
        stage.ReshardStep().run(make_run(Path(sys.argv[1])))
"""


@pytest.mark.slow
def test_killed_at_random_points_gives_the_same_bytes(tmp_path: Path) -> None:
    """kill -9 and SIGTERM in turn: the finished set equals an undisturbed one."""
    script = tmp_path / "child.py"
    script.write_text(CHILD)
    environment = {**os.environ, "PYTHONPATH": os.getcwd(), "OMP_NUM_THREADS": "1"}
    roots = tmp_path / "calm", tmp_path / "killed"
    for root in roots:
        for i in range(4):
            write_tar(root / f"shards/{i}.tar", range(100 * i, 100 * i + 50))
        select(make_run(root), all_raw)
    calm, killed = roots
    subprocess.run([sys.executable, script, calm], env=environment, check=True)
    delay, kills = 0.6, 0
    while True:
        process = subprocess.Popen([sys.executable, script, killed], env=environment)
        try:
            assert process.wait(timeout=delay) == 0
            break
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGTERM if kills % 2 else signal.SIGKILL)
            assert process.wait() in (-signal.SIGKILL, -signal.SIGTERM, 143)
            kills += 1
            delay *= 1.3
    assert kills
    expected, got = (contents(next((root / "out/datasets").iterdir())) for root in roots)
    assert {k: v for k, v in got.items() if k.endswith((".tar", ".npy", ".done.json"))} == {
        k: v for k, v in expected.items() if k.endswith((".tar", ".npy", ".done.json"))
    }


def test_an_altered_selection_is_noticed(run: Run) -> None:
    folder = select(run, all_raw)
    path = Path(run.storage.uri, folder, "00000001.parquet")
    path.write_bytes(path.read_bytes() + b"!")
    with pytest.raises(PermanentError, match=r"00000001\.parquet: has another checksum than mixture"):
        ReshardStep().run(run)


def test_a_mixture_of_other_shards_is_refused(run: Run) -> None:
    folder = select(run, all_raw)
    path = Path(run.storage.uri, folder, "mixture.json")
    path.write_text(json.dumps({"shards": json.loads(path.read_text())["shards"][:1]}))
    with pytest.raises(PermanentError, match="names other shards than the pool has"):
        ReshardStep().run(run)


def test_recipe_without_train_reshards_every_mixture(tmp_path: Path) -> None:
    recipe = RECIPE + "  - {{name: again, rules: [{{text: raw}}, {{text: raw}}]}}\n"
    write_tar(tmp_path / "shards/a.tar", range(3))
    run = make_run(tmp_path, recipe)
    select(run, all_raw)
    with pytest.raises(PermanentError, match=r"again-.*mixture\.json is missing; run mix first"):
        ReshardStep().run(run)
    assert (dataset(run) / "dataset.json").exists()
