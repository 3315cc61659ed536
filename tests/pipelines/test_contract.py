"""What every column keeps to, whichever stage makes it: one test for all that discovery finds."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import save_file

from components.base.errors import TemporaryError
from components.engine.registry import column_stage, stages
from components.engine.stage import ColumnStage
from components.engine.worker import Summary, run_task
from components.miniature.demo import WEIGHTS
from components.pool.columns import ALL, Columns
from components.pool.shards import Pool, Shard
from components.pool.specs import ColumnSpec
from components.recipe.columns import Options, kinds
from components.recipe.scorer import Scorer
from components.storage.local import LocalStorage
from tests.pools import jpeg, open_pool, sample, uid, write_shard, write_tar

COLUMNS = sorted(name for name, stage in stages().items() if issubclass(stage, ColumnStage))
SHARDS, SAMPLES = 4, 5  # of the plain shards; an empty one and one with bad samples come after them
EMPTY, BAD = "00000004", "00000005"
UNREADABLE = {uid(101): jpeg(1)[:300], uid(102): b"<html>not found</html>"}

WIDTH = json.loads((WEIGHTS / "scorer" / "open_clip_config.json").read_text())["model_cfg"]["embed_dim"]
SCORER = Scorer(model=f"local-dir:{WEIGHTS / 'scorer'}")
LOADING = threading.Lock()  # workers are processes; in threads of one, transformers can't load two models at once

Upstream = Callable[[str], ColumnSpec]
"""The specification of another stage's column, which is then computed first."""


# The options of a kind of each stage, given the pool's folder. A stage with other kinds needs a line here.
OPTIONS: Mapping[str, Callable[[Path], Options]] = {
    "caption": lambda _: kinds()["caption"](model=str(WEIGHTS / "captioner"), min_length=1, max_length=8),
    "screen": lambda folder: kinds()["duplicates"](index=str(folder / "made" / "index.npy")),
    "faces": lambda _: kinds()["faces"](),
    "import": lambda folder: kinds()["import"].model_validate(
        {"from": f"{folder}/made/scores.csv", "field": "value", "as": "score"}
    ),
    "filter": lambda _: kinds()["basic"](),
    "aesthetic": lambda folder: kinds()["aesthetic"](weights=str(folder / "made" / "aesthetic.safetensors")),
}


def _make(name: str, of: Upstream, folder: Path) -> ColumnSpec:
    stage = cast(Any, column_stage(name))
    if name == "index":
        return cast(ColumnSpec, stage.make_index())
    if name == "embed":
        return cast(ColumnSpec, stage.of_scorer(SCORER, "spec.scorer", of("index")))
    if name == "score":
        return cast(ColumnSpec, stage.of_text(of("index"), of("embed"), of("index")))
    if name not in OPTIONS:
        pytest.fail(f"column {name}: tell the contract test how to make one, with a line in OPTIONS of {__file__}")
    options = OPTIONS[name](folder)
    needs = {"embedding": "embed", "text": "index"}
    inputs = {role: of(needs[role]) for role in options.reads or stage.reads if role in needs}
    return cast(
        ColumnSpec, stage.make_spec(options, f"spec.columns[0].{options.kind}", {"index": of("index"), **inputs})
    )


def specs_of(name: str, folder: Path) -> dict[str, ColumnSpec]:
    """Of a stage's column and of all that it is computed from, in the order of computing."""
    found: dict[str, ColumnSpec] = {}

    def of(name: str) -> ColumnSpec:
        if name not in found:
            found[name] = _make(name, of, folder)
        return found[name]

    of(name)
    return found


def write_world(folder: Path) -> Path:
    """Plain shards, then an empty one, then one whose images can't all be read; scores made elsewhere beside them."""
    for shard in range(SHARDS):
        write_shard(folder / "shards", shard, SAMPLES)
    write_tar(folder / "shards" / f"{EMPTY}.tar", {})
    bad = {f"x{i}": sample(101 + i, jpg=data) for i, data in enumerate(UNREADABLE.values())}
    write_tar(folder / "shards" / f"{BAD}.tar", {"a": sample(100), **bad, "b": sample(103)})
    (folder / "made").mkdir()
    index = np.random.default_rng(0).normal(size=(30, WIDTH)).astype(np.float16)
    np.save(folder / "made" / "index.npy", index)
    head = {"weight": np.ones((1, WIDTH), np.float32), "bias": np.zeros(1, np.float32)}
    save_file(head, folder / "made" / "aesthetic.safetensors")
    scores = [f"{uid(i)},{i / 1000}" for i in (*range(SHARDS * SAMPLES), 100, *(101, 102), 103)]
    (folder / "made" / "scores.csv").write_text("uid,value\n" + "\n".join(scores))
    return folder


def compute(name: str, folder: Path, storage: Path, columns: type[Columns] = Columns) -> Summary:
    """A stage's column and what it needs; `columns` commits the column itself."""
    spec = compute_inputs(name, folder, storage)
    stage, pool = column_stage(name)(spec), open_pool(folder / "shards")
    setup = stage.setup

    def alone(uids: Callable[[], Iterable[str]]) -> None:
        with LOADING:
            setup(uids)

    stage.setup = alone  # type: ignore[method-assign]
    return run_task(stage, pool, pool.shards, columns(LocalStorage(storage), "test"), batch_size=2, decoders=0)


def compute_inputs(name: str, folder: Path, storage: Path) -> ColumnSpec:
    pool = open_pool(folder / "shards")
    *upstream, (_, spec) = specs_of(name, folder).items()
    for stage, needed in upstream:
        run_task(column_stage(stage)(needed), pool, pool.shards, Columns(LocalStorage(storage), "test"), decoders=0)
    return spec


@dataclass(frozen=True)
class Made:
    """One column, computed undisturbed."""

    name: str
    world: Path
    storage: Path
    pool: Pool
    spec: ColumnSpec

    @property
    def stage(self) -> type[ColumnStage]:
        return column_stage(self.name)

    @property
    def columns(self) -> Columns:
        return Columns(LocalStorage(self.storage), "test")

    def shard(self, name: str) -> Shard:
        return next(s for s in self.pool.shards if s.name == name)

    def file(self, shard: Shard) -> Path:
        return self.storage / self.columns.record(self.spec, shard, ALL).file


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module", params=COLUMNS)
def made(request: pytest.FixtureRequest, world: Path, tmp_path_factory: pytest.TempPathFactory) -> Made:
    spec = list(specs_of(request.param, world).values())[-1]
    storage = tmp_path_factory.mktemp("calm")
    compute(request.param, world, storage)
    return Made(request.param, world, storage, open_pool(world / "shards"), spec)


def data_files(storage: Path) -> dict[str, bytes]:
    """Every data file's bytes; records hold seconds, so they differ from run to run."""
    return {str(p.relative_to(storage)): p.read_bytes() for p in sorted(storage.rglob("*.parquet"))}


def sees_images(spec: ColumnSpec) -> bool:
    return "image" in column_stage(spec.stage).reads or any(map(sees_images, spec.inputs.values()))


def test_the_schema_is_the_declared_one(made: Made) -> None:
    arrow = {
        "string": pa.string(),
        "float32": pa.float32(),
        "int32": pa.int32(),
        "int64": pa.int64(),
        "bool": pa.bool_(),
        "boxes": pa.list_(pa.list_(pa.float32())),
    }
    schemas = [pq.read_schema(made.file(shard)) for shard in made.pool.shards]
    assert all(schema.equals(schemas[0]) for schema in schemas), "an empty or a bad shard has another schema"
    assert schemas[0].names == ["uid", *(f.name for f in made.stage.fields), "error"]
    types = [pa.string(), *(arrow.get(f.dtype) for f in made.stage.fields), pa.string()]
    for field, expected in zip(schemas[0], types, strict=True):
        if expected is None:
            assert pa.types.is_fixed_size_list(field.type)
            assert field.type.value_type == pa.float16()
            assert field.type.list_size > 1
        else:
            assert field.type == expected, field


def test_a_stage_that_reads_raw_texts_says_so(made: Made) -> None:
    """Else its values would be kept when the texts are corrected."""
    assert "index" not in made.stage.reads


def test_every_usable_sample_is_a_row(made: Made) -> None:
    for number in range(SHARDS):
        table = made.columns.read(made.spec, made.shard(f"{number:08d}"))
        assert table.column("uid").to_pylist() == [uid(number * SAMPLES + i) for i in range(SAMPLES)]
        assert table.column("uid").null_count == 0


def test_an_empty_shard_is_done(made: Made) -> None:
    record = made.columns.record(made.spec, made.shard(EMPTY), ALL)
    assert record.rows == 0
    assert record.failures == ({"shard: no samples": 1} if made.name == "index" else {})


def test_a_corrupt_sample_is_a_row_with_a_reason(made: Made) -> None:
    shard = made.shard(BAD)
    rows = {row.pop("uid"): row for row in made.columns.read(made.spec, shard).to_pylist()}
    assert list(rows) == [uid(100), uid(101), uid(102), uid(103)]
    errors = [row["error"] for row in rows.values() if row["error"]]
    if sees_images(made.spec):
        assert {u for u, row in rows.items() if row["error"]} == set(UNREADABLE)
    for row in rows.values():
        if row["error"] and made.name != "index":
            assert {value for name, value in row.items() if name != "error"} == {None}
    failures = made.columns.record(made.spec, shard, ALL).failures
    counted = {reason: n for reason, n in failures.items() if reason.startswith("sample: ")}
    assert counted == {f"sample: {error}": errors.count(error) for error in errors}


def test_running_it_again_writes_nothing(made: Made) -> None:
    def look() -> dict[Path, tuple[int, int]]:
        return {p: (p.stat().st_ino, p.stat().st_mtime_ns) for p in made.storage.rglob("*")}

    before = look()
    assert compute(made.name, made.world, made.storage).shards == 0
    assert look() == before


def test_a_fresh_storage_gets_the_same_bytes(made: Made, tmp_path: Path) -> None:
    compute(made.name, made.world, tmp_path)
    assert data_files(tmp_path) == data_files(made.storage)


class Failing(Columns):
    """Its storage fails at the third shard, after the data is written and before the record is."""

    def commit(self, spec: ColumnSpec, shard: Shard, *rest: Any) -> bool:
        if shard.name == "00000002":
            self.storage = cast(Any, Unrecorded(self.storage.uri))
        return super().commit(spec, shard, *rest)


class Unrecorded(LocalStorage):
    def create(self, path: str, data: bytes) -> bool:
        if path.endswith(".done.json"):
            raise TemporaryError("the network is down")
        return super().create(path, data)


def test_stopped_halfway_and_run_again_gives_the_same_bytes(made: Made, tmp_path: Path) -> None:
    with pytest.raises(TemporaryError, match="the network is down"):
        compute(made.name, made.world, tmp_path, Failing)
    fresh = Columns(LocalStorage(tmp_path), "test")
    assert [fresh.parts(made.spec, s) for s in made.pool.shards] == [[ALL]] * 2 + [[]] * 4
    assert compute(made.name, made.world, tmp_path).shards == 4
    assert data_files(tmp_path) == data_files(made.storage)


class Slow(Columns):
    """Leaves time for a signal between and within two commits."""

    def commit(self, spec: ColumnSpec, shard: Shard, *rest: Any) -> bool:
        time.sleep(0.1)
        won = super().commit(spec, shard, *rest)
        print("committed", flush=True)
        return won


KILLED = """
import sys
from pathlib import Path
from tests.pipelines.test_contract import Slow, compute
if __name__ == "__main__":
    compute(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), Slow)
"""


@pytest.mark.slow
def test_killed_and_run_again_gives_the_same_bytes(made: Made, tmp_path: Path) -> None:
    command = [sys.executable, "-c", KILLED, made.name, str(made.world), str(tmp_path)]
    child = subprocess.Popen(
        command,
        env={**os.environ, "PYTHONPATH": os.getcwd(), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert child.stdout is not None
    assert child.stdout.readline() == "committed\n"
    time.sleep(random.Random(made.name).random() * 0.3)
    child.send_signal(signal.SIGKILL)
    child.stdout.close()
    assert child.wait() == -signal.SIGKILL
    assert 1 <= compute(made.name, made.world, tmp_path).shards < len(made.pool.shards)
    assert data_files(tmp_path) == data_files(made.storage)


def rival(number: int, arrived: threading.Barrier) -> type[Columns]:
    """Commits each shard when the other worker does; its bytes are its own, as a GPU's may be."""

    class Rival(Columns):
        def commit(self, spec: ColumnSpec, shard: Shard, part: str, table: pa.Table, *rest: Any) -> bool:
            arrived.wait()
            return super().commit(spec, shard, part, table.replace_schema_metadata({"by": str(number)}), *rest)

    return Rival


def test_of_two_racing_workers_one_record_stands(made: Made, tmp_path: Path) -> None:
    arrived, won = threading.Barrier(2, timeout=60), list[Summary]()
    compute_inputs(made.name, made.world, tmp_path)
    racing = [
        threading.Thread(target=lambda i=i: won.append(compute(made.name, made.world, tmp_path, rival(i, arrived))))
        for i in range(2)
    ]
    for thread in racing:
        thread.start()
    for thread in racing:
        thread.join()
    assert len(won) == 2
    folder = tmp_path / "pools/test/columns" / made.spec.folder
    records = [json.loads(path.read_bytes()) for path in sorted(folder.glob("*.done.json"))]
    assert len(records) == len(made.pool.shards)
    assert {r["file"].rpartition("/")[2] for r in records} == {p.name for p in folder.glob("*.parquet")}
    assert not list(folder.glob(".tmp-*"))
    fresh = Columns(LocalStorage(tmp_path), "test")
    for shard in made.pool.shards:
        assert fresh.read(made.spec, shard).equals(made.columns.read(made.spec, shard))


def test_a_stage_without_options_fails_loudly(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(f"{__name__}.OPTIONS", {})
    with pytest.raises(pytest.fail.Exception, match="column aesthetic: tell the contract test how to make one"):
        specs_of("aesthetic", world)
