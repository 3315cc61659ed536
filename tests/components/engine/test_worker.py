"""The worker loop: nothing lost, nothing twice, whatever is bad, partial, racing or killed."""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from components.base.errors import TemporaryError
from components.engine.worker import run_task
from components.pool.columns import Columns
from components.pool.shards import Shard
from components.storage.local import LocalStorage
from tests.components.engine.stages import Brightness, Twice
from tests.pools import indexed, sample, uid, write_shard, write_tar


def data_files(storage: Path) -> dict[str, str]:
    """Path → digest of every data file; records hold seconds, so they differ from run to run."""
    return {
        str(p.relative_to(storage)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(storage.rglob("*"))
        if p.is_file() and not p.name.endswith(".done.json") and not p.name.startswith(".tmp-")
    }


@pytest.fixture
def pool_folder(tmp_path: Path) -> Path:
    for shard in range(3):
        write_shard(tmp_path / "pool", shard, 10)
    return tmp_path / "pool"


@pytest.mark.parametrize("decoders", [0, 2])
def test_values_and_failures(tmp_path: Path, decoders: int) -> None:
    good = {f"k{i}": sample(i) for i in range(7)}
    bad = {"x0": sample(100, jpg=b""), "x1": sample(101, jpg=b"<html>"), "x2": sample(102, jpg=None)}
    write_tar(tmp_path / "pool" / "00000000.tar", good | bad)
    pool, columns, index = indexed(tmp_path / "pool", tmp_path / "out")
    spec = Brightness.make_spec(index)
    summary = run_task(Brightness(spec), pool, pool.shards, columns, decoders=decoders)
    table = columns.read(spec, pool.shards[0])
    assert summary.samples == 9
    assert summary.failures == {"sample: empty image": 1, "sample: not an image": 1}
    assert table.column("uid").to_pylist() == [*(uid(i) for i in range(7)), uid(100), uid(101)]
    assert table.column("error").to_pylist() == [None] * 7 + ["empty image", "not an image"]
    assert [v is None for v in table.column("brightness").to_pylist()] == [False] * 7 + [True] * 2


def test_an_empty_shard_is_done(tmp_path: Path) -> None:
    write_tar(tmp_path / "pool" / "00000000.tar", {})
    pool, columns, index = indexed(tmp_path / "pool", tmp_path / "out")
    spec = Brightness.make_spec(index)
    assert run_task(Brightness(spec), pool, pool.shards, columns, decoders=0).shards == 1
    assert columns.read(spec, pool.shards[0]).num_rows == 0
    assert columns.read(spec, pool.shards[0]).schema.field("brightness").type == pa.float32()


def test_what_is_done_is_skipped(tmp_path: Path, pool_folder: Path) -> None:
    pool, columns, index = indexed(pool_folder, tmp_path / "out")
    spec = Brightness.make_spec(index)
    run_task(Brightness(spec), pool, pool.shards[:2], columns, decoders=0)
    before = data_files(tmp_path / "out")
    stage = Brightness(spec)
    assert run_task(stage, pool, pool.shards, Columns(columns.storage, "test"), decoders=0).shards == 1
    assert stage.seen == [uid(i) for i in range(20, 30)]
    assert before.items() <= data_files(tmp_path / "out").items()


def test_a_second_part_adds_only_what_is_missing(tmp_path: Path, pool_folder: Path) -> None:
    pool, columns, index = indexed(pool_folder, tmp_path / "out")
    spec = Brightness.make_spec(index)

    def first_four(_: Shard, rows: pa.Table) -> np.ndarray:
        return np.arange(rows.num_rows) < 4

    run_task(Brightness(spec), pool, pool.shards, columns, "some", first_four, decoders=0)
    twice = Twice.make_spec(index, spec)
    run_task(Twice(twice), pool, pool.shards, columns, "some")
    assert [columns.rows(spec, s) for s in pool.shards] == [4, 4, 4]
    assert columns.rows(twice, pool.shards[0]) == 4
    run_task(Brightness(spec), pool, pool.shards, columns, decoders=0)
    run_task(Twice(twice), pool, pool.shards, columns)
    assert columns.record(spec, pool.shards[0], "all").rows == 6
    assert sorted(columns.read(twice, pool.shards[1]).column("uid").to_pylist()) == [uid(i) for i in range(10, 20)]
    assert columns.rows(twice, pool.shards[2]) == 10


class Unloadable(Brightness):
    """A stage whose model can't be loaded."""

    def setup(self, uids: Callable[[], Iterable[str]]) -> None:
        raise AssertionError("a model is loaded")


def test_no_model_is_loaded_where_nothing_is_to_be_computed(tmp_path: Path, pool_folder: Path) -> None:
    """Such as for a further mixture that needs no new caption: its part is there, and empty."""
    pool, columns, index = indexed(pool_folder, tmp_path / "out")
    spec = Brightness.make_spec(index)
    run_task(Brightness(spec), pool, pool.shards[:2], columns, decoders=0)
    seen = []
    summary = run_task(
        Unloadable(spec), pool, pool.shards[:2], columns, "more", progress=lambda *done: seen.append(done)
    )
    assert (summary.shards, summary.samples, seen) == (2, 0, [(0, 0), (0, 2)])
    assert [columns.record(spec, shard, "more").rows for shard in pool.shards[:2]] == [0, 0]
    nothing = run_task(
        Unloadable(spec), pool, pool.shards, columns, "none", lambda _, rows: np.zeros(rows.num_rows, bool)
    )
    assert nothing.shards == 3
    with pytest.raises(AssertionError, match="a model is loaded"):
        run_task(Unloadable(spec), pool, pool.shards, columns, "rest", decoders=0)
    stage = Brightness(spec)
    assert run_task(stage, pool, pool.shards, columns, "last", decoders=0).samples == 10
    assert stage.seen == [uid(i) for i in range(20, 30)]
    assert columns.read(spec, pool.shards[2]).num_rows == 10


def test_overlapping_parts_give_no_row_twice(tmp_path: Path, pool_folder: Path) -> None:
    pool, columns, index = indexed(pool_folder, tmp_path / "out")
    spec, blind = Brightness.make_spec(index), Columns(columns.storage, "test")
    blind.parts(spec, pool.shards[0])  # lists the column while it is empty, as a racing run would
    run_task(Brightness(spec), pool, pool.shards, columns, "a", decoders=0)
    run_task(Brightness(spec), pool, pool.shards, blind, "b", decoders=0)
    assert Columns(columns.storage, "test").rows(spec, pool.shards[0]) == 10


def test_two_workers_racing_on_one_shard(tmp_path: Path, pool_folder: Path) -> None:
    pool, columns, index = indexed(pool_folder, tmp_path / "out")

    class Noisy(Brightness):
        """As a GPU's bytes may differ between two workers."""

        def __init__(self, shift: float) -> None:
            super().__init__(Brightness.make_spec(index))
            self.shift, self.arrived = shift, barrier

        def process(self, batch):  # type: ignore[no-untyped-def]
            if batch.uids[0] == uid(0):
                self.arrived.wait()
            return {"brightness": super().process(batch)["brightness"] + np.float32(self.shift)}

    barrier = threading.Barrier(2, timeout=30)
    rivals = [
        threading.Thread(target=run_task, args=(Noisy(i), pool, pool.shards, Columns(columns.storage, "test")),
                         kwargs={"decoders": 0})
        for i in range(2)
    ]  # fmt: skip
    for rival in rivals:
        rival.start()
    for rival in rivals:
        rival.join()
    folder = tmp_path / "out" / "pools/test/columns" / Brightness.make_spec(index).folder
    records = [json.loads(p.read_text()) for p in sorted(folder.glob("*.done.json"))]
    assert len(records) == 3
    assert {r["file"].rpartition("/")[2] for r in records} == {p.name for p in folder.glob("*.parquet")}
    fresh = Columns(LocalStorage(tmp_path / "out"), "test")
    assert all(fresh.read(Brightness.make_spec(index), s).num_rows == 10 for s in pool.shards)


@pytest.mark.parametrize("damage", ["gone", "shorter", "altered"])
def test_a_record_whose_file_is_not_what_it_says(
    tmp_path: Path, pool_folder: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    pool, columns, index = indexed(pool_folder, tmp_path / "out")
    spec = Brightness.make_spec(index)
    run_task(Brightness(spec), pool, pool.shards, columns, decoders=0)
    good = data_files(tmp_path / "out")
    victim = tmp_path / "out" / columns.record(spec, pool.shards[1], "all").file
    data = victim.read_bytes()
    if damage == "gone":
        victim.unlink()
    else:
        victim.write_bytes(data[:-1] if damage == "shorter" else data[:-1] + b"!")
    fresh = Columns(columns.storage, "test")
    if damage == "altered":  # only a reader sees it: the size is right
        with pytest.raises(TemporaryError, match="was altered; run again"):
            fresh.read(spec, pool.shards[1])
        fresh = Columns(columns.storage, "test")
    assert run_task(Brightness(spec), pool, pool.shards, fresh, decoders=0).shards == 1
    assert data_files(tmp_path / "out") == good
    assert "withdrawn, it will be made anew" in caplog.text


def test_a_changed_shard_is_indexed_anew(tmp_path: Path, pool_folder: Path) -> None:
    old, columns, index = indexed(pool_folder, tmp_path / "out")
    before = columns.read(index, old.shards[0])
    write_shard(pool_folder, 0, 40)
    new, columns, _ = indexed(pool_folder, tmp_path / "out")
    assert columns.read(index, new.shards[0]).num_rows == 40
    assert columns.read(index, old.shards[0]) == before


SCRIPT = """
import sys
from pathlib import Path
from components.base.errors import leaving_on_sigterm
from components.engine.worker import run_task
from tests.components.engine.stages import Brightness
from tests.pools import indexed

def main():
    pool, columns, index = indexed(Path(sys.argv[1]), Path(sys.argv[2]))
    print("ready", flush=True)
    run_task(Brightness(Brightness.make_spec(index)), pool, pool.shards, columns, decoders=0)

if __name__ == "__main__":
    with leaving_on_sigterm("bye"):
        main()
"""


@pytest.mark.slow
def test_killed_at_random_and_resumed_gives_the_same_bytes(tmp_path: Path) -> None:
    for shard in range(12):
        write_shard(tmp_path / "pool", shard, 60)
    pool, columns, index = indexed(tmp_path / "pool", tmp_path / "calm")
    run_task(Brightness(Brightness.make_spec(index)), pool, pool.shards, columns, decoders=0)
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    command = [sys.executable, str(script), str(tmp_path / "pool"), str(tmp_path / "stormy")]
    environment = {**os.environ, "PYTHONPATH": os.getcwd()}
    chance = random.Random(0)
    killed = 0
    for _ in range(12):
        child = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
        assert child.stdout is not None
        if chance.random() < 0.7:
            child.stdout.readline()
        time.sleep(chance.random() * 0.3)
        child.send_signal(signal.SIGKILL)
        killed += child.wait() == -signal.SIGKILL
        child.stdout.close()
    assert killed >= 3
    subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)
    assert data_files(tmp_path / "stormy").items() >= data_files(tmp_path / "calm").items()
    extra = data_files(tmp_path / "stormy").keys() - data_files(tmp_path / "calm").keys()
    assert extra == set()


def test_sigterm_stops_with_143_and_leaves_nothing_half_written(tmp_path: Path) -> None:
    for shard in range(12):
        write_shard(tmp_path / "pool", shard, 60)
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    command = [sys.executable, str(script), str(tmp_path / "pool"), str(tmp_path / "out")]
    child = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": os.getcwd()}, stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    child.stdout.readline()
    time.sleep(0.05)
    child.terminate()
    assert child.wait(timeout=20) == 143
    child.stdout.close()
    pool, columns, index = indexed(tmp_path / "pool", tmp_path / "out")
    spec = Brightness.make_spec(index)
    done = [s for s in pool.shards if columns.parts(spec, s)]
    assert len(done) < 12
    assert all(columns.read(spec, s).num_rows == 60 for s in done)
    assert not list((tmp_path / "out").rglob(".tmp-*"))
