"""train: one CLIP per mixture with open_clip's own trainer under torchrun, DataComp's hyperparameters, resumable.

A killed training resumes from its newest checkpoint, so at most one of its `checkpoints` intervals is lost; on several
nodes (or in a bucket) from the newest whose copy in the storage was finished, so the time of that copy is lost too.

On several nodes this same step runs on each, told by PET_* (see `nodes`). They meet through torchrun; only the storage
is common to them. Node 0 copies checkpoints there and writes the model's record, all of them restore from there.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from importlib.metadata import version as installed
from pathlib import Path
from typing import Any

from components.base.errors import PermanentError, TemporaryError
from components.base.hashing import content_hash
from components.base.version import version
from components.engine.stage import Finding, Needs, Step
from components.models.checks import check_student
from components.pool.run import Run
from components.recipe.mixtures import Mixture
from components.recipe.recipe import Spec
from components.recipe.training import ScaleConfig, Train
from components.stages.train import checkpoints
from components.stages.train.arguments import trainer_arguments
from components.stages.train.batch_plan import BatchPlan, make_plan, next_accumulation
from components.stages.train.logs import kept_log, read_logs
from components.stages.train.nodes import ALONE, Nodes, this_node
from components.stages.train.scales import scale_of
from components.stages.train.trainer import OutOfMemory, TrainerLog, torchrun
from components.storage.fetching import fetched
from components.storage.interface import Storage
from components.storage.local import LocalStorage
from components.storage.opening import open_object

log = logging.getLogger(__name__)

LINGER = 60.0  # seconds; a preempted node has ended by then: its pod has 45, in manifests/training/runtime.yaml
PASSES = "passes.json"  # of a training on several nodes whose GPUs were too small for one pass
PACKAGES = ("torch", "torchvision", "open_clip_torch", "webdataset")


class TrainStep(Step):
    """Runs open_clip's trainer on all GPUs of this machine and of the nodes that it belongs to, or on the CPU."""

    name = "train"
    summary = "train a CLIP on each training set, with DataComp's fixed hyperparameters"
    reads = ("datasets",)
    writes = "models/<mixture>: checkpoints, model.json"
    needs = Needs(memory_gib=16, gpu=True)

    @classmethod
    def check(cls, spec: Spec) -> Iterator[Finding]:
        scale = spec.train.scale if spec.train else None
        return check_student(scale.model, "spec.train.scale.model") if isinstance(scale, ScaleConfig) else iter(())

    def run(self, run: Run) -> None:
        with this_node().pausing():
            for mixture in run.trained:
                if run.storage.size(f"{run.model_folder(mixture)}/model.json") is None:
                    train(run, mixture)

    def recorded(self, run: Run) -> tuple[float, float] | None:
        """Return the seconds of all processes, of each model's last attempt, and its samples."""
        paths = [f"{run.model_folder(m)}/model.json" for m in run.trained] if run.is_indexed else []
        models = [json.loads(run.storage.read(path)) for path in paths if run.storage.size(path) is not None]
        timed = [(m.get("seconds", 0), m.get("world_size", 1), m.get("samples_per_second") or 0) for m in models]
        return sum(s * world for s, world, _ in timed), sum(s * rate for s, _, rate in timed)


@dataclass(frozen=True)
class Training:
    """One model: what is trained on what, and where its files lie."""

    settings: Train
    scale: ScaleConfig
    multiple: int
    storage: Storage
    dataset: str
    folder: str
    """The model's folder, below the storage."""
    work: Path
    """The model's folder on this machine: open_clip's experiment."""
    nodes: Nodes = ALONE
    student: str | None = None
    """Fingerprint of the model's config when the run was planned, where it is a file's."""

    @property
    def checkpoints(self) -> Path:
        return self.work / "checkpoints"

    @property
    def log(self) -> Path:
        """The log of the trainer's output, over all attempts."""
        return self.work / "train.log"

    @property
    def remote(self) -> Storage | None:
        """The storage that checkpoints are copied to; None where open_clip itself writes into the storage."""
        return None if isinstance(self.storage, LocalStorage) and not self.nodes.together else self.storage

    @property
    def copies(self) -> str:
        return f"{self.folder}/checkpoints"


def train(run: Run, mixture: Mixture) -> None:
    """Train one model to its end and describe it in model.json.

    Raises:
        PermanentError: a tar is missing, the batch can't be divided, the trainer can't do this.
        TemporaryError: it was interrupted; the next call resumes.
    """
    assert run.spec.train is not None  # run.trained is empty otherwise
    scale, multiple = scale_of(run.spec.train)
    folder, dataset = run.model_folder(mixture), run.dataset_folder(mixture)
    nodes, student = this_node(), run.fingerprints.get("student")
    here = isinstance(run.storage, LocalStorage) and not nodes.together
    local = Path(run.storage.uri) if here else _scratch(run.storage, nodes)
    training = Training(run.spec.train, scale, multiple, run.storage, dataset, folder, local / folder, nodes, student)
    pairs = check_dataset(run.storage, dataset)["samples"]
    with _alone(training):
        with kept_log(run.storage, folder, nodes, training.log) if training.remote else nullcontext():
            made = _to_its_end(training)
        if nodes.leads:
            model = {"mixture": mixture.name, "dataset": dataset, "pairs": pairs, **made}
            run.storage.create(f"{folder}/model.json", json.dumps(model, indent=1).encode())
        if training.remote:
            shutil.rmtree(training.work)
        else:
            (training.checkpoints / checkpoints.LATEST).unlink(missing_ok=True)  # the numbered one is the same


def _to_its_end(training: Training) -> dict[str, Any]:
    """Train what is missing; where this node leads, return the account of it for model.json."""
    settings, scale, nodes = training.settings, training.scale, training.nodes
    name, architecture, files = _architecture(scale.model, training.student, training.work)
    if nodes.together:  # the other nodes can't resume from a checkpoint that only this disk has
        (training.checkpoints / checkpoints.LATEST).unlink(missing_ok=True)
    began, start = time.monotonic(), checkpoints.restore(training.remote, training.copies, training.checkpoints)
    if start:
        log.info("%s: resuming after checkpoint %d of %d", training.folder, start, scale.checkpoints)
    if not nodes.leads:
        _train(training, name, files)
        return {}
    with _copying(training, start) as copier:
        plan, progress = _train(training, name, files)
        if copier:
            copier.copy()
    whole = read_logs(training.storage, training.folder, nodes, training.log)
    return {
        "model": name,
        "architecture": architecture,
        "scale": settings.scale if isinstance(settings.scale, str) else "custom",
        "hyperparameters": hyperparameters(scale, name, _gpus() > 0),
        "seed": settings.seed,
        **_course(plan, whole, progress, start, time.monotonic() - began),
        "nodes": nodes.count,
        **_keep_last(training, scale.checkpoints),
        "versions": {"recaption": version(), **{package: installed(package) for package in PACKAGES}},
    }


def check_dataset(storage: Storage, folder: str) -> dict[str, Any]:
    """Read dataset.json and check that every tar it names is there, in its size.

    Raises:
        PermanentError: there is no training set, or it isn't whole.
    """
    sizes = {e.path.removeprefix(f"{folder}/"): e.size for e in storage.list(f"{folder}/")}
    if "dataset.json" not in sizes:
        raise PermanentError(f"train: {storage.uri}/{folder} has no dataset.json; run reshard first")
    data: dict[str, Any] = json.loads(storage.read(f"{folder}/dataset.json"))
    bad = [tar for tar in data["shards"] if sizes.get(tar["name"]) != tar["bytes"]]
    if bad:
        name, size = bad[0]["name"], sizes.get(bad[0]["name"])
        found = "is missing" if size is None else f"has {size} bytes"
        raise PermanentError(
            f"train: {len(bad)} of {len(data['shards'])} tars of {storage.uri}/{folder} are not as dataset.json says: "
            f"{name} {found}, expected {bad[0]['bytes']} bytes; run reshard again"
        )
    return data


def hyperparameters(scale: ScaleConfig, model: str, gpu: bool) -> dict[str, Any]:
    """Return what decides the training, with open_clip's own defaults spelled out."""
    from open_clip_train.params import get_default_params

    defaults = get_default_params(model)
    return {
        **scale.model_dump(mode="json"),
        "precision": scale.precision if gpu else "fp32",
        "beta1": defaults["beta1"],
        "beta2": scale.beta2 if scale.beta2 is not None else defaults["beta2"],
        "eps": defaults["eps"],
        "weight_decay": 0.2,
        "schedule": "cosine",
    }


def _train(training: Training, model: str, files: list[str]) -> tuple[BatchPlan, TrainerLog]:
    """Call torchrun; on a GPU that is too small again with half the samples at once, which changes no result."""
    gpus = _gpus()
    processes = training.nodes.workers(gpus)
    world = processes * training.nodes.count
    accumulation: int | None = _known_passes(training, world)
    while True:
        assert accumulation is not None
        plan = make_plan(training.scale, world, accumulation, training.multiple)
        if training.scale.warmup >= plan.steps:
            log.warning(
                "train: warmup is %d steps and the training %d: the learning rate never reaches %g",
                *(training.scale.warmup, plan.steps, training.scale.learning_rate),
            )
        try:
            return plan, _call(training, plan, model, files, processes, gpus > 0)
        except OutOfMemory as error:
            accumulation = next_accumulation(training.scale, world, accumulation)
            if accumulation is None:
                raise PermanentError(f"{error}: not even one sample fits this GPU; use a smaller model") from error
            log.warning("train: too little GPU memory for %d samples at once; fewer, summed", plan.batch_per_gpu)
            if training.nodes.together:  # the others must do the same: all of them start again
                passes = json.dumps({"world": world, "passes": accumulation}).encode()
                training.storage.write(f"{training.folder}/{PASSES}", passes)
                raise TemporaryError(f"{error}: run again, in {accumulation} passes") from error


def _call(training: Training, plan: BatchPlan, model: str, files: list[str], processes: int, gpu: bool) -> TrainerLog:
    arguments = trainer_arguments(
        training.scale,
        plan,
        model=model,
        seed=training.settings.seed,
        data=f"{training.storage.uri}/{training.dataset}",
        logs=str(training.work.parent),
        name=training.work.name,
        gpu=gpu,
    )
    with tempfile.NamedTemporaryFile("w", prefix="train-", suffix=".json") as job:
        json.dump({"arguments": arguments, "models": files, "worldSize": plan.world_size, "followStdin": True}, job)
        job.flush()
        try:
            return torchrun(Path(job.name), processes, training.log, training.nodes.together)
        except TemporaryError:
            if training.nodes.together:  # Kubernetes judges by the first that fails: let it be the cause, not a peer
                time.sleep(LINGER)
            raise


def _known_passes(training: Training, world: int) -> int:
    """Return how many passes an earlier attempt of all nodes found necessary."""
    path = f"{training.folder}/{PASSES}"
    if not training.nodes.together or training.storage.size(path) is None:
        return 1
    known = json.loads(training.storage.read(path))
    return int(known["passes"]) if known["world"] == world else 1


def _course(plan: BatchPlan, whole: TrainerLog, last: TrainerLog, start: int, seconds: float) -> dict[str, Any]:
    """Describe how the training went. `seconds` and `resumed_after` are of the last call, loss and images of all."""
    return {
        **{key: value for key, value in asdict(plan).items() if key != "checkpoints"},
        "steps": plan.steps,
        "samples": plan.samples,
        "resumed_after": start,
        "seconds": round(seconds, 3),
        "samples_per_second": last.rate or whole.rate,
        "final_loss": whole.loss,
        "undecodable": len(whole.undecodable),
    }


def _keep_last(training: Training, number: int) -> dict[str, Any]:
    """Keep the finished checkpoint under its final name; return its path and hash.

    Raises:
        TemporaryError: it isn't there or isn't whole; the next call makes it.
    """
    path = training.checkpoints / f"epoch_{number}.pt"
    latest = training.checkpoints / checkpoints.LATEST
    if checkpoints.number_of(latest) != number:
        raise TemporaryError(f"train: {latest} is not checkpoint {number}, where the training ends; run again")
    # open_clip wrote it twice, not in the same bytes; a copy in a bucket is of the newest. Both names stay until
    # model.json is written, so that a kill in between loses nothing.
    path.unlink(missing_ok=True)
    os.link(latest, path)
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return {"checkpoint": f"{training.copies}/{path.name}", "sha256": digest.hexdigest()}


def _architecture(model: str, student: str | None, work: Path) -> tuple[str, dict[str, Any] | None, list[str]]:
    """Return the model's name for open_clip, the content of a config file, and a config for the trainer to register."""
    from components.models.configs import trainable

    if not model.endswith(".json"):
        name, config = model, None
    else:
        storage, path = open_object(fetched(model, student))
        name = Path(path).stem
        try:
            config = json.loads(storage.read(path))
            missing = [key for key in ("embed_dim", "vision_cfg", "text_cfg") if key not in config]
        except (ValueError, TypeError) as error:
            raise PermanentError(f"spec.train.scale.model: {model} is not JSON ({error})") from error
        if missing:
            raise PermanentError(
                f"spec.train.scale.model: {model} has no {missing[0]}; expected an open_clip model config"
            )
    copy = work / f"{name}.json"
    copy.write_text(json.dumps(trainable(name, config, f"spec.train.scale.model: {model}"), indent=1))
    return name, config, [str(copy)]


@contextmanager
def _alone(training: Training) -> Iterator[None]:
    """Lock out a second training of one model in one folder; the lock ends with its process."""
    try:
        training.checkpoints.mkdir(parents=True, exist_ok=True)
        lock = open(training.work / ".lock", "w")  # noqa: SIM115  # closed below
    except OSError as error:
        raise TemporaryError(f"train: cannot write {training.work}: {error.strerror or error}") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise TemporaryError(f"train: another process is training {training.folder}; wait for it") from error
        yield


def _copying(training: Training, start: int) -> Any:
    if training.remote is None:
        return nullcontext()
    return checkpoints.Copier(training.remote, training.copies, training.checkpoints, start)


def _scratch(storage: Storage, nodes: Nodes) -> Path:
    """Return the local folder for a storage, always the same: a restart on this machine finds its checkpoint."""
    node = f"-node-{nodes.rank}" if nodes.together else ""
    return Path(tempfile.gettempdir(), f"recaption-{content_hash(storage.uri)}{node}")


def _gpus() -> int:
    import torch

    return torch.cuda.device_count()
