"""The trainer's output on every node, kept in the storage: a pod that is gone takes its disk with it."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from components.base.errors import RecaptionError
from components.stages.train.nodes import Nodes
from components.stages.train.trainer import TrainerLog, read_log
from components.storage.interface import Storage

log = logging.getLogger(__name__)

WAIT = 60.0  # seconds for the other nodes' logs; all trainers end in the same second


def log_name(rank: int) -> str:
    return f"train.{rank}.log" if rank else "train.log"


@contextmanager
def kept_log(storage: Storage, folder: str, nodes: Nodes, path: Path) -> Iterator[None]:
    """Continue this node's log of earlier attempts, and save it however this attempt ends, unless by SIGKILL."""
    name = f"{folder}/{log_name(nodes.rank)}"
    if not path.exists() and storage.size(name) is not None:
        path.write_bytes(storage.read(name))
    try:
        yield
    except Exception:
        try:
            if path.exists():
                storage.upload(path, name)
        except RecaptionError as error:
            log.warning("train: log not kept: %s", error)
        raise
    storage.upload(path, name)


def read_logs(storage: Storage, folder: str, nodes: Nodes, path: Path) -> TrainerLog:
    """Read the leader's log at `path`, with the images that any node could not decode."""
    whole, end = read_log(path), time.monotonic() + WAIT
    for rank in range(1, nodes.count):
        name = f"{folder}/{log_name(rank)}"
        while storage.size(name) is None and time.monotonic() < end:
            time.sleep(1)
        if storage.size(name) is None:
            log.warning("train: node %d left no log; images that only it could not decode are not counted", rank)
            continue
        other = TrainerLog()
        for line in storage.read(name).decode(errors="replace").splitlines():
            other.add_line(line)
        whole.undecodable |= other.undecodable
    return whole
