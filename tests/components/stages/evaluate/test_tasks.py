"""Evaluation in parts: equal results in any order, gaps, and failures that cost the others nothing."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from moto.s3 import models

from components.base.errors import PermanentError, TemporaryError
from components.miniature.pool import write_evaluation
from components.pool.run import Node, Run
from components.pool.shards import pool_of
from components.recipe import recipe as schema
from components.recipe.mixtures import Mixture
from components.stages.evaluate import stage
from components.stages.evaluate.metrics import Predictions
from components.stages.evaluate.stage import EvaluateStep
from components.stages.evaluate.tasks import Task, local_copy
from components.storage.interface import Storage
from components.storage.local import LocalStorage
from components.storage.opening import open_storage
from tests.components.stages.train.conftest import MODEL
from tests.components.storage.gcs_server import BUCKET, gcs_server
from tests.components.storage.s3_server import s3_environment, s3_server

RECIPE = """
apiVersion: recaption.dev/v1alpha1
kind: Recaption
metadata: {{name: test}}
spec:
  storage: {root}/out
  pool: {{name: tiny, shards: {root}/shards}}
  mixtures:
  - {{name: a, rules: [{{text: raw}}]}}
  - {{name: b, rules: [{{text: raw}}, {{text: raw}}]}}
  - {{name: untrained, rules: [{{text: raw}}, {{text: raw}}, {{text: raw}}]}}
  train: {{scale: debug, mixtures: [a, b]}}
  evaluate: {{root: {root}/tasks, tasks: {tasks}}}
"""
TASKS = [f"t{i:02d}" for i in range(19)]


def make_run(root: Path, tasks: list[str] = TASKS) -> Run:
    from components.stages.index.stage import IndexStage

    recipe = schema.parse_recipe(RECIPE.format(root=root, tasks=json.dumps(tasks)))
    storage = LocalStorage(root / "out")
    pool = pool_of("tiny", LocalStorage(root / "shards"), ())
    return Run("test", storage, recipe, pool, {"index": Node("index", IndexStage.make_index(), "index")}, {})


class Fake:
    """A model whose accuracy follows from its name and the data set's."""

    loads: list[str]
    broken: dict[str, Exception]

    def __init__(self, mixture: str) -> None:
        self.mixture = mixture
        self.loads.append(mixture)

    def predict(self, folder: Path) -> Predictions:
        if folder.name in self.broken:
            raise self.broken[folder.name]
        right = torch.tensor([random.Random(f"{self.mixture}{folder.name}{i}").random() > 0.5 for i in range(50)])
        scores = torch.stack([right.float(), torch.full((50,), 0.5)], dim=1)
        return Predictions("classification", scores, torch.zeros(50, dtype=torch.int64))


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> type[Fake]:
    Fake.loads, Fake.broken = [], {}
    monkeypatch.setattr(stage, "_load", lambda run, mixture: Fake(mixture.name))
    return Fake


def with_data(root: Path, missing: str = "") -> Path:
    for task in TASKS:
        if task != missing:
            (root / f"tasks/{task}/test").mkdir(parents=True)
            (root / f"tasks/{task}/test/nshards.txt").write_text("1")
    return root


def results(run: Run) -> dict[str, Any]:
    """results.json of every trained mixture, without what a clock says."""
    found = {}
    for mixture in run.trained:
        found[mixture.name] = json.loads(run.storage.read(f"{run.evaluation_folder(mixture)}/results.json"))
        for task in found[mixture.name]["tasks"]:
            del task["seconds"]
    return found


@pytest.mark.parametrize("tasks", [1, 2, 5, 6, 7, 100])
def test_tasks_in_any_order_give_what_one_process_gives(tmp_path: Path, fake: type[Fake], tasks: int) -> None:
    run = make_run(with_data(tmp_path, missing="t04"))
    EvaluateStep().run(run)
    alone = results(run)
    assert [len(alone[m]["tasks"]) for m in "ab"] == [18, 18]
    assert alone["a"]["gaps"][0]["task"] == "t04"
    shutil.rmtree(tmp_path / "out")
    order = random.Random(tasks).sample(range(tasks), tasks)
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(lambda task: EvaluateStep().run_task(run, task, tasks), order))
    fake.loads.clear()
    EvaluateStep().run(run)
    assert not fake.loads
    assert results(run) == alone


def test_a_task_loads_one_model_once(tmp_path: Path, fake: type[Fake]) -> None:
    run = make_run(with_data(tmp_path))
    tasks = EvaluateStep().count_tasks(run)
    assert tasks == 6  # 2 models × 19 zero-shot tasks, at most 8 each
    for task in range(tasks):
        fake.loads.clear()
        EvaluateStep().run_task(run, task, tasks)
        assert fake.loads == ["a" if task < 3 else "b"]
        EvaluateStep().run_task(run, task, tasks)  # nothing is left
        assert len(fake.loads) == 1


def test_a_failure_is_named_after_the_others_are_done(tmp_path: Path, fake: type[Fake]) -> None:
    run = make_run(with_data(tmp_path))
    fake.broken["t03"] = ValueError("classnames.txt\nhas 3 classes, labels go to 9")
    with pytest.raises(
        PermanentError, match=r"evaluate a on t03: ValueError: classnames.txt has 3 .* \(and 1 more, above\)"
    ):
        EvaluateStep().run(run)
    done = [e.path for e in run.storage.list("evaluations/")]
    assert len(done) == 36
    assert not any("t03" in path or "results.json" in path for path in done)
    fake.broken["t05"] = TemporaryError("storage: timed out")  # done already: not touched again
    del fake.broken["t03"]
    EvaluateStep().run(run)
    assert len(results(run)["b"]["tasks"]) == 19


def test_bad_luck_among_the_failures_is_worth_a_retry(tmp_path: Path, fake: type[Fake]) -> None:
    run = make_run(with_data(tmp_path))
    fake.broken |= {"t01": ValueError("bad"), "t02": torch.OutOfMemoryError("CUDA out of memory"), "t09": OSError("x")}
    with pytest.raises(TemporaryError, match=r"evaluate a on t02: OutOfMemoryError: CUDA out .*5 more.*kept"):
        EvaluateStep().run(run)
    with pytest.raises(PermanentError, match="evaluate a on t01: ValueError: bad; the other results are kept"):
        EvaluateStep().run_task(run, 1, 6)


def test_a_model_that_cannot_be_loaded_costs_the_others_nothing(
    tmp_path: Path, fake: type[Fake], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(with_data(tmp_path))
    loads = []

    def load(run: Run, mixture: Mixture) -> Fake:
        loads.append(mixture.name)
        if mixture.name == "a":
            raise PermanentError("models/a/model.json: no such object")
        return Fake(mixture.name)

    monkeypatch.setattr(stage, "_load", load)
    with pytest.raises(PermanentError, match=r"evaluate a on t00: models/a/model\.json: no such object"):
        EvaluateStep().run(run)
    assert loads == ["a", "b"]
    assert len(list(run.storage.list("evaluations/"))) == 20  # b's tasks and results.json


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_damaged_data_set_fails_alone(tmp_path: Path) -> None:
    """With a real model and clip-benchmark's own reader."""
    import open_clip

    run = make_run(tmp_path, ["miniature-classes", "damaged", "absent"])
    write_evaluation(tmp_path / "tasks", 60, seed=5)
    (tmp_path / "tiny-vit.json").write_text(json.dumps(MODEL))
    open_clip.add_model_config(tmp_path / "tiny-vit.json")
    torch.save(open_clip.create_model("tiny-vit").state_dict(), tmp_path / "model.pt")
    for mixture in run.trained:
        folder = run.model_folder(mixture)
        run.storage.upload(tmp_path / "model.pt", f"{folder}/checkpoints/epoch_1.pt")
        model = {"model": "tiny-vit", "architecture": MODEL, "checkpoint": f"{folder}/checkpoints/epoch_1.pt"}
        run.storage.write(f"{folder}/model.json", json.dumps(model).encode())
    damaged = tmp_path / "tasks/damaged"
    shutil.copytree(tmp_path / "tasks/miniature-classes", damaged)
    tar = damaged / "test/0.tar"
    whole = tar.read_bytes()
    tar.write_bytes(whole[: len(whole) // 2 + 100])
    with pytest.raises(PermanentError, match=r"evaluate a on damaged: .*\(and 1 more, above\); the other results"):
        EvaluateStep().run(run)
    tar.write_bytes(whole)
    EvaluateStep().run(run)
    for found in results(run).values():
        assert [task["value"] for task in found["tasks"]] == [found["average"]] * 2
        assert [gap["task"] for gap in found["gaps"]] == ["absent"]


Put = Callable[[str, bytes], Storage]


@pytest.fixture(params=["gs", "s3"])
def bucket(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Put]:
    """Puts an object into a bucket, whatever its name, past the clients that would tidy it; gives the bucket's root."""
    if request.param == "gs":
        with gcs_server() as address:
            monkeypatch.setenv("STORAGE_EMULATOR_HOST", address)

            def put(key: str, data: bytes) -> Storage:
                storage = open_storage(f"gs://{BUCKET}/root")
                storage.write(key, data)
                return storage

            yield put
        return
    with s3_server() as address, s3_environment(address):

        def put_s3(key: str, data: bytes) -> Storage:
            models.s3_backends["123456789012"]["aws"].put_object(BUCKET, f"root/{key}", data)
            return open_storage(f"s3://{BUCKET}/root")

        yield put_s3


@pytest.mark.parametrize(
    "key",
    [
        "task//{outside}",
        "task/../../../../../../{outside}",
        "task/./x",
        "task/a//b",
        "task/x/",
        "task/a\\..\\b",
        "task/..",
    ],
)
def test_a_key_that_leaves_the_folder_is_refused(tmp_path: Path, bucket: Put, key: str) -> None:
    outside = tmp_path / "outside"
    key = key.format(outside=outside).replace("///", "//")
    bucket("task/test/nshards.txt", b"1")
    storage = bucket(key, b"written")
    with pytest.raises(PermanentError) as caught, local_copy(Task("task", "task"), storage):
        pass
    assert repr(key) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not outside.exists()


def test_a_task_is_fetched_from_a_bucket(bucket: Put) -> None:
    """Beside objects that a console made for its folders, and tasks whose names begin alike."""
    for key, data in {"task/": b"", "task/test/": b"", "task/test/0.tar": b"0", "task2/x": b"1"}.items():
        storage = bucket(key, data)
    with local_copy(Task("task", "task"), storage) as folder:
        found = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert found == {"test/0.tar": b"0"}
    assert not folder.exists()
