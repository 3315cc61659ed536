"""Which node this is, of how many, in the variables that Kubeflow Trainer sets and that torchrun itself reads."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from components.base.errors import PermanentError, TemporaryError

log = logging.getLogger(__name__)

RESTARTS = "RECAPTION_RESTARTS"  # how often the JobSet has started these nodes; manifests/training/runtime.yaml sets it
FIRST, LONGEST = 10.0, 300.0  # seconds of the first pause and of the longest: Kubernetes' own for a container
ADDRESS = ("PET_MASTER_ADDR", "PET_MASTER_PORT")


@dataclass(frozen=True)
class Nodes:
    """The nodes of one training; each runs this same program on its own disk."""

    count: int = 1
    rank: int = 0
    """0 is the one that copies checkpoints and writes the model's record."""
    processes: int | None = None
    """Number of processes on each node; None is one per GPU."""
    restarts: int = 0
    """Number of times that these nodes were started together before."""
    together: bool = False
    """Whether the nodes are started together and torchrun must meet the others; False on a machine alone."""

    @property
    def leads(self) -> bool:
        return self.rank == 0

    def workers(self, gpus: int) -> int:
        """Return the number of training processes on this node.

        Raises:
            TemporaryError: there are too few GPUs; another node may have them.
        """
        if self.processes is None:
            return gpus or 1
        if gpus and gpus < self.processes:
            raise TemporaryError(
                f"train: node {self.rank} of {self.count} sees {gpus} GPUs, PET_NPROC_PER_NODE says {self.processes}"
            )
        return self.processes

    @property
    def pause(self) -> float:
        """Return the seconds to wait before this node leaves after a failure: JobSet starts all again at once."""
        return min(FIRST * 2 ** min(self.restarts, 10), LONGEST) if self.together else 0.0

    @contextmanager
    def pausing(self) -> Iterator[None]:
        """Let a failure that another start may cure leave only after a pause; a mistake or a signal leaves at once."""
        try:
            yield
        except PermanentError:
            raise
        except Exception as error:
            if self.pause:
                log.warning("train: %s; leaving in %.0f s, after %d restarts", error, self.pause, self.restarts)
                time.sleep(self.pause)
            raise


ALONE = Nodes()


def this_node(environment: Mapping[str, str] = os.environ) -> Nodes:
    """Read which node this is from PET_NNODES and its kin; without PET_NNODES this machine is the only node.

    Raises:
        PermanentError: a variable is missing or no number.
    """
    if not environment.get("PET_NNODES"):
        return ALONE
    count = _number(environment, "PET_NNODES")
    rank = _number(environment, "PET_NODE_RANK") if count > 1 or environment.get("PET_NODE_RANK") else 0
    missing = [name for name in ADDRESS if not environment.get(name)]
    if count < 1 or rank >= count or missing:
        what = f"{missing[0]} is missing" if missing else f"PET_NODE_RANK {rank} is none of PET_NNODES {count}"
        raise PermanentError(f"train: {what}; Kubeflow Trainer sets PET_NNODES, PET_NODE_RANK, {', '.join(ADDRESS)}")
    # `auto`, `gpu` and `cpu` are torchrun's other words for it
    fixed = environment.get("PET_NPROC_PER_NODE", "").isdecimal()
    restarts = _number(environment, RESTARTS) if environment.get(RESTARTS) else 0
    processes = _number(environment, "PET_NPROC_PER_NODE") if fixed else None
    return Nodes(count, rank, processes, restarts, together=True)


def _number(environment: Mapping[str, str], name: str) -> int:
    value = environment.get(name, "")
    if not value.isdecimal():
        raise PermanentError(f"train: {name} is {value!r}; expected a number, as Kubeflow Trainer sets it")
    return int(value)
