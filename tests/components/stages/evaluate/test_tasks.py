"""Evaluation in parts: equal results in any order, gaps, and failures that cost the others nothing."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
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
from components.recipe.training import Evaluate
from components.stages.evaluate import stage
from components.stages.evaluate.metrics import Predictions
from components.stages.evaluate.stage import EvaluateStep
from components.stages.evaluate.tasks import Task, fingerprint_tasks, local_copy, tasks_of
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


def make_run(root: Path, tasks: list[str] | str = TASKS) -> Run:
    from components.stages.index.stage import IndexStage

    recipe = schema.parse_recipe(RECIPE.format(root=root, tasks=json.dumps(tasks)))
    storage = LocalStorage(root / "out")
    pool = pool_of("tiny", LocalStorage(root / "shards"), ())
    assert recipe.spec.evaluate is not None
    prints = fingerprint_tasks(recipe.spec.evaluate)
    return Run("test", storage, recipe, pool, {"index": Node("index", IndexStage.make_index(), "index")}, prints)


class Fake:
    """A model whose accuracy follows from its name and the data set's."""

    loads: list[str]
    predicted: list[str]
    broken: dict[str, Exception]

    def __init__(self, mixture: str) -> None:
        self.mixture = mixture
        self.loads.append(mixture)

    def predict(self, folder: Path) -> Predictions:
        self.predicted.append(f"{self.mixture} {folder.name}")
        if folder.name in self.broken:
            raise self.broken[folder.name]
        right = torch.tensor([random.Random(f"{self.mixture}{folder.name}{i}").random() > 0.5 for i in range(50)])
        scores = torch.stack([right.float(), torch.full((50,), 0.5)], dim=1)
        return Predictions("classification", scores, (torch.arange(50) >= 40).long())


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> type[Fake]:
    Fake.loads, Fake.predicted, Fake.broken = [], [], {}
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
        found[mixture.name] = json.loads(run.storage.read(run.results_path(mixture)))
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
    assert not any("t03" in path or "results-" in path for path in done)
    fake.broken["t05"] = TemporaryError("storage: timed out")  # done already: not touched again
    del fake.broken["t03"]
    EvaluateStep().run(run)
    assert len(results(run)["b"]["tasks"]) == 19


def test_bad_luck_among_the_failures_is_worth_a_retry(tmp_path: Path, fake: type[Fake]) -> None:
    run = make_run(with_data(tmp_path))
    fake.broken |= {"t01": ValueError("bad"), "t02": torch.OutOfMemoryError("CUDA out of memory")}
    fake.broken |= {"t09": OSError(5, "x")}
    with pytest.raises(TemporaryError, match=r"evaluate a on t02: OutOfMemoryError: CUDA out .*5 more.*kept"):
        EvaluateStep().run(run)
    with pytest.raises(PermanentError, match="evaluate a on t01: ValueError: bad; the other results are kept"):
        EvaluateStep().run_task(run, 1, 6)


def test_an_error_of_pillows_is_no_bad_luck(tmp_path: Path, fake: type[Fake]) -> None:
    """Its OSErrors have no number, as the system's have."""
    fake.broken |= {"t01": OSError("broken data stream when reading image file")}
    with pytest.raises(PermanentError, match="evaluate a on t01: OSError: broken data stream"):
        EvaluateStep().run(make_run(with_data(tmp_path), ["t01"]))


def test_a_data_set_added_later_is_all_that_is_evaluated(tmp_path: Path, fake: type[Fake]) -> None:
    with_data(tmp_path)
    EvaluateStep().run(make_run(tmp_path, ["t00", "t01"]))
    first = [*fake.predicted]
    assert first == ["a t00", "a t01", "b t00", "b t01"]
    (tmp_path / "tasks/t00/README.md").write_text("not of the data set")
    (tmp_path / "tasks/hf_cache").mkdir()
    (tmp_path / "tasks/hf_cache/any.arrow").touch()
    more = make_run(tmp_path, ["t00", "t02", "t01"])
    for task in range(EvaluateStep().count_tasks(more)):
        EvaluateStep().run_task(more, task, EvaluateStep().count_tasks(more))
    EvaluateStep().run(more)
    assert fake.predicted[len(first) :] == ["a t02", "b t02"]
    assert [task["name"] for task in results(more)["a"]["tasks"]] == ["t00", "t02", "t01"]


@pytest.mark.parametrize("file", ["classnames.txt", "test/0.tar"])
def test_a_data_set_that_changed_is_evaluated_again(tmp_path: Path, fake: type[Fake], file: str) -> None:
    with_data(tmp_path)
    (tmp_path / "tasks/t01" / file).write_text("cat\ndog\n")
    EvaluateStep().run(make_run(tmp_path, ["t00", "t01"]))
    fake.predicted.clear()
    (tmp_path / "tasks/t01" / file).write_text("dog\ncat\n" if file == "classnames.txt" else "longer")
    EvaluateStep().run(make_run(tmp_path, ["t00", "t01"]))
    assert fake.predicted == ["a t01", "b t01"]


def test_a_data_set_that_changes_during_a_run_is_no_result_of_the_run(tmp_path: Path, fake: type[Fake]) -> None:
    """Its result would be found again by the name of the data set that was planned."""
    run = make_run(with_data(tmp_path, missing="t01"), ["t00", "t01"])
    shutil.copytree(tmp_path / "tasks/t00", tmp_path / "tasks/t01")
    (tmp_path / "tasks/t00/classnames.txt").write_text("other")
    with pytest.raises(PermanentError, match=r"evaluate a on t00: .*/t00 was changed after this run was planned; run"):
        EvaluateStep().run(run)
    assert not list(run.storage.list("evaluations/"))
    (tmp_path / "tasks/t00/classnames.txt").unlink()
    EvaluateStep().run(run)
    found = results(run)["a"]
    assert [task["name"] for task in found["tasks"]] == ["t00"]
    assert "t01 was not there when this run was planned; run the recipe again" in found["gaps"][0]["reason"]


def test_a_data_set_has_one_metric_however_it_is_asked_for(tmp_path: Path, fake: type[Fake]) -> None:
    (tmp_path / "tasks/wds_vtab-pets_test/test").mkdir(parents=True)
    (tmp_path / "tasks/wds_vtab-pets_test/test/nshards.txt").write_text("1")
    found = {}
    for how in ("datacomp", ["wds_vtab-pets_test/"]):
        run = make_run(tmp_path, how)
        EvaluateStep().run(run)
        (found[str(how)],) = results(run)["a"]["tasks"]
    named, listed = found.values()
    assert named == listed
    assert named["metric"] == "mean_per_class_recall"
    assert named["value"] == named["metrics"]["mean_per_class_recall"] != named["metrics"]["acc1"]
    assert fake.predicted == ["a wds_vtab-pets_test", "b wds_vtab-pets_test"]


def test_a_task_counted_by_groups_needs_them(tmp_path: Path, fake: type[Fake]) -> None:
    folder = "wds_geode_test"
    (tmp_path / f"tasks/{folder}/test").mkdir(parents=True)
    (tmp_path / f"tasks/{folder}/test/nshards.txt").write_text("1")
    run = make_run(tmp_path, [folder])
    with pytest.raises(PermanentError, match=r"metric acc_wg needs a \.npy of each image whose first number is its g"):
        EvaluateStep().run(run)
    plain = fake.predict
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fake, "predict", lambda *given: replace(plain(*given), groups=torch.arange(50) // 10))
        EvaluateStep().run(run)
    (found,) = results(run)["a"]["tasks"]
    assert (found["name"], found["metric"], found["said"]) == ("GeoDE", "acc_wg", "accuracy in the worst group")
    assert found["value"] == found["metrics"]["acc_wg"] < found["metrics"]["acc1"]


def test_every_data_set_of_datacomps_is_the_same_task_alone() -> None:
    whole = tasks_of(Evaluate(root="x"))
    assert len(whole) == 38
    assert [tasks_of(Evaluate(root="x", tasks=[task.folder])) for task in whole] == [[task] for task in whole]
    nested = tasks_of(Evaluate(root="x", tasks=["sets/wds_vtab-pets_test", "own", "own/"]))
    assert nested == [
        Task("sets/wds_vtab-pets_test", "sets/wds_vtab-pets_test", "mean_per_class_recall"),
        Task("own", "own"),
    ]


def test_imagenet_has_a_column_of_its_own(tmp_path: Path, fake: type[Fake]) -> None:
    for task in ("wds_imagenet1k_test", "own"):
        (tmp_path / f"tasks/{task}/test").mkdir(parents=True)
        (tmp_path / f"tasks/{task}/test/nshards.txt").write_text("1")
    run = make_run(tmp_path, ["own", "wds_imagenet1k_test"])
    EvaluateStep().run(run)
    found = results(run)["a"]
    assert found["columns"] == {"ImageNet": found["tasks"][1]["value"]}


def test_an_evaluation_without_data_says_where_to_get_them(tmp_path: Path, fake: type[Fake]) -> None:
    with pytest.raises(PermanentError, match=r"evaluate\.root: .*is empty; DataComp.s download_evalsets\.py"):
        make_run(tmp_path)
    run = make_run(with_data(tmp_path), ["t00", "absent"])
    EvaluateStep().run(run)
    (gap,) = results(run)["a"]["gaps"]
    assert "absent (test/nshards.txt is missing); DataComp's download_evalsets.py fetches most" in gap["reason"]


def test_mixtures_that_choose_the_same_are_evaluated_once(tmp_path: Path, fake: type[Fake]) -> None:
    run = make_run(with_data(tmp_path), ["t00"])
    twins = [m.model_copy(update={"rules": run.spec.mixtures[0].rules}) for m in run.spec.mixtures]
    spec = run.spec.model_copy(update={"mixtures": twins})
    run = replace(run, recipe=run.recipe.model_copy(update={"spec": spec}))
    assert EvaluateStep().count_tasks(run) == 1
    EvaluateStep().run(run)
    assert fake.predicted == ["a t00"]


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

    write_evaluation(tmp_path / "tasks", 60, seed=5)
    damaged = tmp_path / "tasks/damaged"
    shutil.copytree(tmp_path / "tasks/miniature-classes", damaged)
    tar = damaged / "test/0.tar"
    whole = tar.read_bytes()
    tar.write_bytes(whole[: len(whole) // 2 + 100])
    run = make_run(tmp_path, ["miniature-classes", "damaged", "absent"])
    (tmp_path / "tiny-vit.json").write_text(json.dumps(MODEL))
    open_clip.add_model_config(tmp_path / "tiny-vit.json")
    torch.save(open_clip.create_model("tiny-vit").state_dict(), tmp_path / "model.pt")
    for mixture in run.trained:
        folder = run.model_folder(mixture)
        run.storage.upload(tmp_path / "model.pt", f"{folder}/checkpoints/epoch_1.pt")
        model = {"model": "tiny-vit", "architecture": MODEL, "checkpoint": f"{folder}/checkpoints/epoch_1.pt"}
        run.storage.write(f"{folder}/model.json", json.dumps(model).encode())
    with pytest.raises(PermanentError, match=r"evaluate a on damaged: .*\(and 1 more, above\); the other results"):
        EvaluateStep().run(run)
    tar.write_bytes(whole)
    run = make_run(tmp_path, ["miniature-classes", "damaged", "absent"])
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
