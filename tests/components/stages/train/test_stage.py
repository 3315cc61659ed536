"""Real trainings through torchrun on a CPU: their end, their resumption, their failures."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import torch

from components.base.errors import PermanentError, TemporaryError
from components.pool.run import Run
from components.stages.train import launch, stage
from components.stages.train.batch_plan import BatchPlan
from components.stages.train.stage import TrainStep
from components.stages.train.trainer import OutOfMemory, TrainerLog
from components.storage.local import LocalStorage
from tests.components.models.evil import scorer, student
from tests.components.stages.train.conftest import MODEL, make_training


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sums of floats depend on the number of threads."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def folder_of(run: Run) -> Path:
    return Path(run.storage.uri, run.model_folder(run.spec.mixtures[0]))


def dataset_of(run: Run) -> Path:
    return Path(run.storage.uri, run.dataset_folder(run.spec.mixtures[0]))


def model_of(run: Run) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder_of(run) / "model.json").read_text())
    return found


def checkpoint_of(run: Run) -> dict[str, Any]:
    found: dict[str, Any] = torch.load(Path(run.storage.uri, model_of(run)["checkpoint"]), weights_only=True)
    return found


def forge(run: Run, name: str, data: bytes) -> None:
    """Replace a tar by other bytes that dataset.json vouches for."""
    (dataset_of(run) / name).write_bytes(data)
    path = dataset_of(run) / "dataset.json"
    dataset = json.loads(path.read_text())
    tar = next(t for t in dataset["shards"] if t["name"] == name)
    tar |= {"bytes": len(data), "sha256": sha256(data).hexdigest()}
    path.write_text(json.dumps(dataset))


@pytest.mark.slow
def test_trains_as_planned_and_a_seed_repeats_it(tmp_path: Path) -> None:
    """Two trainings with one seed give the same weights bit for bit, on a CPU; another seed gives others."""
    runs = [make_training(tmp_path / name, checkpoints=1) for name in ("a", "b")]
    for run in runs:
        TrainStep().run(run)
    model, checkpoint = model_of(runs[0]), checkpoint_of(runs[0])
    assert (model["steps"], model["samples"], model["pairs"], model["undecodable"]) == (13, 416, 200, 0)
    # What the trainer really did, from its optimizer.
    assert {int(state["step"]) for state in checkpoint["optimizer"]["state"].values()} == {13}
    assert checkpoint["epoch"] == 1
    assert model["model"] == "tiny-vit"
    assert model["hyperparameters"]["precision"] == "fp32"
    assert model["hyperparameters"]["beta2"] == 0.98
    assert model["samples_per_second"] > 0
    path = Path(runs[0].storage.uri, model["checkpoint"])
    assert sha256(path.read_bytes()).hexdigest() == model["sha256"]
    assert sorted(p.name for p in path.parent.iterdir()) == ["epoch_1.pt"]
    again = checkpoint_of(runs[1])
    assert all(torch.equal(v, again["state_dict"][k]) for k, v in checkpoint["state_dict"].items())
    assert model_of(runs[1])["final_loss"] == model["final_loss"]
    before = path.stat().st_mtime_ns
    TrainStep().run(runs[0])
    assert path.stat().st_mtime_ns == before  # nothing is trained twice

    import open_clip

    (tmp_path / "tiny-vit.json").write_text(json.dumps(model["architecture"]))
    open_clip.add_model_config(tmp_path / "tiny-vit.json")
    assert open_clip.create_model("tiny-vit", pretrained=str(path)) is not None


CHILD = """
import sys
from pathlib import Path
from components.stages.train.stage import TrainStep
from tests.components.models.evil import scorer, student
from tests.components.stages.train.conftest import MODEL, make_training
TrainStep().run(make_training(Path(sys.argv[1]), checkpoints=8))
"""


@pytest.mark.slow
def test_killed_and_resumed_gives_the_same_weights(tmp_path: Path) -> None:
    """kill -9 after a checkpoint: no process stays, the rest is trained, the weights are the undisturbed ones."""
    calm = make_training(tmp_path / "calm", checkpoints=8)
    TrainStep().run(calm)
    killed = make_training(tmp_path / "killed", checkpoints=8)
    environment = {**os.environ, "PYTHONPATH": os.getcwd()}
    process = subprocess.Popen([sys.executable, "-c", CHILD, tmp_path / "killed"], env=environment)
    latest = folder_of(killed) / "checkpoints/epoch_latest.pt"
    while not latest.exists():
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    end = time.monotonic() + 20
    while _trainers(folder_of(killed)):
        assert time.monotonic() < end, "the trainer outlived its parent"
        time.sleep(0.1)
    assert not (folder_of(killed) / "model.json").exists()
    (latest.parent / "tmp.pt").write_bytes(b"half a checkpoint")
    TrainStep().run(killed)
    model = model_of(killed)
    assert 1 <= model["resumed_after"] < 8
    assert model["final_loss"] == model_of(calm)["final_loss"]
    expected, found = checkpoint_of(calm), checkpoint_of(killed)
    assert all(torch.equal(v, found["state_dict"][k]) for k, v in expected["state_dict"].items())


def _trainers(folder: Path) -> list[str]:
    """Processes whose job trains into this folder: they hold its log open."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if any(os.readlink(fd).startswith(str(folder)) for fd in (process / "fd").iterdir()):
                found.append(process.name)
        except OSError:
            continue
    return found


@pytest.mark.slow
def test_a_damaged_tar_ends_the_training_with_one_clear_line(tmp_path: Path) -> None:
    """open_clip's own loader would warn and go on with what it can read."""
    run = make_training(tmp_path)
    data = (dataset_of(run) / "00000000.tar").read_bytes()
    middle = len(data) // 2 // 512 * 512
    for damaged, message in (
        (data[:middle] + b"\xff" * 4096 + data[middle + 4096 :], r"has \d+ readable samples, dataset\.json says 200"),
        (data[: middle + 100], r"(can't be read after \d+ samples|has \d+ readable samples, dataset\.json says 200)"),
    ):
        forge(run, "00000000.tar", damaged)
        with pytest.raises(PermanentError, match=rf"^train: training set .*00000000\.tar .*{message}.*train\.log"):
            TrainStep().run(run)


class Bucket:
    """A storage that isn't a folder of this machine, as far as the stage can tell."""

    def __init__(self, folder: LocalStorage) -> None:
        self.folder = folder

    def __getattr__(self, name: str) -> Any:
        return getattr(self.folder, name)


@pytest.mark.slow
def test_checkpoints_go_to_a_bucket_and_come_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another machine finds the copy, and trains no more than what is missing."""
    local = make_training(tmp_path, checkpoints=2)
    run = replace(local, storage=Bucket(LocalStorage(local.storage.uri)))
    for machine in ("one", "two"):
        (tmp_path / machine).mkdir()
        monkeypatch.setattr("tempfile.tempdir", str(tmp_path / machine))
        TrainStep().run(run)
        model = model_of(run)
        assert sorted(p.relative_to(folder_of(run)).as_posix() for p in folder_of(run).rglob("*.*")) == [
            "checkpoints/epoch_2.pt",
            "model.json",
            "train.log",
        ]
        path = Path(run.storage.uri, model["checkpoint"])
        assert sha256(path.read_bytes()).hexdigest() == model["sha256"]
        assert not list((tmp_path / machine).rglob("*.pt"))
        assert model["resumed_after"] == (0 if machine == "one" else 2)
        (folder_of(run) / "model.json").unlink()  # as if killed just before it was written


@pytest.mark.slow
def test_undecodable_images_are_counted(tmp_path: Path) -> None:
    run = make_training(tmp_path, checkpoints=1)
    data = bytearray((dataset_of(run) / "00000000.tar").read_bytes())
    at = -1
    for _ in range(2):
        at = data.index(b"\xff\xd8\xff", at + 1)
        data[at : at + 3] = b"no!"
    forge(run, "00000000.tar", bytes(data))
    TrainStep().run(run)
    assert model_of(run)["undecodable"] == 2


def test_a_missing_or_short_tar_is_found_before_the_start(run: Run) -> None:
    tar = dataset_of(run) / "00000000.tar"
    tar.write_bytes(tar.read_bytes()[:-512])
    with pytest.raises(
        PermanentError, match=r"1 of 1 tars .*00000000\.tar has \d+ bytes, expected \d+ bytes; run reshard"
    ):
        TrainStep().run(run)
    tar.unlink()
    with pytest.raises(PermanentError, match=r"00000000\.tar is missing, expected \d+ bytes; run reshard again"):
        TrainStep().run(run)
    (dataset_of(run) / "dataset.json").unlink()
    with pytest.raises(PermanentError, match=r"has no dataset\.json; run reshard first"):
        TrainStep().run(run)


@pytest.mark.parametrize(
    ("content", "message"),
    [("{", "is not JSON"), ('{"embed_dim": 1, "vision_cfg": {}}', "has no text_cfg"), ("[]", "has no embed_dim")],
)
def test_a_broken_model_config_is_refused(run: Run, tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "tiny-vit.json").write_text(content)
    with pytest.raises(PermanentError, match=rf"spec\.train\.scale\.model: .*tiny-vit\.json {message}"):
        TrainStep().run(run)


def test_two_trainings_of_one_model_exclude_each_other(run: Run) -> None:
    training = replace(_training(run), folder=run.model_folder(run.spec.mixtures[0]))
    with (
        stage._alone(training),
        pytest.raises(TemporaryError, match="another process is training models/everything-"),
    ):
        TrainStep().run(run)


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate\nmore"),
            "memory",
            "OutOfMemoryError: CUDA out of",
        ),
        (torch.distributed.DistNetworkError("peer lost"), "temporary", "DistNetworkError: peer lost"),
        (RuntimeError("DataLoader worker (pid(s) 7) exited unexpectedly"), "temporary", "RuntimeError: DataLoader"),
        (RuntimeError("[enforce fail] PytorchStreamWriter failed writing file"), "temporary", "RuntimeError: [enforce"),
        (
            RuntimeError("[/x/gloo/transport/tcp/pair.cc:545] Read error: Connection reset"),
            "temporary",
            "RuntimeError: [/x",
        ),
        (OSError(28, "No space left on device"), "temporary", "OSError: [Errno 28] No space"),
        (RuntimeError("Model config for 'x' not found"), "permanent", "RuntimeError: Model config for"),
        (
            PermanentError(
                "Caught PermanentError in DataLoader worker process 0.\nOriginal Traceback (most recent call last):\n"
                '  File "x.py", line 1\ncomponents.base.errors.PermanentError: training set s: cut\n'
            ),
            "permanent",
            "training set s: cut",
        ),
        (TemporaryError("storage: timed out"), "temporary", "storage: timed out"),
    ],
)
def test_what_a_rank_says_of_its_error(error: Exception, kind: str, message: str) -> None:
    assert launch._kind(error) == kind
    assert launch._message(error).startswith(message)
    assert "\n" not in launch._message(error)


def test_too_little_gpu_memory_means_more_passes(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """The batch and the steps stay; only what a GPU holds at once shrinks."""
    jobs: list[list[str]] = []

    def torchrun(job: Path, *_: object) -> TrainerLog:
        jobs.append(json.loads(job.read_text())["arguments"])
        if len(jobs) < 4:
            raise OutOfMemory("train: CUDA out of memory")
        return TrainerLog()

    monkeypatch.setattr(stage, "torchrun", torchrun)
    training = _training(run)
    plan, _ = stage._train(training, "tiny-vit", [])
    assert plan == BatchPlan(1, 8, 4, 5, 3)
    pairs = [dict(zip(job[2:-2:2], job[3:-2:2], strict=True)) for job in jobs]
    assert [(p["--batch-size"], p["--accum-freq"]) for p in pairs] == [("32", "1"), ("16", "2"), ("8", "4"), ("4", "8")]
    assert {p["--train-num-samples"] for p in pairs} == {"160"}


def test_no_memory_for_one_sample_is_permanent(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def torchrun(*_: object) -> TrainerLog:
        raise OutOfMemory("train: CUDA out of memory")

    monkeypatch.setattr(stage, "torchrun", torchrun)
    with pytest.raises(PermanentError, match="not even one sample fits this GPU"):
        stage._train(_training(run), "tiny-vit", [])


def _training(run: Run) -> stage.Training:
    train = run.spec.train
    assert train
    scale, multiple = stage.scale_of(train)
    return stage.Training(train, scale, multiple, run.storage, "datasets/x", "models/x", folder_of(run))


def test_gpus_that_do_not_divide_the_batch_are_refused(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stage, "_gpus", lambda: 3)
    with pytest.raises(PermanentError, match=r"batch of 32 can't be divided among 3 processes, .*; use 2 of them"):
        TrainStep().run(run)


def test_a_warmup_longer_than_the_training_is_said(
    run: Run, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(stage, "torchrun", lambda *_: TrainerLog())
    training = _training(run)
    long = training.scale.model_copy(update={"warmup": 500})
    with caplog.at_level(logging.WARNING):
        stage._train(replace(training, scale=long), "tiny-vit", [])
    assert "warmup is 500 steps and the training 15" in caplog.text


def test_every_sample_is_equally_likely_and_the_seed_decides(run: Run) -> None:
    """Tars are drawn by their number of samples; open_clip draws each equally often."""
    from open_clip_train.data import SharedEpoch

    from components.stages.train.data import TrainingSet

    def drawn(seed: tuple[int, int], epoch: int) -> list[int]:
        data = TrainingSet(
            str(dataset_of(run)), 40, 50, seed, SharedEpoch(epoch), lambda image: torch.zeros(1), _number_of_text
        )
        return [int(n) for _, texts in data for n in texts]

    first = drawn((0, 0), 0)
    assert len(first) == 2000
    assert len(set(first)) == 200
    assert first == drawn((0, 0), 0)
    for other in (drawn((1, 0), 0), drawn((0, 1), 0), drawn((0, 0), 1)):
        assert other != first


def _number_of_text(text: str) -> torch.Tensor:
    return torch.tensor([int(text.rsplit(maxsplit=1)[-1], 16) % (1 << 31)])


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        ({"tokenizer_kwargs": {"trust_remote_code": True}}, "has text_cfg.tokenizer_kwargs.trust_remote_code"),
        ({}, "open_clip_config.json has model_cfg.text_cfg.tokenizer_kwargs.trust_remote_code"),
    ],
)
def test_a_student_brings_no_python(run: Run, tmp_path: Path, edit: dict[str, Any], message: str) -> None:
    """Neither its own config nor the tokenizer that it names."""
    path = student(tmp_path / "tiny-vit.json", tmp_path / "sentinel", MODEL)
    config = json.loads(path.read_text())
    config["text_cfg"]["tokenizer_kwargs"] = edit.get("tokenizer_kwargs", {})
    path.write_text(json.dumps(config))
    with pytest.raises(PermanentError, match=rf"spec\.train\.scale\.model: .*tiny-vit\.json: .*{message}") as caught:
        TrainStep().run(run)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "sentinel").exists()


@pytest.mark.parametrize("model", ["ViT-Z-99", "local-dir:{root}/folder", "hf-hub:org/clip", "{root}/folder"])
def test_a_training_begins_from_nothing(tmp_path: Path, model: str) -> None:
    """A folder would bring weights, of which the model's hash knows nothing."""
    scorer(tmp_path / "folder", tmp_path / "sentinel")
    run = make_training(tmp_path, model=model.format(root=tmp_path))
    with pytest.raises(PermanentError, match=r"spec\.train\.scale\.model: .*: expected a name of open_clip"):
        TrainStep().run(run)
    assert not (tmp_path / "sentinel").exists()
