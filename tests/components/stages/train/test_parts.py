"""Steps, arguments, checkpoints and the trainer's words, without training."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from components.base.errors import PermanentError, TemporaryError
from components.recipe.training import ScaleConfig, Train
from components.stages.train import checkpoints
from components.stages.train.arguments import trainer_arguments
from components.stages.train.batch_plan import make_plan, next_accumulation
from components.stages.train.scales import SCALES, scale_of
from components.stages.train.trainer import OutOfMemory, TrainerLog, _failure
from components.storage.local import LocalStorage

# Derived from DataComp's train.py and open_clip's loader with 4 workers and 5 checkpoints; small, medium and large are
# the numbers of steps of DataComp's published trainings.
STEPS = {"debug": 140, "small": 3_140, "medium": 31_260, "large": 156_260, "xlarge": 142_060}


def open_clip_steps(samples: int, batch_per_gpu: int, world: int, accumulation: int, workers: int) -> int:
    """An epoch's steps by open_clip 3.3.0 (data.py get_wds_dataset, train.py train_one_epoch)."""
    batches = -(-samples // (batch_per_gpu * world))
    return -(-batches // workers) * workers // accumulation


@pytest.mark.parametrize("name", SCALES)
@pytest.mark.parametrize("world", range(1, 65))
def test_steps_are_datacomps_for_any_world_size(name: str, world: int) -> None:
    scale, multiple = scale_of(Train(scale=name))  # type: ignore[arg-type]
    if scale.batch_size % world:
        with pytest.raises(PermanentError, match=f"batch of {scale.batch_size} .* among {world} processes"):
            make_plan(scale, world, multiple=multiple)
        return
    accumulation: int | None = 1
    while accumulation:
        plan = make_plan(scale, world, accumulation, multiple)
        assert plan.steps == STEPS[name]
        assert plan.batch_size == scale.batch_size
        assert plan.samples == STEPS[name] * scale.batch_size >= scale.samples
        stock = open_clip_steps(plan.samples_per_checkpoint, plan.batch_per_gpu, world, accumulation, multiple)
        assert stock * scale.checkpoints == plan.steps  # a stock open_clip with these arguments agrees
        accumulation = next_accumulation(scale, world, accumulation)
    assert plan.batch_per_gpu == 1


@pytest.mark.parametrize("name", ["debug", "small", "medium", "large", "xlarge"])
def test_steps_are_what_datacomps_own_command_gives(name: str) -> None:
    scale = SCALES[name]
    assert 5 * open_clip_steps(scale.samples // 5, scale.batch_size // 8, 8, 1, 4) == STEPS[name]


def test_a_custom_scale_is_rounded_up_to_whole_steps_only() -> None:
    scale = ScaleConfig(model="x", batch_size=32, learning_rate=1, warmup=0, samples=400, checkpoints=3)
    assert make_plan(scale, 1).steps == 15  # 133 samples a checkpoint are 5 batches
    assert make_plan(ScaleConfig(**{**scale.model_dump(), "samples": 2}), 1).steps == 3


def test_the_message_names_a_number_of_gpus_that_works() -> None:
    with pytest.raises(PermanentError, match=r"among 6 processes, .*; use 4 of them"):
        make_plan(SCALES["small"], 6)


GPU = "--save-frequency 0 --ddp-static-graph --local-loss --gather-with-grad --grad-checkpointing --train-data D"
REST = "--log-every-n-steps 100 --logs L --name N --resume latest"
TAIL = "--save-most-recent --dataset-resampled"
AMP = "--dataset-type webdataset --warmup 500 --precision amp --device cuda --workers 4"
GOLDEN = {
    "debug": f"{GPU} --train-num-samples 28672 {AMP} "
    "--model ViT-B-32 --batch-size 128 --accum-freq 1 --epochs 5 --lr 0.0001 --seed 0 "
    f"--log-every-n-steps 7 --logs L --name N --resume latest {TAIL}",
    "small": f"{GPU} --train-num-samples 2572288 {AMP} "
    f"--model ViT-B-32 --batch-size 512 --accum-freq 1 --epochs 5 --lr 0.0005 --seed 0 {REST} {TAIL}",
    "medium": f"{GPU} --train-num-samples 25608192 {AMP} "
    f"--model ViT-B-32 --batch-size 512 --accum-freq 1 --epochs 5 --lr 0.0005 --seed 0 {REST} {TAIL}",
    "large": f"{GPU} --train-num-samples 256016384 {AMP} "
    f"--model ViT-B-16 --batch-size 1024 --accum-freq 1 --epochs 5 --lr 0.0005 --seed 0 {REST} {TAIL}",
    "xlarge": f"{GPU} --train-num-samples 2560262144 --dataset-type webdataset --warmup 10000 --precision "
    "amp_bfloat16 --device cuda --workers 4 --model ViT-L-14 --batch-size 11264 --accum-freq 1 --epochs 5 --lr 0.001 "
    f"--seed 0 {REST} --beta2 0.95 {TAIL}",
}


@pytest.mark.parametrize("name", GOLDEN)
def test_arguments_on_eight_gpus(name: str) -> None:
    scale, multiple = scale_of(Train(scale=name))  # type: ignore[arg-type]
    plan = make_plan(scale, 8, 1, multiple)
    found = trainer_arguments(scale, plan, model=scale.model, seed=0, data="D", logs="L", name="N", gpu=True)
    assert " ".join(found) == GOLDEN[name]


def test_arguments_on_a_cpu_have_nothing_of_a_gpu() -> None:
    plan = make_plan(SCALES["debug"], 1, 4, 4)
    found = trainer_arguments(SCALES["debug"], plan, model="M", seed=3, data="D", logs="L", name="N", gpu=False)
    text = " ".join(found)
    assert "--precision fp32 --device cpu --workers 2 --model M --batch-size 256 --accum-freq 4" in text
    assert "--seed 3" in text
    for flag in ("--ddp-static-graph", "--grad-checkpointing"):
        assert flag not in found


@pytest.mark.parametrize("name", SCALES)
def test_open_clip_reads_every_argument(name: str) -> None:
    """And its defaults for the rest are DataComp's: AdamW 0.9/0.98 (xlarge 0.95), 1e-6, decay 0.2, cosine."""
    from open_clip_train.params import parse_args

    scale, multiple = scale_of(Train(scale=name))  # type: ignore[arg-type]
    plan = make_plan(scale, 8, 1, multiple)
    args = parse_args(trainer_arguments(scale, plan, model=scale.model, seed=0, data="D", logs="L", name="N", gpu=True))
    assert (args.beta1, args.beta2, args.eps, args.wd) == (0.9, 0.95 if name == "xlarge" else 0.98, 1e-6, 0.2)
    assert (args.opt, args.lr_scheduler, args.grad_clip_norm) == ("adamw", "cosine", None)


def save(path: Path, epoch: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"epoch": epoch, "state_dict": {"w": torch.full((500,), epoch)}}, path)
    return path


def test_number_of_a_checkpoint_is_none_where_it_is_not_whole(tmp_path: Path) -> None:
    whole = save(tmp_path / "a.pt", 3)
    assert checkpoints.number_of(whole) == 3
    data = whole.read_bytes()
    for name, broken in {"cut": data[: len(data) // 2], "empty": b"", "zeros": bytes(len(data))}.items():
        path = tmp_path / name
        path.write_bytes(broken)
        assert checkpoints.number_of(path) is None
    flipped = bytearray(data)
    flipped[data.index(torch.full((500,), 3).numpy().tobytes()) + 100] ^= 1
    (tmp_path / "flipped").write_bytes(flipped)
    assert checkpoints.number_of(tmp_path / "flipped") is None
    assert checkpoints.number_of(tmp_path / "absent") is None


def test_resumes_from_the_newest_whole_checkpoint(tmp_path: Path) -> None:
    storage, folder = LocalStorage(tmp_path / "bucket"), tmp_path / "work"
    latest = folder / checkpoints.LATEST
    assert checkpoints.restore(storage, "m/checkpoints", folder) == 0
    save(latest, 2)
    assert checkpoints.restore(storage, "m/checkpoints", folder) == 2
    save(tmp_path / "bucket/m/checkpoints/epoch_10.pt", 10)
    save(tmp_path / "bucket/m/checkpoints/epoch_9.pt", 9)
    assert checkpoints.restore(storage, "m/checkpoints", folder) == 10
    assert checkpoints.number_of(latest) == 10
    latest.write_bytes(latest.read_bytes()[:1000])  # a crash of the machine
    (tmp_path / "bucket/m/checkpoints/epoch_10.pt").write_bytes(b"half")
    assert checkpoints.restore(storage, "m/checkpoints", folder) == 9
    latest.write_bytes(b"")
    assert checkpoints.restore(None, "", folder) == 0
    assert not latest.exists()  # open_clip would stop at it


def test_copies_replace_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoints, "_LOOK_EVERY", 0.02)
    storage, folder = LocalStorage(tmp_path / "bucket"), tmp_path / "work"
    save(folder / checkpoints.LATEST, 1)
    with checkpoints.Copier(storage, "m", folder, 1) as copier:
        for number in (2, 3):
            save(folder / "tmp.pt", number).replace(folder / checkpoints.LATEST)
            _wait(lambda number=number: checkpoints.copies(storage, "m").keys() == {number})
        copier.copy()  # nothing new
    assert [e.path for e in storage.list()] == ["m/epoch_3.pt"]
    assert checkpoints.number_of(tmp_path / "bucket/m/epoch_3.pt") == 3
    assert not (folder / "upload.pt").exists()


def _wait(condition: object) -> None:
    import time

    end = time.monotonic() + 10
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < end
        time.sleep(0.01)


LINES = """\
2026-01-01,00:00:00 | INFO | Start epoch 0
2026-01-01,00:00:00 | INFO | Train Epoch: 0 [  32/160 (20%)] Data (t): 0.3 Batch (t): 0.5, 57.8314/s, 57.8314/s/gpu \
LR: 0.0005 Logit Scale: 14.2 Contrastive_loss: 3.4678 (3.4678) Loss: 3.4678 (3.4678)
2026-01-01,00:00:00 | WARNING | undecodable image 00000000.tar 000000000007: truncated image
2026-01-01,00:00:00 | WARNING | undecodable image 00000000.tar 000000000007: truncated image
2026-01-01,00:00:01 | INFO | Train Epoch: 0 [160/160 (100%)] Data (t): 0.3 Batch (t): 0.5, 1.5e+03/s, 1.5e+03/s/gpu \
LR: 0.0005 Logit Scale: 14.2 Contrastive_loss: 3.1 (3.2) Loss: 3.1000 (3.2000)
"""


def heard(text: str) -> TrainerLog:
    progress = TrainerLog()
    for line in text.splitlines(keepends=True):
        progress.add_line(line)
    return progress


def test_progress_is_read_from_the_log() -> None:
    progress = heard(LINES)
    assert (progress.loss, progress.rate) == (3.1, 1500.0)
    assert progress.undecodable == {"00000000.tar 000000000007": "truncated image"}


MEMORY = 'recaption-failure {"kind": "memory", "message": "OutOfMemoryError: CUDA out of memory"}\n'
PEER = 'recaption-failure {"kind": "temporary", "message": "DistBackendError: NCCL"}\n'
BAD = 'recaption-failure {"kind": "permanent", "message": "training set x/00000001.tar: cut"}\n'
KILLED = """\
2026-01-01,00:00:00 | INFO | Start epoch 1
E1124 04:40:00.1 12 torch/distributed/elastic/multiprocessing/api.py:1005] failed (exitcode: -9) local_rank: 0
Traceback (most recent call last):
  File "x.py", line 1, in <module>
============================================================
"""


@pytest.mark.parametrize(
    ("text", "kind", "message"),
    [
        (PEER + MEMORY, OutOfMemory, "CUDA out of memory"),
        (PEER + BAD, PermanentError, "training set x/00000001.tar: cut"),
        (PEER, TemporaryError, "NCCL"),
        (KILLED, TemporaryError, r"killed by signal 9 \(out of memory\?\): 2026.*Start epoch 1"),
        ("No module named torch\n", TemporaryError, "exit 1: No module named torch"),
    ],
)
def test_the_cause_among_what_all_ranks_say(text: str, kind: type[Exception], message: str) -> None:
    error = _failure(heard(text), 1, Path("train.log"))
    assert type(error) is kind
    with pytest.raises(kind, match=message):
        raise error
