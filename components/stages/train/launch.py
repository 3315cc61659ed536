"""The program that torchrun starts on every GPU: open_clip's trainer, with our data and with errors a parent can read.

python -m torch.distributed.run --nproc-per-node 8 -m components.stages.train.launch JOB.json

JOB.json: {"arguments": the trainer's command line, "models": [files of model configs], "worldSize": processes on all
nodes, "followStdin": whether the end of standard input ends this process (the parent is gone)}.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from pathlib import Path
from typing import Any

from components.base.errors import RecaptionError, TemporaryError
from components.stages.train.marks import FAILURE

# RuntimeErrors of torch without a type of their own: a loading process that was killed, a disk that is full, a peer
# that is gone (gloo's; NCCL's have a type).
_PASSING = (
    "exited unexpectedly",
    "DataLoader timed out",
    "is killed by signal",
    "PytorchStreamWriter failed",
    "gloo/transport",
    "by peer",
)


def main(path: str) -> None:
    job = json.loads(Path(path).read_text())
    if job["followStdin"]:
        threading.Thread(target=_follow_stdin, daemon=True).start()
    try:
        _train(job)
    except Exception as error:
        failure = {"kind": _kind(error), "message": _message(error)}
        print(f"\n{FAILURE}{json.dumps(failure)}", file=sys.stderr, flush=True)
        raise


def _train(job: dict[str, Any]) -> None:
    import open_clip
    import open_clip_train.main as trainer

    from components.stages.train.trainer_patches import adapt

    for file in job["models"]:
        open_clip.add_model_config(Path(file))
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world != job["worldSize"]:
        raise TemporaryError(f"{world} processes met, expected {job['worldSize']}: the nodes have unequally many GPUs")
    adapt(trainer)
    if trainer.main(job["arguments"]) == -1:
        raise TemporaryError("open_clip's trainer refused to start; see the lines above")


def _follow_stdin() -> None:
    while os.read(0, 1):  # not sys.stdin: its lock, held here, would be held for ever in a forked loading process
        pass
    os._exit(1)


def _kind(error: Exception) -> str:
    """Classify an error: memory wants smaller batches; temporary (a lost peer, a sick GPU, I/O) may pass by itself."""
    import torch

    if isinstance(error, torch.OutOfMemoryError):
        return "memory"
    if isinstance(error, RecaptionError):
        return "temporary" if isinstance(error, TemporaryError) else "permanent"
    passing = [torch.distributed.DistError, OSError]
    if hasattr(torch, "AcceleratorError"):
        passing.append(torch.AcceleratorError)
    if isinstance(error, tuple(passing)) or any(phrase in str(error) for phrase in _PASSING):
        return "temporary"
    return "permanent"


def _message(error: Exception) -> str:
    """Return an error's message in one line: of a loading process's traceback the last line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [""]
    last = lines[-1] if lines[0].startswith("Caught ") else lines[0]
    name = type(error).__name__
    last = last.removeprefix(f"{type(error).__module__}.{name}: ").removeprefix(f"{name}: ")
    return last if isinstance(error, RecaptionError) else f"{name}: {last}"


if __name__ == "__main__":
    main(sys.argv[1])
