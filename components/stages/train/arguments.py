"""The command line of open_clip's trainer: DataComp's arguments, on a CPU without those that need a GPU."""

from __future__ import annotations

from components.recipe.training import ScaleConfig
from components.stages.train.batch_plan import BatchPlan
from components.stages.train.scales import WORKERS

CPU_WORKERS = 2
LOG_EVERY = 100  # steps, as DataComp


def trainer_arguments(
    scale: ScaleConfig, plan: BatchPlan, *, model: str, seed: int, data: str, logs: str, name: str, gpu: bool
) -> list[str]:
    """Return the trainer's command line.

    Args:
        model: the name under which open_clip knows the architecture.
        logs: folder of experiments; checkpoints go to `<logs>/<name>/checkpoints`.
    """
    arguments = ["--save-frequency", "0"]  # only the newest and the last checkpoint are kept
    shared = ["--local-loss", "--gather-with-grad"]  # without them n processes follow an n-th of the gradient
    arguments += ["--ddp-static-graph", *shared, "--grad-checkpointing"] if gpu else shared
    values = {
        "train-data": data,
        "train-num-samples": plan.samples_per_checkpoint,
        "dataset-type": "webdataset",
        "warmup": scale.warmup,
        "precision": scale.precision if gpu else "fp32",
        "device": "cuda" if gpu else "cpu",
        "workers": WORKERS if gpu else CPU_WORKERS,
        "model": model,
        "batch-size": plan.batch_per_gpu,
        "accum-freq": plan.accumulation,
        "epochs": plan.checkpoints,
        "lr": scale.learning_rate,
        "seed": seed,
        "log-every-n-steps": min(LOG_EVERY, max(1, plan.steps_per_checkpoint // 4)),
        "logs": logs,
        "name": name,
        "resume": "latest",
    }
    if scale.beta2 is not None:
        values["beta2"] = scale.beta2
    arguments += [part for key, value in values.items() for part in (f"--{key}", str(value))]
    return [*arguments, "--save-most-recent", "--dataset-resampled"]
