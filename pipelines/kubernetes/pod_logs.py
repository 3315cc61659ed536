"""The logs of failed pods, kept in the run's folder: Kubernetes forgets them with the pod.

The launcher reads them, so that a pod that was killed before it could write anything has one too. What is lost: the log
of a pod that is gone before the next look (a node that was taken back, a Job that was deleted), whatever was said
before the tail, and the logs of pods that ended well.
"""

from __future__ import annotations

import logging

from components.base.errors import RecaptionError
from components.base.printable import printable_lines
from components.pool.run import Run
from pipelines.kubernetes import diagnosis
from pipelines.kubernetes.cluster import PODS, Cluster
from pipelines.kubernetes.jobs import label_value, selector

log = logging.getLogger(__name__)

MOST = 100  # logs of a stage that one launcher keeps: one reason mostly fails them all
LINES = 1000
TAIL = 64 * 1024  # characters


class PodLogs:
    """Keeps the logs of a stage's failed pods, each once."""

    def __init__(self, run: Run, key: str, cluster: Cluster, container: str) -> None:
        self.run, self.cluster, self.container = run, cluster, container
        self.selector = selector(f"{run.storage.uri}/{run.folder}", key)
        self.folder = f"{run.folder}/logs/{label_value(key)}"
        self._kept: set[str] = set()

    def keep(self) -> None:
        """Write the end of every new failed pod's log, behind a line on how it ended. Nothing that fails here matters
        to the stage."""
        try:
            pods, _ = self.cluster.find(PODS, self.selector, "status.phase=Failed", 2 * MOST)
            new = {pod["metadata"]["name"]: pod for pod in pods if pod["metadata"]["name"] not in self._kept}
            for name in sorted(new)[: MOST - len(self._kept)]:
                ending = diagnosis.ended(new[name], self.container)
                said = self.cluster.log(name, self.container, LINES) or ending.message
                text = f"{ending.text}\n{printable_lines(said)[-TAIL:]}\n"
                self.run.storage.write(f"{self.folder}/{name}.log", text.encode(errors="replace"))
                self._kept.add(name)
        except RecaptionError as error:
            log.warning("%s: logs of failed pods are not kept: %s", self.folder, error)
